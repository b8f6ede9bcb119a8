package simplestreams_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

var (
	shaA, shaB, shaC, shaD = strings.Repeat("a", 64), strings.Repeat("b", 64), strings.Repeat("c", 64), strings.Repeat("d", 64)
)

// fill puts digests in the place of A to D, so that documents stay readable.
func fill(document string) []byte {
	return []byte(strings.NewReplacer(`"A"`, `"`+shaA+`"`, `"B"`, `"`+shaB+`"`, `"C"`, `"`+shaC+`"`, `"D"`, `"`+shaD+`"`).Replace(document))
}

func TestAVersionGivesOneImageOfEachType(t *testing.T) {
	t.Parallel()
	images, problems, err := simplestreams.ParseProducts(fill(`{"content_id": "images", "datatype": "image-downloads", "format": "products:1.0", "products": {
		"debian:bookworm:amd64:cloud": {"aliases": "debian/bookworm/cloud,debian/12/cloud", "arch": "amd64", "os": "Debian", "release": "bookworm", "release_title": "12", "variant": "cloud",
			"requirements": {"secureboot": "false"},
			"versions": {"20260101_05:24": {"items": {
				"incus.tar.xz": {"ftype": "incus.tar.xz", "path": "images/1/incus.tar.xz", "sha256": "A", "size": 10, "combined_squashfs_sha256": "C", "combined_disk-kvm-img_sha256": "D"},
				"lxd.tar.xz": {"ftype": "lxd.tar.xz", "path": "images/1/lxd.tar.xz", "sha256": "B", "size": 11, "combined_squashfs_sha256": "B"},
				"root.squashfs": {"ftype": "squashfs", "path": "images/1/rootfs.squashfs", "sha256": "B", "size": 20},
				"root.tar.xz": {"ftype": "root.tar.xz", "path": "images/1/rootfs.tar.xz", "sha256": "B", "size": 21},
				"disk.qcow2": {"ftype": "disk-kvm.img", "path": "images/1/disk.qcow2", "sha256": "A", "size": 30},
				"squashfs.vcdiff": {"ftype": "squashfs.vcdiff", "path": "images/1/delta", "sha256": "A", "size": 3, "delta_base": "20251231_05:24"}}}}}}}`))
	if err != nil || len(problems) != 0 {
		t.Fatal(err, problems)
	}
	if len(images) != 2 {
		t.Fatalf("images %+v", images)
	}
	container, vm := images[0], images[1]
	if container.Type != "container" || container.Fingerprint != shaC || container.Metadata.Path != "images/1/incus.tar.xz" || container.Root.FileType != "squashfs" || container.Root.Size != 20 {
		t.Errorf("container %+v", container)
	}
	if vm.Type != "virtual-machine" || vm.Fingerprint != shaD || vm.Root.Path != "images/1/disk.qcow2" {
		t.Errorf("virtual machine %+v", vm)
	}
	if vm.Serial != "20260101_05:24" || vm.CreatedAt.Format("2006-01-02") != "2026-01-01" || vm.Variant != "cloud" || vm.Requirements["secureboot"] != "false" {
		t.Errorf("virtual machine %+v", vm)
	}
	if diff := cmp.Diff([]string{"debian/bookworm/cloud", "debian/12/cloud"}, vm.Aliases); diff != "" {
		t.Error(diff)
	}
}

func TestLXDsMetadataServesWhereThereIsNoOther(t *testing.T) {
	t.Parallel()
	images, problems, err := simplestreams.ParseProducts(fill(`{"products": {"p": {"arch": "x86_64", "os": "u", "release": "r", "lxd_requirements": {"x": "y"}, "versions": {"20260101": {"items": {
		"a": {"ftype": "lxd.tar.xz", "path": "a", "sha256": "A", "size": 1, "combined_sha256": "C"},
		"b": {"ftype": "root.tar.xz", "path": "b", "sha256": "B", "size": 1}}}}}}}`))
	if err != nil || len(problems) != 0 || len(images) != 1 {
		t.Fatal(images, problems, err)
	}
	if i := images[0]; i.Fingerprint != shaC || i.Metadata.FileType != "lxd.tar.xz" || i.Architecture != "amd64" || i.Variant != "default" || i.Requirements["x"] != "y" {
		t.Errorf("%+v", i)
	}
}

func TestAUnifiedImageIsItsOwnFingerprint(t *testing.T) {
	t.Parallel()
	images, problems, err := simplestreams.ParseProducts(fill(`{"products": {"p": {"arch": "arm64", "versions": {"20260101": {"items": {
		"a": {"ftype": "incus_combined.tar.gz", "path": "a", "sha256": "A", "size": 1, "combined_type": "virtual-machine"}}}}}}}`))
	if err != nil || len(problems) != 0 || len(images) != 1 {
		t.Fatal(images, problems, err)
	}
	if i := images[0]; !i.Unified() || i.Fingerprint != shaA || i.Type != "virtual-machine" {
		t.Errorf("%+v", i)
	}
}

func TestWhatClientsCantUseIsAProblemAndTheRestIsRead(t *testing.T) {
	t.Parallel()
	version := func(items string) string {
		return `{"arch": "amd64", "versions": {"20260101": {"items": {` + items + `}}}}`
	}
	const meta = `"m": {"ftype": "incus.tar.xz", "path": "m", "sha256": "A", "size": 1, "combined_squashfs_sha256": "C"}`
	for name, tt := range map[string]struct{ product, problem string }{
		"unknown architecture":   {`{"arch": "pdp11"}`, "pdp11"},
		"no product":             {`["x"]`, "array"},
		"no date":                {`{"arch": "amd64", "versions": {"latest": {}}}`, "YYYYMMDD"},
		"no combined digest":     {version(`"m": {"ftype": "incus.tar.xz", "path": "m", "sha256": "A", "size": 1}, "r": {"ftype": "squashfs", "path": "r", "sha256": "B", "size": 1}`), "combined digest"},
		"path upwards":           {version(meta + `, "r": {"ftype": "squashfs", "path": "../r", "sha256": "B", "size": 1}`), "clean relative path"},
		"absolute path":          {version(meta + `, "r": {"ftype": "squashfs", "path": "/r", "sha256": "B", "size": 1}`), "clean relative path"},
		"path on another server": {version(meta + `, "r": {"ftype": "squashfs", "path": "https://x/r", "sha256": "B", "size": 1}`), "clean relative path"},
		"no digest":              {version(meta + `, "r": {"ftype": "squashfs", "path": "r", "sha256": "b", "size": 1}`), "64 lower-case hex digits"},
		"no size":                {version(meta + `, "r": {"ftype": "squashfs", "path": "r", "sha256": "B"}`), "size is 0"},
		"no type":                {version(`"x": {"path": "x"}`), "no ftype"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := version(meta + `, "r": {"ftype": "squashfs", "path": "r", "sha256": "B", "size": 1}`)
			images, problems, err := simplestreams.ParseProducts(fill(`{"products": {"bad": ` + tt.product + `, "good": ` + good + `}}`))
			if err != nil || len(images) != 1 || images[0].Product != "good" {
				t.Fatalf("images %+v, error %v", images, err)
			}
			if len(problems) != 1 || !strings.Contains(problems[0].String(), tt.problem) || !strings.Contains(problems[0].Where, "bad") {
				t.Errorf("problems %v", problems)
			}
		})
	}
}

func TestTheIndexLeadsToDocumentsOfImages(t *testing.T) {
	t.Parallel()
	documents, problems, err := simplestreams.ParseIndex([]byte(`{"format": "index:1.0", "index": {
		"images": {"datatype": "image-downloads", "path": "streams/v1/images.json", "products": ["a", "b"]},
		"empty": {"datatype": "image-downloads", "path": "streams/v1/empty.json", "products": []},
		"other": {"datatype": "image-ids", "path": "streams/v1/ids.json", "products": ["a"]},
		"bad": {"datatype": "image-downloads", "path": "../images.json", "products": ["a"]}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]simplestreams.Document{{Path: "streams/v1/images.json", Products: []string{"a", "b"}}}, documents); diff != "" {
		t.Error(diff)
	}
	if len(problems) != 1 || problems[0].Where != "index entry bad" {
		t.Errorf("problems %v", problems)
	}
	for _, bad := range []string{"", "[]", "{}", "<html>"} {
		if _, _, err := simplestreams.ParseIndex([]byte(bad)); err == nil {
			t.Errorf("%q was taken for an index", bad)
		}
		if _, _, err := simplestreams.ParseProducts([]byte(bad)); err == nil {
			t.Errorf("%q was taken for products", bad)
		}
	}
}
