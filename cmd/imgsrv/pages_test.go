package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// As docs/using.md says it is done, on a client's machine with nothing but what every distribution has.
func TestFoldersAreFetchedAndCheckedWithPlainTools(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "curl", "sha256sum", "sh")
	flags, node := server(t)
	disk := string(qcow2Image(t, 100_000))
	args := []string{"publish", write(t, disk)[0], "--image=debian-bookworm", "--version=12.5.0", "--architecture=amd64", "--alias=latest"}
	if code, _, errs := command(t.Context(), with(flags, args...)...); code != 0 {
		t.Fatalf("publish: exit code %d: %s", code, errs)
	}
	dir := t.TempDir()
	script := exec.CommandContext(t.Context(), "sh", "-euc", `
		curl -fsSO "$SERVER/images/debian-bookworm/latest/SHA256SUMS"
		name=$(grep -o 'debian-bookworm-.*-amd64\.virtual-machine\.default\.disk\.qcow2$' SHA256SUMS)
		curl -fsSO "$SERVER/images/debian-bookworm/latest/$name"
		sha256sum -c --ignore-missing SHA256SUMS`)
	script.Dir, script.Env = dir, append(os.Environ(), "SERVER="+node.HTTPURL)
	const name = "debian-bookworm-12.5.0-amd64.virtual-machine.default.disk.qcow2"
	if out, err := script.CombinedOutput(); err != nil || string(out) != name+": OK\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != disk {
		t.Errorf("%d bytes came, %v", len(got), err)
	}
}
