package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The folders of an export have all files of each version, also what was made of it, under the names in SHA256SUMS, and follow aliases.
func TestAnExportHasFoldersWithChecksums(t *testing.T) {
	t.Parallel()
	o := newOperated(t)
	flags := []string{"--server", o.node.HTTPURL, "--data-dir", o.flags.DataDir}
	disk := writeAs(t, "disk.qcow2", qcow2Image(t, 100_000))
	notes := writeAs(t, "notes.txt", []byte("notes"))
	publish := func(version string, more ...string) {
		t.Helper()
		args := append([]string{"publish", disk, "--image=debian", "--version=" + version, "--alias=latest", "--attach=" + notes}, more...)
		if code, _, errs := command(t.Context(), with(flags, args...)...); code != 0 {
			t.Fatalf("publish: exit code %d: %s", code, errs)
		}
	}
	publish("1", "--derive=disk.vmdk")
	p := o.node.stranger(t)
	if f, gone := p.derived("debian", "1", "disk.vmdk"); f.MadeBy == nil {
		t.Fatalf("not made: %+v", gone)
	}
	hidden := writeAs(t, "rootfs.squashfs", squashfsBytes("hidden", 4096))
	if code, _, errs := command(t.Context(), with(flags, "publish", hidden, "--image=hidden", "--version=1", "--visibility=private")...); code != 0 {
		t.Fatalf("publish: exit code %d: %s", code, errs)
	}

	dir := t.TempDir()
	first := exportTo(t, flags, dir, "--folders")
	if first.Files != 6 || first.Downloaded != 4 || first.Linked != 2 { // disk and metadata for Incus are two of the four files of the folder
		t.Errorf("export %+v", first)
	}
	check := func(folder string) {
		t.Helper()
		run := exec.CommandContext(t.Context(), "sha256sum", "-c", "--strict", "SHA256SUMS")
		run.Dir = filepath.Join(dir, folder)
		if said, err := run.CombinedOutput(); err != nil || strings.Count(string(said), ": OK\n") < 3 {
			t.Errorf("%s: %v\n%s", folder, err, said)
		}
	}
	check("images/debian/1")
	check("images/debian/latest")
	for _, name := range []string{"SHA256SUMS", "SHA256SUMS.minisig", "debian-1-amd64.virtual-machine.default.disk.vmdk", "debian-1.notes.txt"} {
		var served []byte
		p.call(http.MethodGet, "/images/debian/1/"+name, nil, &served)
		if got, err := os.ReadFile(filepath.Join(dir, "images/debian/1", name)); err != nil || string(got) != string(served) || len(got) == 0 {
			t.Errorf("%s isn't the server's: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "images/hidden")); !os.IsNotExist(err) {
		t.Errorf("a private image is in the tree: %v", err)
	}
	before := filesOf(t, dir)
	if again := exportTo(t, flags, dir, "--folders", "--delete"); again.Kept != 6 || again.Downloaded != 0 || again.Deleted != 0 {
		t.Errorf("again: %+v", again)
	}
	after := filesOf(t, dir)
	for name, state := range before {
		if after[name] != state {
			t.Errorf("%s was written anew", name)
		}
	}

	// An alias moves along, and what is gone goes.
	publish("2")
	if code, _, errs := command(t.Context(), with(flags, "withdraw", "debian/1", "--reason=old")...); code != 0 {
		t.Fatalf("withdraw: exit code %d: %s", code, errs)
	}
	exportTo(t, flags, dir, "--folders", "--delete")
	check("images/debian/latest")
	if to, err := os.Readlink(filepath.Join(dir, "images/debian/latest")); err != nil || to != "2" {
		t.Errorf("latest leads to %q, %v", to, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "images/debian/1")); !os.IsNotExist(err) {
		t.Errorf("the withdrawn version stays: %v", err)
	}
}

// A server's names lead nowhere out of the tree.
func TestNamesOfAnExportStayInIt(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", ".", "..", "a/b", "../a", `a\b`, "a\x00", "/a"} {
		if plainName(name) {
			t.Errorf("%q is taken for a name", name)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/streams/v1/index.json":
			_, _ = w.Write([]byte(`{"format": "index:1.0", "index": {}}`))
		case "/api/images":
			_, _ = w.Write([]byte(`{"images": [{"name": "../../up", "aliases": {}}]}`))
		case "/api/images/../../up/versions":
			_, _ = w.Write([]byte(`{"versions": [{"version": "1"}]}`))
		default:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{"status": 404, "code": "not-found"}`))
		}
	}))
	t.Cleanup(server.Close)
	dir := filepath.Join(t.TempDir(), "tree")
	code, _, errs := command(t.Context(), "export", dir, "--folders", "--server", server.URL, "--quiet")
	if code != 1 || !strings.Contains(errs, "can't be folders") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool { return e.Name() != "tree" }) {
		t.Errorf("beside the tree: %v %v", left, err)
	}
}
