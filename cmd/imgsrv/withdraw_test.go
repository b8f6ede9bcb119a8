package main

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/client"
)

func TestVersionsAreWithdrawnRestoredAndOutgrown(t *testing.T) {
	t.Parallel()
	flags, node := server(t)
	publish := func(version string) {
		t.Helper()
		file := write(t, squashfs+rawDisk(1000)+version)[0]
		if code, _, errs := command(t.Context(), with(flags, "publish", file, "--image=debian", "--version="+version, "--architecture=amd64", "--alias=latest")...); code != 0 {
			t.Fatalf("publish: exit code %d: %s", code, errs)
		}
	}
	says := func(want int, text string, args ...string) {
		t.Helper()
		code, out, errs := command(t.Context(), with(flags, args...)...)
		if all := out + errs; code != want || !strings.Contains(all, text) || code != 0 && strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", args, code, all)
		}
	}
	publish("1")
	publish("2")
	says(exitFailed, "is named by latest", "withdraw", "debian/2", "--reason=CVE")
	says(exitUsage, "IMAGE/VERSION", "withdraw", "debian", "--reason=CVE")
	says(exitUsage, "--reason", "withdraw", "debian/2")
	says(exitUsage, "", "withdraw", "debian/2", "--reason=CVE", "--move-alias=1", "--remove-alias")
	says(exitOK, "debian/2 is withdrawn\n", "withdraw", "debian/2", "--reason=CVE", "--move-alias=1")
	says(exitOK, `"state": "withdrawn"`, "withdraw", "debian/2", "--reason=CVE", "--json")
	says(exitFailed, "is withdrawn: CVE", "download", "debian/2")
	says(exitOK, "withdrawn: CVE", "history", "debian")
	says(exitOK, "debian/2 is published\n", "withdraw", "--undo", "debian/2")
	says(exitFailed, "no such withdrawn version", "withdraw", "--undo", "debian/9")
	says(exitUsage, "--undo", "withdraw", "--undo", "debian/2", "--move-alias=1")

	says(exitOK, "debian/stable is 2\n", "alias", "move", "debian", "stable", "2")
	says(exitFailed, "9", "alias", "move", "debian", "stable", "9")
	says(exitOK, "stable", "history", "debian")
	says(exitOK, "debian/stable is removed\n", "alias", "remove", "debian", "stable")
	says(exitFailed, "stable", "alias", "remove", "debian", "stable")

	says(exitOK, "debian is private\n", "images", "visibility", "debian", "private")
	says(exitUsage, "public", "images", "visibility", "debian", "secret")
	says(exitOK, "all", "policy", "get", "debian")
	says(exitUsage, "nothing to change", "policy", "set", "debian")
	says(exitFailed, "0 to 20", "policy", "set", "debian", "--deltas=99")
	says(exitOK, "disk.raw.zst, disk.vmdk?", "policy", "set", "debian", "--format=disk.raw.zst", "--format=disk.vmdk?", "--deltas=0")
	publish("3")
	publish("4")
	says(exitOK, "the last 1\n", "policy", "set", "debian", "--keep-last=1")
	says(exitOK, "disk.raw.zst, disk.vmdk?", "policy", "get", "debian")
	// Version 2 was restored, 1 and 3 are too old; latest is 4.
	p := node.publisher(t)
	lines := untilLine(t, func(line string) bool { // the last of its batch
		return strings.Contains(line, `"type":"imgsrv.version.withdrawn.v1"`) && strings.Contains(line, `"subject":"debian/3"`)
	}, with(flags, "events", "tail", "--from=1", "--json")...)
	head := decode[client.Event](t, lines[len(lines)-1]).Sequence
	get := func(version string) int {
		return p.call("GET", "/api/images/debian/versions/"+version, nil, nil, "Imgsrv-Min-Sequence", fmt.Sprint(head)).StatusCode
	}
	for _, version := range []string{"1", "3"} {
		if status := get(version); status != http.StatusGone {
			t.Errorf("version %s: %d", version, status)
		}
	}
	says(exitOK, "formats  -", "policy", "set", "debian", "--format=")
	says(exitOK, "retention: the image's policy keeps the newest 1", "history", "debian/3")
	for _, version := range []string{"2", "4", "latest"} {
		if status := get(version); status != http.StatusOK {
			t.Errorf("version %s: %d", version, status)
		}
	}
}
