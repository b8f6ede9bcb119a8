package clientrules_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
)

// object is a JSON object that a test may spoil at any place.
type object = map[string]any

func hexDigest(digit string) string { return strings.Repeat(digit, 64) }

// remote is a sound pair of documents: a container and a virtual machine, each with metadata for both dialects.
func remote() (index, products object) {
	item := func(ftype, path, digit string, more object) object {
		it := object{"ftype": ftype, "path": path, "sha256": hexDigest(digit), "size": 100}
		for key, value := range more {
			it[key] = value
		}
		return it
	}
	container := object{
		"incus.tar.xz": item("incus.tar.xz", "images/c/incus.tar.xz", "1", object{"combined_squashfs_sha256": hexDigest("a")}),
		"lxd.tar.xz":   item("lxd.tar.xz", "images/c/incus.tar.xz", "1", object{"combined_squashfs_sha256": hexDigest("a")}),
		"squashfs":     item("squashfs", "images/c/rootfs.squashfs", "2", nil),
	}
	vm := object{
		"incus.tar.xz": item("incus.tar.xz", "images/v/incus.tar.xz", "3", object{"combined_disk-kvm-img_sha256": hexDigest("b")}),
		"lxd.tar.xz":   item("lxd.tar.xz", "images/v/incus.tar.xz", "3", object{"combined_disk-kvm-img_sha256": hexDigest("b")}),
		"disk-kvm.img": item("disk-kvm.img", "images/v/disk.qcow2", "4", nil),
	}
	line := func(items object) object {
		return object{
			"aliases": "deb/1,deb", "arch": "amd64", "os": "debian", "release": "bookworm", "release_title": "Bookworm", "variant": "default",
			"versions": object{"20261124_200037": object{"items": items}},
		}
	}
	products = object{"content_id": "images", "datatype": "image-downloads", "format": "products:1.0",
		"products": object{"c": line(container), "v": line(vm)}}
	index = object{"format": "index:1.0", "index": object{"images": object{
		"datatype": "image-downloads", "path": "streams/v1/images.json", "format": "products:1.0", "products": []any{"c", "v"},
	}}}
	return index, products
}

// at walks into nested objects.
func at(o object, path ...string) object {
	for _, step := range path {
		o = o[step].(object)
	}
	return o
}

func read(t *testing.T, index, products object, dialect clientrules.Dialect) ([]clientrules.Image, error) {
	t.Helper()
	encode := func(o object) []byte {
		body, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	return clientrules.Read(encode(index), func(path string) ([]byte, error) {
		if strings.HasSuffix(path, "images.json") {
			return encode(products), nil
		}
		return nil, fmt.Errorf("%s: not there", path)
	}, dialect)
}

func TestSoundDocumentsAreReadWithoutProblems(t *testing.T) {
	t.Parallel()
	for _, dialect := range []clientrules.Dialect{clientrules.Incus, clientrules.LXD} {
		index, products := remote()
		images, err := read(t, index, products, dialect)
		if err != nil {
			t.Fatalf("%s: %v", dialect, err)
		}
		var got []string
		for _, image := range images {
			for _, alias := range image.Aliases {
				got = append(got, fmt.Sprintf("%.1s %s %s %s", image.Fingerprint, alias.Type, alias.Architecture, alias.Name))
			}
		}
		slices.Sort(got)
		want := []string{
			"a container x86_64 deb", "a container x86_64 deb/1", "a container x86_64 deb/1/amd64", "a container x86_64 deb/amd64",
			"b virtual-machine x86_64 deb", "b virtual-machine x86_64 deb/1", "b virtual-machine x86_64 deb/1/amd64", "b virtual-machine x86_64 deb/amd64",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: aliases (-want +got):\n%s", dialect, diff)
		}
		wantFiles := []clientrules.File{
			{Role: "meta", FileType: []string{"incus.tar.xz", "lxd.tar.xz"}[dialect], Path: "images/v/incus.tar.xz", SHA256: hexDigest("3"), SizeBytes: 100},
			{Role: "root", FileType: "disk-kvm.img", Path: "images/v/disk.qcow2", SHA256: hexDigest("4"), SizeBytes: 100},
		}
		vm, err := clientrules.Resolve(images, "x86_64", clientrules.VirtualMachine, "deb")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(wantFiles, vm.Files); diff != "" {
			t.Errorf("%s: files (-want +got):\n%s", dialect, diff)
		}
	}
}

func TestWhatClientsPassOverIsReported(t *testing.T) {
	t.Parallel()
	const key = "20261124_200037"
	items := func(products object, product string) object {
		return at(products, "products", product, "versions", key, "items")
	}
	set := func(o object, field string, value any) { o[field] = value }
	tests := []struct {
		name   string
		code   string
		spoil  func(index, products object)
		images int
	}{
		{"index of another format", clientrules.BadFormat, func(i, _ object) { set(i, "format", "index:2.0") }, 2},
		{"entry of another type", clientrules.EntrySkipped, func(i, _ object) { set(at(i, "index", "images"), "datatype", "image-ids") }, 0},
		{"entry without products", clientrules.EntrySkipped, func(i, _ object) { set(at(i, "index", "images"), "products", []any{}) }, 0},
		{"entry with other products", clientrules.ProductsMismatch, func(i, _ object) { set(at(i, "index", "images"), "products", []any{"c"}) }, 2},
		{"document that is not there", clientrules.BadPath, func(i, _ object) { set(at(i, "index", "images"), "path", "streams/v1/other.json") }, 0},
		{"absolute path", clientrules.BadPath, func(i, _ object) { set(at(i, "index", "images"), "path", "/streams/v1/images.json") }, 2},
		{"two documents of one name", clientrules.CacheCollision, func(i, _ object) {
			set(at(i, "index"), "more", object{"datatype": "image-downloads", "path": "private/images.json", "format": "products:1.0", "products": []any{"c", "v"}})
		}, 4},
		{"products of another format", clientrules.BadFormat, func(_, p object) { set(p, "format", "") }, 2},
		{"no content_id", clientrules.MissingField, func(_, p object) { delete(p, "content_id") }, 2},
		{"misspelt field", clientrules.UnknownField, func(_, p object) { set(at(p, "products", "c"), "alias", "x") }, 2},
		{"wrong JSON type", clientrules.BadJSON, func(_, p object) { set(items(p, "c")["squashfs"].(object), "size", "100") }, 0},
		{"unknown architecture", clientrules.UnknownArchitecture, func(_, p object) { set(at(p, "products", "c"), "arch", "sparc") }, 1},
		{"no os", clientrules.MissingField, func(_, p object) { delete(at(p, "products", "c"), "os") }, 2},
		{"no release title", clientrules.MissingField, func(_, p object) { delete(at(p, "products", "c"), "release_title") }, 2},
		{"end of life with a time", clientrules.BadValue, func(_, p object) { set(at(p, "products", "c"), "support_eol", "2028-06-30T00:00:00Z") }, 2},
		{"blank in the aliases", clientrules.BadAlias, func(_, p object) { set(at(p, "products", "c"), "aliases", "deb, x") }, 2},
		{"empty alias", clientrules.BadAlias, func(_, p object) { set(at(p, "products", "c"), "aliases", "deb,") }, 2},
		{"alias twice", clientrules.BadAlias, func(_, p object) { set(at(p, "products", "c"), "aliases", "deb,deb") }, 2},
		{"no version", clientrules.NoImage, func(_, p object) { set(at(p, "products", "c"), "versions", object{}) }, 1},
		{"version named after a release", clientrules.BadVersionKey, func(_, p object) {
			set(at(p, "products", "c"), "versions", object{"12.5.0-final": at(p, "products", "c", "versions", key)})
		}, 1},
		{"version of a bare date", clientrules.BadVersionKey, func(_, p object) {
			set(at(p, "products", "c"), "versions", object{"20261124x": at(p, "products", "c", "versions", key)})
		}, 2},
		{"short version key", clientrules.BadVersionKey, func(_, p object) {
			set(at(p, "products", "c"), "versions", object{"2026": at(p, "products", "c", "versions", key)})
		}, 1},
		{"version without a root", clientrules.NoImage, func(_, p object) { delete(items(p, "c"), "squashfs") }, 1},
		{"version without metadata", clientrules.NoImage, func(_, p object) { delete(items(p, "c"), "incus.tar.xz") }, 1},
		{"unknown file type", clientrules.IgnoredItem, func(_, p object) { set(items(p, "c")["squashfs"].(object), "ftype", "rootfs.squashfs") }, 1},
		{"two roots of a type", clientrules.DuplicateItem, func(_, p object) {
			set(items(p, "c"), "again", object{"ftype": "squashfs", "path": "x", "sha256": hexDigest("9"), "size": 1})
		}, 3},
		{"no fingerprint for the root", clientrules.NoFingerprint, func(_, p object) { delete(items(p, "c")["incus.tar.xz"].(object), "combined_squashfs_sha256") }, 1},
		{"fingerprint in capitals", clientrules.BadValue, func(_, p object) {
			set(items(p, "c")["incus.tar.xz"].(object), "combined_squashfs_sha256", hexDigest("A"))
		}, 2},
		{"no path on the metadata", clientrules.MissingField, func(_, p object) { delete(items(p, "c")["incus.tar.xz"].(object), "path") }, 1},
		{"no path on the root", clientrules.MissingField, func(_, p object) { delete(items(p, "c")["squashfs"].(object), "path") }, 2},
		{"address instead of a path", clientrules.BadPath, func(_, p object) { set(items(p, "c")["squashfs"].(object), "path", "https://other/x.squashfs") }, 2},
		{"path that leaves the remote", clientrules.BadPath, func(_, p object) { set(items(p, "c")["squashfs"].(object), "path", "../x.squashfs") }, 2},
		{"path with a query", clientrules.BadPath, func(_, p object) { set(items(p, "c")["squashfs"].(object), "path", "x.squashfs?a=b") }, 2},
		{"no digest", clientrules.BadValue, func(_, p object) { delete(items(p, "c")["squashfs"].(object), "sha256") }, 2},
		{"no size", clientrules.BadValue, func(_, p object) { delete(items(p, "c")["squashfs"].(object), "size") }, 2},
		{"metadata and root of one name", clientrules.BadPath, func(_, p object) { set(items(p, "c")["squashfs"].(object), "path", "b/incus.tar.xz") }, 2},
		{"one fingerprint twice", clientrules.ListedTwice, func(_, p object) {
			set(items(p, "v")["incus.tar.xz"].(object), "combined_disk-kvm-img_sha256", hexDigest("a"))
		}, 2},
		{"alias of two products", clientrules.ContestedAlias, func(i, p object) {
			_, twin := remote()
			other := at(twin, "products", "c")
			set(at(other, "versions", key, "items", "incus.tar.xz"), "combined_squashfs_sha256", hexDigest("c"))
			set(other, "os", "alpine")
			set(at(p, "products"), "z", other)
			set(at(i, "index", "images"), "products", []any{"c", "v", "z"})
		}, 3},
		{"delta without a base", clientrules.DroppedDelta, func(_, p object) {
			set(items(p, "c"), "squashfs.vcdiff", object{"ftype": "squashfs.vcdiff", "path": "d", "sha256": hexDigest("9"), "size": 1})
		}, 2},
		{"unified image without an extension", clientrules.BadPath, func(_, p object) {
			set(items(p, "c"), "incus_combined.tar.gz", object{"ftype": "incus_combined.tar.gz", "path": "x/image", "sha256": hexDigest("9"), "size": 1})
		}, 3},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			index, products := remote()
			test.spoil(index, products)
			images, err := read(t, index, products, clientrules.Incus)
			if !clientrules.Has(err, test.code) {
				t.Errorf("error is %v, want one with code %s", err, test.code)
			}
			if len(images) != test.images {
				t.Errorf("the client sees %d images, want %d", len(images), test.images)
			}
		})
	}
}

func TestDialectsDiffer(t *testing.T) {
	t.Parallel()
	index, products := remote()
	at(products, "products", "c")["arch"] = "loong64"
	items := at(products, "products", "v", "versions", "20261124_200037", "items")
	clear(items)
	for _, family := range []string{"incus", "lxd"} {
		items[family] = object{"ftype": family + "_combined.tar.gz", "path": family + "_combined.tar.gz", "sha256": hexDigest("e"), "size": 7,
			"combined_type": "virtual-machine"}
	}
	images, err := read(t, index, products, clientrules.Incus)
	if err != nil {
		t.Fatal(err)
	}
	if image, err := clientrules.Resolve(images, "x86_64", "", hexDigest("e")); err != nil || image.Type != clientrules.VirtualMachine {
		t.Errorf("Incus takes the unified image for %q, %v", image.Type, err)
	}
	images, err = read(t, index, products, clientrules.LXD)
	if !clientrules.Has(err, clientrules.UnknownArchitecture) {
		t.Errorf("LXD 5.0 should not know loong64: %v", err)
	}
	if len(images) != 1 || images[0].Type != clientrules.Container {
		t.Errorf("LXD 5.0 does not read combined_type, so it should see one container: %+v", images)
	}
}

func TestNewestVersionOfAProductHasItsAliases(t *testing.T) {
	t.Parallel()
	index, products := remote()
	_, older := remote()
	old := at(older, "products", "c", "versions", "20261124_200037")
	at(old, "items", "incus.tar.xz")["combined_squashfs_sha256"] = hexDigest("d")
	at(products, "products", "c", "versions")["20261124_200036"] = old
	images, err := read(t, index, products, clientrules.Incus)
	if err != nil {
		t.Fatal(err)
	}
	image, err := clientrules.Resolve(images, "x86_64", "", "deb")
	if err != nil || image.Fingerprint != hexDigest("a") {
		t.Errorf("deb is %q, %v, want the newer version", image.Fingerprint, err)
	}
}

// The stub of the base carries the fingerprint in combined_squashfs_sha256, for a virtual machine too.
func TestDeltasNameTheFingerprintOfTheirBase(t *testing.T) {
	t.Parallel()
	for _, product := range []string{"c", "v"} {
		index, products := remote()
		versions := at(products, "products", product, "versions")
		root := map[string]string{"c": "squashfs", "v": "disk-kvm.img"}[product]
		at(versions, "20261124_200037", "items")["delta"] = object{
			"ftype": root + ".vcdiff", "path": "images/x.vcdiff", "sha256": hexDigest("9"), "size": 5, "delta_base": "20261101_000000"}
		stub := object{}
		for _, ftype := range []string{"incus.tar.xz", "lxd.tar.xz"} {
			stub[ftype] = object{"ftype": ftype, "path": "x", "combined_squashfs_sha256": hexDigest("f")}
		}
		versions["20261101_000000"] = object{"items": stub}
		for _, dialect := range []clientrules.Dialect{clientrules.Incus, clientrules.LXD} {
			images, err := read(t, index, products, dialect)
			if err != nil {
				t.Fatalf("%s: %v", dialect, err)
			}
			var deltas []string
			for _, image := range images {
				for _, file := range image.Files[2:] {
					deltas = append(deltas, file.Role)
				}
			}
			want := []string{"root.delta-" + hexDigest("f")}
			if dialect == clientrules.LXD && product == "v" {
				want = nil
			}
			if diff := cmp.Diff(want, deltas); diff != "" {
				t.Errorf("%s, product %s: deltas (-want +got):\n%s", dialect, product, diff)
			}
		}
		older := object{}
		for _, ftype := range []string{"incus.tar.xz", "lxd.tar.xz"} {
			older[ftype] = object{"ftype": ftype, "path": "x", "combined_squashfs_sha256": hexDigest("e")}
		}
		versions["20261001_000000"] = object{"items": older}
		items := at(versions, "20261124_200037", "items")
		items["older"] = object{"ftype": root + ".vcdiff", "path": "images/y.vcdiff", "sha256": hexDigest("8"), "size": 6, "delta_base": "20261001_000000"}
		if _, err := read(t, index, products, clientrules.Incus); !clientrules.Has(err, clientrules.SeveralDeltas) {
			t.Errorf("product %s: two deltas, of which a host may have both bases: %v", product, err)
		}
		delete(items, "older")
		delete(versions, "20261001_000000")

		at(stub, "incus.tar.xz")["combined_squashfs_sha256"] = ""
		if _, err := read(t, index, products, clientrules.Incus); !clientrules.Has(err, clientrules.DroppedDelta) {
			t.Errorf("product %s: a base without the field should drop the delta: %v", product, err)
		}
	}
}

func TestNamesResolveAsInTheClient(t *testing.T) {
	t.Parallel()
	image := func(digit, arch, imageType string, names ...string) clientrules.Image {
		img := clientrules.Image{Fingerprint: hexDigest(digit), Architecture: arch, Type: imageType}
		for _, name := range names {
			img.Aliases = append(img.Aliases, clientrules.Alias{Name: name, Type: imageType, Architecture: arch})
		}
		return img
	}
	images := []clientrules.Image{
		image("1", "riscv64", clientrules.Container, "a"),
		image("2", "i686", clientrules.Container, "a"),
		image("3", "x86_64", clientrules.Container, "a"),
		image("4", "x86_64", clientrules.VirtualMachine, "a", "only-vm"),
	}
	tests := []struct{ machine, imageType, name, want string }{
		{"x86_64", "", "a", "3"},
		{"i686", "", "a", "2"},
		{"s390x", "", "a", "1"},
		{"x86_64", clientrules.VirtualMachine, "a", "4"},
		{"x86_64", "", "only-vm", "4"},
		{"x86_64", "", "222", "2"},
	}
	for _, test := range tests {
		got, err := clientrules.Resolve(images, test.machine, test.imageType, test.name)
		if err != nil || got.Fingerprint != hexDigest(test.want) {
			t.Errorf("%+v resolves to %.1s, %v", test, got.Fingerprint, err)
		}
	}
	if _, err := clientrules.Resolve(images[:3], "x86_64", clientrules.VirtualMachine, "a"); err == nil {
		t.Error("an alias of another type should not resolve")
	}
	if _, err := clientrules.Resolve(append(images, images[3]), "x86_64", "", "44"); err == nil {
		t.Error("a fingerprint that is listed twice should not resolve")
	}
}
