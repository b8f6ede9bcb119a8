package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
)

// A unified image of each type, and all that a product says of its images, arrive as they were published upstream.
func TestAMirrorTakesUnifiedImagesAndWhatIsSaidOfThem(t *testing.T) {
	t.Parallel()
	tree := newHandTree(t)
	const product, serial = "debian:bookworm:amd64:default", "20260103_05:24"
	dir := treeDir(product, serial)
	whole := []byte(tarGz(t, yamlFor("x86_64", ""), member{"rootfs/etc/hostname", "x\n"}))
	wholeVM := []byte(tarGz(t, member{"rootfs.img", string(qcow2Image(t, 100_000))}, yamlFor("x86_64", "")))
	tomorrow := time.Now().Add(48 * time.Hour).UTC().Format(time.DateOnly)
	says := map[string]any{"requirements": map[string]string{"secureboot": "false"}, "release_title": "12 (bookworm)", "release_codename": "bookworm", "support_eol": tomorrow, "supported": true}
	tree.offer(product, serial, map[string]map[string]any{
		"all": {"ftype": "incus_combined.tar.gz", "path": dir + "vm.tar.gz", "sha256": digestOf(wholeVM), "size": len(wholeVM), "combined_type": "virtual-machine"}},
		map[string][]byte{dir + "vm.tar.gz": wholeVM}, says)
	const lxds = "debian:trixie:amd64:default"
	tree.offer(lxds, serial, map[string]map[string]any{
		"all": {"ftype": "lxd_combined.tar.gz", "path": treeDir(lxds, serial) + "c.tar.gz", "sha256": digestOf(whole), "size": len(whole)}},
		map[string][]byte{treeDir(lxds, serial) + "c.tar.gz": whole}, map[string]any{"support_eol": "2020-01-01"})

	b := startMirroring(t, tree.CAFile)
	mirror := b.must("mirrors", "add", "lxc", tree.URL, "--wait")
	if run := mirror.LastRun; run == nil || run.Published != 2 || run.Matched != 2 || run.Error != "" || len(run.Problems) > 0 {
		t.Fatalf("mirror %+v, run %+v", mirror, mirror.LastRun)
	}
	yes := true
	for image, want := range map[string]struct {
		variant, fingerprint string
		traits               client.Traits
	}{
		"debian-bookworm-default-amd64": {"amd64.virtual-machine.default", digestOf(wholeVM), client.Traits{ReleaseTitle: "12 (bookworm)", Codename: "bookworm",
			SupportEOL: tomorrow, Supported: &yes, Requirements: map[string]string{"secureboot": "false"}}},
		"debian-trixie-default-amd64": {"amd64.container.default", digestOf(whole), client.Traits{ReleaseTitle: "trixie"}},
	} {
		b.version(image, "latest")
		var got client.Version
		b.call("GET", "/api/images/"+image+"/versions/latest", nil, &got)
		if len(got.Variants) != 1 || got.Variants[0].Name() != want.variant || got.Variants[0].Fingerprint != want.fingerprint {
			t.Errorf("%s has %+v, want %+v", image, got.Variants, want)
		}
		if diff := cmp.Diff(want.traits, got.Traits); diff != "" {
			t.Errorf("%s (-want +got):\n%s", image, diff)
		}
	}
}
