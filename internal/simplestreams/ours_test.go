package simplestreams_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

func TestTraitsOfAnImage(t *testing.T) {
	t.Parallel()
	yes, no := true, false
	other := simplestreams.Image{Product: "debian:bookworm:amd64:default", Architecture: "amd64", Type: "container", Variant: "default", Label: "release"}
	ours := simplestreams.Image{Product: "deb:1:amd64:container:default", Version: "1", Architecture: "amd64", Type: "container", Variant: "default", Label: "1"}
	supported := ours
	supported.Supported = true
	for name, tt := range map[string]struct {
		image simplestreams.Image
		want  simplestreams.Traits
	}{
		"another server's, which is silent": {other, simplestreams.Traits{Labels: map[string]string{"label": "release"}}},
		"an imgsrv's, which is not":         {ours, simplestreams.Traits{Supported: &no}},
		"an imgsrv's that is supported":     {supported, simplestreams.Traits{Supported: &yes}},
	} {
		if diff := cmp.Diff(tt.want, tt.image.Traits()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestWhatHasExpiredIsNoEndOfSupport(t *testing.T) {
	t.Parallel()
	noon := time.Date(2026, 6, 30, 12, 0, 0, 0, time.UTC)
	for day, want := range map[string]string{"2026-06-29": "", "2026-06-30": "", "2026-07-01": "2026-07-01", "soon": "", "": ""} {
		if got := (simplestreams.Traits{SupportEOL: day}).At(noon).SupportEOL; got != want {
			t.Errorf("%q at noon of the 30th: %q, want %q", day, got, want)
		}
	}
}

func TestFilesHaveFormats(t *testing.T) {
	t.Parallel()
	for file, want := range map[simplestreams.File]string{
		{FileType: "lxd.tar.xz", Path: "a/lxd.tar.xz"}:              "incus.tar.xz",
		{FileType: "incus.tar.xz", Path: "a/meta"}:                  "incus.tar.xz",
		{FileType: "incus.tar.xz", Path: "a/incus.tar.gz"}:          "incus.tar.gz",
		{FileType: "lxd_combined.tar.gz", Path: "a/b.tar.zst"}:      "incus_combined.tar.zst",
		{FileType: "incus_combined.tar.gz", Path: "a.tar.xz/whole"}: "incus_combined.tar.gz",
		{FileType: "squashfs", Path: "a/rootfs.squashfs"}:           "rootfs.squashfs",
		{FileType: "root.tar.xz", Path: "a/r"}:                      "root.tar.xz",
		{FileType: "disk1.img", Path: "a/r"}:                        "disk.qcow2",
	} {
		if got := file.Format(); got != want {
			t.Errorf("%+v: %s, want %s", file, got, want)
		}
	}
}

func TestDeltasAreKnownByTheFingerprintsOfTheirBases(t *testing.T) {
	t.Parallel()
	const meta = `"meta": {"ftype": "incus.tar.xz", "path": "m", "sha256": "A", "size": 1, `
	images, problems, err := simplestreams.ParseProducts(fill(`{"products": {"p": {"arch": "amd64", "versions": {
		"20260101": {"items": {` + meta + `"combined_squashfs_sha256": "A", "combined_disk-kvm-img_sha256": "B"}}},
		"20260102": {"items": {` + meta + `"combined_squashfs_sha256": "C", "combined_disk-kvm-img_sha256": "D"},
			"root": {"ftype": "squashfs", "path": "r", "sha256": "B", "size": 9}, "disk": {"ftype": "disk-kvm.img", "path": "d", "sha256": "B", "size": 9},
			"1": {"ftype": "squashfs.vcdiff", "path": "1", "sha256": "C", "size": 3, "delta_base": "20260101"},
			"2": {"ftype": "disk-kvm.img.vcdiff", "path": "2", "sha256": "C", "size": 3, "delta_base": "20260101"},
			"3": {"ftype": "squashfs.vcdiff", "path": "3", "sha256": "C", "size": 3, "delta_base": "20250101"},
			"4": {"ftype": "squashfs.vcdiff", "path": "../4", "sha256": "C", "size": 3, "delta_base": "20260101"},
			"5": {"ftype": "squashfs.vcdiff", "path": "5", "sha256": "C", "size": 3}}}}}}}`))
	if err != nil || len(problems) != 0 || len(images) != 2 {
		t.Fatal(images, problems, err)
	}
	delta := func(path, kind string, bases ...string) []simplestreams.Delta {
		return []simplestreams.Delta{{File: simplestreams.File{FileType: kind, Path: path, SHA256: shaC, Size: 3}, Bases: bases}}
	}
	if diff := cmp.Diff(delta("1", "squashfs.vcdiff", shaA), images[0].Deltas); diff != "" {
		t.Errorf("of the container (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(delta("2", "disk-kvm.img.vcdiff", shaA, shaB), images[1].Deltas); diff != "" {
		t.Errorf("of the virtual machine (-want +got):\n%s", diff)
	}
}
