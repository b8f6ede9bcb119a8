package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// bytesOf downloads a format of a version.
func (p *publisher) bytesOf(image, version, variant, format string) []byte {
	p.t.Helper()
	var data []byte
	path := "/api/images/" + image + "/versions/" + version + "/variants/" + variant + "/formats/" + format
	if resp := p.call("GET", path, nil, &data); resp.StatusCode != 200 {
		p.t.Fatalf("%s: %d", path, resp.StatusCode)
	}
	return data
}

// A mirror that has the version before gets the next one of another imgsrv by its deltas: of a container and of a virtual machine.
func TestAMirrorFetchesDeltasOfAnotherImgsrv(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "xdelta3")
	flags := nodeFlags(t)
	flags.Deltas = 1
	upstream := startHere(t, flags)
	a := upstream.publisher(t)
	trees, disks := [2][]byte{}, [2][]byte{}
	trees[0], trees[1] = twoSquashfs(t)
	disks[0], disks[1] = twoDisks(t)
	publish := func(i int, version string) {
		tree, disk := file{format: "rootfs.squashfs", data: trees[i]}, file{format: "disk.qcow2", data: disks[i]}
		a.publish(request("tree", version, "container", []string{"latest"}, tree), tree)
		a.publish(vm("disk", version, []string{"latest"}, disk), disk)
	}
	publish(0, "1")
	a.listed("tree/1", "disk/1")
	b := startMirroring(t, "")
	mirror := b.must("mirrors", "add", "up", upstream.HTTPURL, "--wait")
	first := mirror.LastRun
	if first == nil || first.Published != 2 || first.SavedBytes != 0 || first.FetchedBytes < int64(len(trees[0])+len(disks[0])) {
		t.Fatalf("run %+v", first)
	}

	publish(1, "2")
	a.listed("tree/2", "disk/2", `"squashfs.vcdiff"`, `"disk-kvm.img.vcdiff"`)
	// Deltas are files of the version like others.
	for _, name := range []string{"tree/2/SHA256SUMS", "tree/2/", "disk/2/SHA256SUMS", "disk/2/"} {
		eventually(t, func() string {
			var text []byte
			if a.call("GET", "/images/"+name, nil, &text); bytes.Contains(text, []byte(".from-1.vcdiff")) {
				return ""
			}
			return name + " has no delta:\n" + string(text)
		})
	}
	mirror = b.must("mirrors", "sync", "up", "--wait")
	run := mirror.LastRun
	whole := int64(len(trees[1]) + len(disks[1]))
	if run.Published != 2 || run.SavedBytes < whole/3 || run.FetchedBytes > whole/3*2 || len(run.Problems) > 0 {
		t.Errorf("of %d bytes: run %+v", whole, run)
	}
	if mirror.SavedBytes != run.SavedBytes || mirror.FetchedBytes != first.FetchedBytes+run.FetchedBytes {
		t.Errorf("mirror %+v", mirror)
	}
	t.Logf("fetched %d bytes, saved %d", run.FetchedBytes, run.SavedBytes)
	for _, image := range []string{"tree", "disk"} {
		want, got := a.version(image, "2").Variants[0], b.version(image, "2").Variants[0]
		if got != want || want.Fingerprint == "" {
			t.Errorf("%s is %+v, upstream %+v", image, got, want)
		}
	}
	if !bytes.Equal(b.bytesOf("tree", "2", "amd64.container.default", "rootfs.squashfs"), trees[1]) ||
		!bytes.Equal(b.bytesOf("disk", "2", "amd64.virtual-machine.default", "disk.qcow2"), disks[1]) {
		t.Error("the mirror has other bytes than upstream")
	}
	if code, out, _ := command(t.Context(), with(b.flags, "mirrors")...); code != 0 || !strings.Contains(out, "SAVED") || !strings.Contains(out, size(mirror.SavedBytes)) {
		t.Errorf("mirrors:\n%s", out)
	}
}

// A delta that is wrong in any way costs a problem in the list; the version comes whole.
func TestAMirrorFetchesWholeFilesWhereADeltaIsWrong(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "xdelta3")
	tree := newHandTree(t)
	const product = "debian:bookworm:amd64:default"
	meta := metadataBytes(t, "debian")
	base := randomSquashfs(1)
	next := func(i uint64) []byte {
		data := bytes.Clone(base)
		copy(data[50_000:], randomSquashfs(100 + i)[:500])
		return data
	}
	b := startMirroring(t, tree.CAFile)
	first := tree.add(product, "20260101_05:24", meta, base, nil)
	b.must("mirrors", "add", "lxc", tree.URL, "--wait")
	tree.asked()

	for i, tt := range []struct {
		name    string
		delta   func(target []byte) []byte
		listed  func(delta []byte) string // the digest in the documents
		change  func(items map[string]map[string]any)
		problem string // "": none, and no whole file was asked for
		silent  bool   // the delta isn't even asked for
	}{
		{name: "a good one"},
		{name: "other bytes than listed", listed: func([]byte) string { return digestOf([]byte("other")) }, problem: "is listed"},
		{name: "no delta", delta: func([]byte) []byte { return []byte("no delta at all") }, problem: "xdelta3"},
		{name: "one that makes something else", delta: func([]byte) []byte { return makeDelta(t, base, next(1000)) }, problem: "applied to"},
		{name: "one that makes too much", delta: func([]byte) []byte { return makeDelta(t, base, append(next(1001), make([]byte, 1<<20)...)) }, problem: "too large"},
		{name: "a base that isn't here", silent: true, change: func(items map[string]map[string]any) { items["delta"]["delta_base"] = "20250101_05:24" }},
		{name: "larger than the root", silent: true, delta: func(target []byte) []byte { return append(target, 0) }},
	} {
		target := next(uint64(i))
		made := makeDelta(t, base, target)
		if tt.delta != nil {
			made = tt.delta(target)
		}
		listed := digestOf(made)
		if tt.listed != nil {
			listed = tt.listed(made)
		}
		serial := "20260201_05:2" + string(rune('0'+i))
		dir := treeDir(product, serial)
		fingerprint := digestOf(append(bytes.Clone(meta), target...))
		items := map[string]map[string]any{
			"meta":  {"ftype": "incus.tar.xz", "path": dir + "incus.tar.xz", "sha256": digestOf(meta), "size": len(meta), "combined_squashfs_sha256": fingerprint},
			"root":  {"ftype": "squashfs", "path": dir + "rootfs.squashfs", "sha256": digestOf(target), "size": len(target)},
			"delta": {"ftype": "squashfs.vcdiff", "path": dir + "delta", "sha256": listed, "size": len(made), "delta_base": "20260101_05:24"},
		}
		if tt.change != nil {
			tt.change(items)
		}
		tree.offer(product, serial, items, map[string][]byte{dir + "incus.tar.xz": meta, dir + "rootfs.squashfs": target, dir + "delta": made}, nil)
		run := b.must("mirrors", "sync", "lxc", "--wait").LastRun
		version := "20260201_05-2" + string(rune('0'+i))
		if run.Published != 1 || run.Failed != 0 || run.Refused != 0 {
			t.Fatalf("%s: run %+v", tt.name, run)
		}
		if got := b.version("debian-bookworm-default-amd64", version).Variants[0].Fingerprint; got != fingerprint || got == first {
			t.Errorf("%s: fingerprint %s, want %s", tt.name, got, fingerprint)
		}
		if got := b.bytesOf("debian-bookworm-default-amd64", version, "amd64.container.default", "rootfs.squashfs"); !bytes.Equal(got, target) {
			t.Errorf("%s: %d other bytes", tt.name, len(got))
		}
		requests := tree.asked()
		askedWhole := slices.ContainsFunc(requests, func(r string) bool { return strings.HasSuffix(r, "rootfs.squashfs  200") })
		askedDelta := slices.ContainsFunc(requests, func(r string) bool { return strings.HasSuffix(r, "/delta  200") })
		good := tt.problem == "" && !tt.silent
		if askedWhole == good || askedDelta == tt.silent || (run.SavedBytes > 0) != good {
			t.Errorf("%s: run %+v after\n%s", tt.name, run, strings.Join(requests, "\n"))
		}
		if problems := strings.Join(run.Problems, "\n"); (problems != "") != (tt.problem != "") || !strings.Contains(problems, tt.problem) {
			t.Errorf("%s: problems %q", tt.name, problems)
		}
	}
	left, err := filepath.Glob(filepath.Join(b.node.StorageDir, "cas", "tmp", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// randomSquashfs are random bytes that begin as a squashfs does.
func randomSquashfs(seed uint64) []byte {
	data := make([]byte, 200_000)
	state := seed*0x9e3779b97f4a7c15 + 1
	for i := range data { // xorshift
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		data[i] = byte(state)
	}
	copy(data, "hsqs")
	return data
}

func makeDelta(t *testing.T, base, target []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string][]byte{"base": base, "target": target} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.CommandContext(t.Context(), "xdelta3", "-e", "-S", "none", "-s", "base", "target", "delta")
	command.Dir = dir
	if said, err := command.CombinedOutput(); err != nil {
		t.Fatalf("xdelta3 -e: %v: %s", err, said)
	}
	delta, err := os.ReadFile(filepath.Join(dir, "delta"))
	if err != nil {
		t.Fatal(err)
	}
	return delta
}
