package main

import (
	"net/http"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/client"
)

// A withdrawn version's bytes go; then it can't be restored, its URLs say why, and the same bytes can be published again.
func TestGarbageIsCollectedOnRequest(t *testing.T) {
	t.Parallel()
	serverFlags := nodeFlags(t)
	node := startWith(t, serverFlags, testHooks{noGrace: true}, nil)
	flags := []string{"--server", node.HTTPURL, "--data-dir", serverFlags.DataDir}
	publish := func(version, content string) {
		t.Helper()
		file := write(t, squashfs+content)[0]
		if code, _, errs := command(t.Context(), with(flags, "publish", file, "--image=debian", "--version="+version, "--architecture=amd64")...); code != 0 {
			t.Fatalf("publish: exit code %d: %s", code, errs)
		}
	}
	says := func(want int, text string, args ...string) string {
		t.Helper()
		code, out, errs := command(t.Context(), with(flags, args...)...)
		if all := out + errs; code != want || !strings.Contains(all, text) || code != 0 && strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", args, code, all)
		}
		return out
	}
	publish("1", "one")
	publish("2", "two")
	says(exitOK, "would go: 0 B in 0 blobs", "gc", "--dry-run")
	p := node.publisher(t)
	var v client.Version
	p.call(http.MethodGet, "/api/images/debian/versions/1", nil, &v)
	rootfs := v.Variants[0].Formats[0]
	for _, f := range v.Variants[0].Formats {
		if f.Format == "rootfs.squashfs" {
			rootfs = f
		}
	}
	says(exitOK, "debian/1 is withdrawn", "withdraw", "debian/1", "--reason=CVE")

	table := says(exitOK, "would go: ", "gc", "--dry-run")
	for _, line := range []string{"version  debian/1", "withdrawn since", rootfs.Digest, "1 withdrawn versions"} {
		if !strings.Contains(table, line) {
			t.Errorf("the table lacks %q:\n%s", line, table)
		}
	}
	dry := decode[client.Garbage](t, says(exitOK, `"dry_run": true`, "gc", "--dry-run", "--json"))
	says(exitOK, "debian/1 is published", "withdraw", "--undo", "debian/1")
	says(exitOK, "debian/1 is withdrawn", "withdraw", "debian/1", "--reason=CVE")
	done := decode[client.Garbage](t, says(exitOK, `"dry_run": false`, "gc", "--json"))
	if done.Bytes != dry.Bytes || done.Blobs != 2 || done.Versions != 1 || done.Bytes < int64(len(squashfs)) { // the root, and the metadata made for it
		t.Errorf("collected %+v, the dry run said %+v", done, dry)
	}
	says(exitFailed, "its bytes have been collected", "withdraw", "--undo", "debian/1")
	says(exitFailed, "is withdrawn: CVE; its bytes have been collected since", "download", "debian/1")
	says(exitOK, "it can't be restored any more", "history", "debian")
	says(exitOK, "gc", "operations")

	cas := "/cas/sha256/" + strings.TrimPrefix(rootfs.Digest, "sha256:")[:2] + "/" + strings.TrimPrefix(rootfs.Digest, "sha256:")
	stranger := node.stranger(t)
	if got := p.call(http.MethodGet, cas, nil, new([]byte)).StatusCode; got != http.StatusGone {
		t.Errorf("the collected blob is %d to the admin", got)
	}
	if got := stranger.call(http.MethodGet, cas, nil, new([]byte)).StatusCode; got != http.StatusNotFound {
		t.Errorf("the collected blob is %d to a stranger", got)
	}
	publish("3", "one")
	if got := stranger.call(http.MethodGet, cas, nil, new([]byte)).StatusCode; got != http.StatusOK {
		t.Errorf("published again the blob is %d", got)
	}
	says(exitOK, "in 0 blobs", "gc")
	says(exitFailed, "number and its unit", "gc", "--grace=soon")
}

func TestTimesOfGarbageThatAreTooShortAreRefused(t *testing.T) {
	t.Parallel()
	for want, f := range map[string]garbageFlags{
		"--gc-grace":       {GCGrace: 59 * 60e9},
		"--gc-every":       {GCEvery: -1},
		"--keep-withdrawn": {GCGrace: 3 * 3600e9, KeepWithdrawn: 2 * 3600e9},
	} {
		if err := f.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if err := (garbageFlags{}).check(); err != nil {
		t.Error(err)
	}
}
