package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
)

// blobPath is where the storage of a server keeps a blob.
func blobPath(t *testing.T, dataDir, digest string) string {
	t.Helper()
	hexed := strings.TrimPrefix(digest, "sha256:")
	path := filepath.Join(dataDir, "storage", "cas", "sha256", hexed[:2], hexed)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// flip changes one bit of a blob, as a disk does.
func flip(t *testing.T, dataDir, digest string) {
	t.Helper()
	path := blobPath(t, dataDir, digest)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// From the rot of files to their repair, through the commands of an operator, with a mirror's upstream to ask.
func TestFsckFindsRotAndRepairsIt(t *testing.T) {
	t.Parallel()
	upstream := startHere(t, nodeFlags(t))
	a := upstream.publisher(t)
	a.publishSmall("debian", "1", "public")
	raw := file{format: "disk.raw", data: bytes.Repeat([]byte("not in the streams "), 100)} // a file that only its digest leads to
	a.publish(request("raw", "1", "virtual-machine", nil, raw), raw)
	a.listed("debian/1")

	flags := nodeFlags(t)
	flags.MirrorAllow = []string{"127.0.0.1"}
	dataDir := flags.DataDir
	// By itself it would repair what is found before we have looked at it.
	node := startWith(t, flags, testHooks{mirrorTick: 20 * time.Millisecond, mirrorPause: time.Millisecond, scrubRepairEvery: -1}, nil)
	b := &mirroring{node.publisher(t), node, []string{"--server", node.HTTPURL, "--data-dir", dataDir}}
	if run := b.must("mirrors", "add", "upstream", upstream.HTTPURL, "--filter=debian*", "--wait").LastRun; run.Published != 1 {
		t.Fatalf("run %+v", run)
	}
	b.publish(request("raw", "1", "virtual-machine", nil, raw), raw)
	own := b.publishSmall("own", "1", "public")

	fsck := func(wantCode int, args ...string) (client.FsckReport, string) {
		t.Helper()
		code, out, errs := command(t.Context(), with(b.flags, append([]string{"fsck", "--json"}, args...)...)...)
		if code != wantCode {
			t.Fatalf("imgsrv fsck %v: exit code %d\n%s%s", args, code, out, errs)
		}
		return decode[client.FsckReport](t, out), errs
	}
	if r, _ := fsck(0); r.Blobs != 5 || r.Versions != 3 || len(r.Damaged)+len(r.Strays)+len(r.Errors) != 0 {
		t.Errorf("nothing has happened yet: %+v", r)
	}

	digests := map[string]string{}
	for _, name := range []string{"debian", "own", "raw"} {
		var v client.Version
		b.call("GET", "/api/images/"+name+"/versions/1", nil, &v)
		for _, f := range v.Variants[0].Formats {
			digests[name+" "+f.Format] = f.Digest
			if name != "own" || f.Format != "rootfs.squashfs" {
				flip(t, dataDir, f.Digest)
			}
		}
	}
	if err := os.Truncate(blobPath(t, dataDir, digests["own rootfs.squashfs"]), 3); err != nil {
		t.Fatal(err)
	}
	code, out, errs := command(t.Context(), with(b.flags, "fsck")...)
	if code != 1 || !strings.Contains(errs, "5 files are damaged") || strings.Count(out, "damaged") != 6 || !strings.Contains(out, "own/1/amd64.container.default/rootfs.squashfs") {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	for name, digest := range digests {
		hexed := strings.TrimPrefix(digest, "sha256:")
		var problem struct{ Code, Detail string }
		if resp := b.call("GET", "/cas/sha256/"+hexed[:2]+"/"+hexed, nil, &problem); resp.StatusCode != 500 || problem.Code != "blob-damaged" || !strings.Contains(problem.Detail, digest) {
			t.Errorf("%s: %d %+v", name, resp.StatusCode, problem)
		}
	}
	if code, _, errs := command(t.Context(), with(b.flags, "download", "own/1", "--output", filepath.Join(t.TempDir(), "x"))...); code != 1 || !strings.Contains(errs, "damaged") {
		t.Errorf("download: exit code %d, %s", code, errs)
	}

	r, _ := fsck(1, "--repair", "--rate=0")
	from := map[string]string{}
	for _, f := range r.Repaired {
		from[f.Digest] = f.From
	}
	for name, want := range map[string]string{"debian incus.tar.xz": "mirror upstream", "debian rootfs.squashfs": "mirror upstream", "raw disk.raw": "mirror upstream", "own incus.tar.xz": "the event log", "own rootfs.squashfs": ""} {
		if got := from[digests[name]]; got != want || digests[name] == "" {
			t.Errorf("%s, %s, is repaired from %q, want %q", name, digests[name], got, want)
		}
	}
	if r.Found != 0 || len(r.Damaged) != 1 || r.Damaged[0].Digest != digests["own rootfs.squashfs"] || r.Damaged[0].Reason != "size" {
		t.Errorf("what is left: %+v", r.Damaged)
	}

	// The publisher brings the bytes once more, under another version.
	same := file{format: "rootfs.squashfs", data: own}
	b.publish(request("own", "2", "container", nil, same), same)
	for _, version := range []string{"1", "2"} {
		path := filepath.Join(t.TempDir(), "root")
		code, _, errs := command(t.Context(), with(b.flags, "download", "own/"+version, "--format", "rootfs.squashfs", "--output", path)...)
		if got, err := os.ReadFile(path); code != 0 || err != nil || !bytes.Equal(got, own) {
			t.Errorf("version %s: exit code %d, %v, %s", version, code, err, errs)
		}
	}
	if r, _ := fsck(0); len(r.Damaged) != 0 {
		t.Errorf("after the repair: %+v", r)
	}
	if code, out, errs := command(t.Context(), with(b.flags, "events", "export")...); code != 0 || strings.Count(out, "imgsrv.blob.damaged.v1") != 5 || strings.Count(out, "imgsrv.blob.repaired.v1") != 5 {
		t.Errorf("exit code %d, %d damaged, %d repaired, %s", code, strings.Count(out, "imgsrv.blob.damaged.v1"), strings.Count(out, "imgsrv.blob.repaired.v1"), errs)
	}

	// Without a server.
	if code, _, errs := command(t.Context(), "fsck", "--offline", "--data-dir", dataDir); code != 1 || !strings.Contains(errs, "in use by") {
		t.Errorf("beside the server: exit code %d, %s", code, errs)
	}
	if err := b.node.Stop(); err != nil {
		t.Fatal(err)
	}
	flip(t, dataDir, digests["own rootfs.squashfs"])
	for i, found := range []int{1, 0} {
		if r, errs := fsck(1, "--offline"); r.Found != found || len(r.Damaged) != 1 || strings.Contains(errs, "blob damaged") != (i == 0) {
			t.Errorf("offline, time %d: %+v\n%s", i+1, r, errs)
		}
	}
}

func TestFsckLeavesAnUnfinishedRestoreAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "storage"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "restore.unfinished"), []byte(`{"place": "/srv/backup"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := command(t.Context(), "fsck", "--offline", "--data-dir", dir); code != 1 || !strings.Contains(errs, "isn't finished") {
		t.Errorf("exit code %d, %s", code, errs)
	}
}

// Good bytes that somebody has brought are not let go for bad ones of the same name.
func TestBytesThatComeAgainTakeThePlaceOfRottenOnes(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	node := startHere(t, flags)
	p := node.publisher(t)
	for name, spoil := range map[string]func(digest string){
		"flipped":   func(digest string) { flip(t, flags.DataDir, digest) },
		"truncated": func(digest string) { _ = os.Truncate(blobPath(t, flags.DataDir, digest), 3) },
		"missing":   func(digest string) { _ = os.Remove(blobPath(t, flags.DataDir, digest)) },
	} {
		raw := file{format: "disk.raw", data: bytes.Repeat([]byte(name+" behind everybody's back "), 100)}
		p.publish(request(name, "1", "virtual-machine", nil, raw), raw)
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256(raw.data))
		spoil(digest)
		p.publish(request(name, "2", "virtual-machine", nil, raw), raw)
		for _, version := range []string{"1", "2"} {
			resp, err := http.Get(node.HTTPURL + "/api/images/" + name + "/versions/" + version + "/variants/amd64.virtual-machine.default/formats/disk.raw")
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, raw.data) {
				t.Errorf("%s, version %s: status %d, %v, %d bytes", name, version, resp.StatusCode, err, len(got))
			}
		}
	}
}

func TestRatesOfBytes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"8MiB": 8 << 20, "8 MiB/s": 8 << 20, "500kB": 500_000, "1000": 1000, "0": 0, "": 0, "fast": -1, "-1": -1, "1e30GB": -1} {
		got, err := byteRate(text).bytes()
		if (err != nil) != (want < 0) || err == nil && got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}
