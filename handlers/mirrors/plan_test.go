package mirrors

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// offered is an image of another server.
func offered(product, serial, kind string, aliases ...string) simplestreams.Image {
	parts := strings.Split(product, ":")
	root := map[string]string{"container": "squashfs", "virtual-machine": "disk-kvm.img"}[kind]
	return simplestreams.Image{Product: product, Serial: serial, Architecture: parts[2], Type: kind, OS: parts[0], Release: parts[1], Variant: parts[3], Aliases: aliases,
		Fingerprint: product + serial + kind, Metadata: simplestreams.File{FileType: "incus.tar.xz", Path: "m"}, Root: simplestreams.File{FileType: root, Path: "r"}}
}

// ofImage is a product as imgsrv makes them.
func ofImage(image, version, arch, kind, flavour, serial string, aliases ...string) simplestreams.Image {
	i := offered("Debian:bookworm:"+arch+":"+flavour, serial, kind, aliases...)
	i.Product, i.Version = strings.Join([]string{image, version, arch, kind, flavour}, ":"), version
	return i
}

// lines say of each version what it is, where it leads, and its variants.
func lines(versions []wanted) (out []string) {
	for _, w := range versions {
		line := w.String() + " [" + strings.Join(w.Aliases, " ") + "]"
		for _, v := range w.Variants {
			line += " " + v.Name()
			if len(v.Files) == 1 {
				line += "=" + v.Files[0].Format
			}
		}
		out = append(out, line)
	}
	return out
}

func TestWhatAMirrorWants(t *testing.T) {
	t.Parallel()
	others := []simplestreams.Image{
		offered("Debian:bookworm:amd64:default", "20260101_05:24", "container", "debian/bookworm/default", "debian/bookworm"),
		offered("Debian:bookworm:amd64:default", "20260103_05:24", "container", "debian/bookworm/default"),
		offered("Debian:bookworm:amd64:default", "20260103_05:24", "virtual-machine", "debian/bookworm/default"),
		offered("Debian:bookworm:amd64:default", "20260102_05:24", "container", "debian/bookworm/default"),
		offered("Debian:bookworm:arm64:default", "20260102_05:24", "container", "debian/bookworm/default"),
		offered("Debian:bookworm:amd64:cloud", "20260102_05:24", "container", "debian/bookworm/cloud"),
		offered("Alpine:3.20:amd64:default", "20260102_05:24", "container", "alpine/3.20"),
	}
	imgsrvs := []simplestreams.Image{
		ofImage("deb", "12.5", "amd64", "container", "default", "20260101_000000", "deb/12.5", "deb/stable", "deb/latest", "deb"),
		ofImage("deb", "12.5", "arm64", "container", "default", "20260101_000000", "deb/12.5", "deb/stable"),
		ofImage("deb", "12.5", "amd64", "virtual-machine", "cloud", "20260101_000000", "deb/12.5/cloud", "deb/edge/cloud", "other/1"),
		ofImage("deb", "12.6", "amd64", "container", "default", "20260102_000000", "deb/12.6"),
	}
	unified := offered("Debian:sid:amd64:default", "20260102", "container")
	unified.Metadata, unified.Root = simplestreams.File{}, simplestreams.File{FileType: "incus_combined.tar.gz", Path: "whole.tar.xz"}
	for name, tt := range map[string]struct {
		mirror   events.Mirror
		images   []simplestreams.Image
		want     []string
		problems int
	}{
		"the newest of each image": {events.Mirror{Keep: 2, Architectures: []string{"amd64"}, Filters: []string{"debian/*"}}, others, []string{
			"debian-bookworm-cloud-amd64 20260102_05-24 [latest] amd64.container.default",
			"debian-bookworm-default-amd64 20260102_05-24 [] amd64.container.default",
			"debian-bookworm-default-amd64 20260103_05-24 [latest] amd64.container.default amd64.virtual-machine.default"}, 0},
		"a filter of products": {events.Mirror{Keep: 1, Filters: []string{"*/arm64/*"}}, others, []string{
			"debian-bookworm-default-arm64 20260102_05-24 [latest] arm64.container.default"}, 0},
		"architectures in one image": {events.Mirror{Keep: 1, Filters: []string{"debian/bookworm/default"}, ImageName: "{os}-{release}"}, others, []string{
			"debian-bookworm 20260103_05-24 [latest] amd64.container.default amd64.virtual-machine.default"}, 0},
		"names that clash": {events.Mirror{Keep: 1, ImageName: "all", Architectures: []string{"amd64"}}, []simplestreams.Image{others[3], others[5]}, []string{
			"all 20260102_05-24 [latest] amd64.container.default"}, 1},
		"another imgsrv": {events.Mirror{Keep: 2}, imgsrvs, []string{
			"deb 12.5 [edge latest stable] amd64.container.default amd64.virtual-machine.cloud arm64.container.default",
			"deb 12.6 [] amd64.container.default"}, 0},
		"a unified image": {events.Mirror{Keep: 1}, []simplestreams.Image{unified}, []string{
			"debian-sid-default-amd64 20260102 [latest] amd64.container.default=incus_combined.tar.xz"}, 0},
		"a name of nothing": {events.Mirror{Keep: 1, ImageName: "{os}"}, []simplestreams.Image{offered("…:x:amd64:default", "20260101", "container")}, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			versions, problems := plan(tt.mirror, slices.Clone(tt.images))
			if diff := cmp.Diff(tt.want, lines(versions)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(problems) != tt.problems {
				t.Errorf("problems %v", problems)
			}
		})
	}
}

// Runs find their sessions by the key: it may depend on nothing but what is published. What was refused is known by the digest,
// which an alias that moves doesn't change.
func TestKeysAreOfWhatIsPublished(t *testing.T) {
	t.Parallel()
	one := func(aliases ...string) wanted {
		versions, _ := plan(events.Mirror{Keep: 1}, []simplestreams.Image{ofImage("deb", "1", "amd64", "container", "default", "20260101_000000", aliases...)})
		return versions[0]
	}
	a, b := one("deb/1", "deb/latest"), one("deb/1", "deb/latest")
	if a.key() != b.key() || a.digest() != b.digest() {
		t.Error("the same version has two keys")
	}
	moved := one("deb/1")
	if a.key() == moved.key() || a.digest() != moved.digest() {
		t.Error("an alias belongs to the key and not to the digest")
	}
	other := one("deb/1", "deb/latest")
	other.Variants[0].Fingerprint = "x"
	if a.key() == other.key() || a.digest() == other.digest() {
		t.Error("another fingerprint is another version")
	}
}

// What upstream says of a version is carried as it stands there: the day on which support ends changes neither key nor digest.
func TestWhatUpstreamSaysOfAVersionIsCarried(t *testing.T) {
	t.Parallel()
	vm := offered("Debian:bookworm:amd64:default", "20260103", "virtual-machine")
	vm.Requirements, vm.SupportEOL, vm.ReleaseTitle, vm.Codename, vm.Label = map[string]string{"secureboot": "false"}, "2026-06-30", "12 (bookworm)", "bookworm", "daily"
	container := offered("Debian:bookworm:amd64:default", "20260103", "container")
	container.Requirements = map[string]string{"secureboot": "true", "nesting": "true"}
	versions, problems := plan(events.Mirror{Keep: 1}, []simplestreams.Image{vm, container})
	if len(versions) != 1 || len(problems) != 0 {
		t.Fatal(versions, problems)
	}
	want := simplestreams.Traits{ReleaseTitle: "12 (bookworm)", Codename: "bookworm", SupportEOL: "2026-06-30", Labels: map[string]string{"label": "daily"},
		Requirements: map[string]string{"secureboot": "false", "nesting": "true"}}
	if diff := cmp.Diff(want, versions[0].Traits); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	vm.Requirements = nil
	other, _ := plan(events.Mirror{Keep: 1}, []simplestreams.Image{vm, container})
	if other[0].key() == versions[0].key() || other[0].digest() == versions[0].digest() {
		t.Error("a version that requires something else has the same key")
	}
}
