package streams_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/projections/streams"
)

const (
	vm        = events.VirtualMachine
	container = events.Container
)

func digest(of string) string {
	sum := sha256.Sum256([]byte(of))
	return hex.EncodeToString(sum[:])
}

func noon(seconds int) time.Time {
	return time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC).Add(time.Duration(seconds) * time.Second)
}

// product is a listable variant, published as the n-th event at n seconds past noon; its fingerprint is that of its names.
func product(n int, image, version, architecture string, kind events.VariantType, flavour string) streams.Product {
	root := map[events.VariantType]string{vm: "disk.qcow2", container: "rootfs.squashfs"}[kind]
	what := strings.Join([]string{image, version, architecture, string(kind), flavour}, " ")
	return streams.Product{
		Image: image, Version: version, OS: "debian", Release: "bookworm",
		Variant:     events.Variant{Architecture: architecture, Type: kind, Flavour: flavour},
		Fingerprint: digest(what),
		Metadata:    streams.File{Format: "incus.tar.xz", SHA256: digest("metadata of " + what), SizeBytes: 700},
		Root:        streams.File{Format: root, SHA256: digest("root of " + what), SizeBytes: 196608},
		KeyedAt:     noon(n),
		Published:   streams.Change{Sequence: events.Sequence(n), At: noon(n)},
	}
}

func alias(image, name, version string) streams.Alias {
	return streams.Alias{Image: image, Alias: name, Version: version, Changed: streams.Change{Sequence: 1, At: noon(1)}}
}

func public(names ...string) []streams.Image {
	var images []streams.Image
	for _, name := range names {
		images = append(images, streams.Image{Name: name, Visibility: events.Public, OS: "debian", Release: "bookworm"})
	}
	return images
}

func documents(t testing.TB, products []streams.Product, aliases []streams.Alias, images []streams.Image) documentSet {
	t.Helper()
	set, err := allDocuments(products, aliases, images)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// read gives what a client sees, and fails the test if it would stumble on something.
func read(t interface {
	Helper()
	Fatalf(string, ...any)
}, set documentSet, dialect clientrules.Dialect) []clientrules.Image {
	t.Helper()
	images, err := clientrules.Read(set.Index, func(path string) ([]byte, error) {
		if path != incus.ImagesPath {
			return nil, fmt.Errorf("%s is not served", path)
		}
		return set.Images, nil
	}, dialect)
	if err != nil {
		t.Fatalf("%s clients have problems with the documents:\n%v\n%s", dialect, err, set.Images)
	}
	return images
}

func dialects() []clientrules.Dialect {
	return []clientrules.Dialect{clientrules.Incus, clientrules.LXD}
}

// shortNames lists, by fingerprint, the names that the documents give, without the longer ones that clients make of them.
func shortNames(images []clientrules.Image) map[string][]string {
	names := map[string][]string{}
	for _, image := range images {
		all := image.Aliases
		names[image.Fingerprint] = nil
		for _, a := range all {
			short, long := strings.CutSuffix(a.Name, "/"+image.Properties["architecture"])
			isLong := long && slices.ContainsFunc(all, func(b clientrules.Alias) bool { return b.Name == short })
			if !isLong {
				names[image.Fingerprint] = append(names[image.Fingerprint], a.Name)
			}
		}
	}
	return names
}

func TestEachProductHasTheNamesThatLeadToIt(t *testing.T) {
	t.Parallel()
	older := product(1, "deb", "12.4.0", "amd64", vm, "default")
	newer := product(2, "deb", "12.5.0", "amd64", vm, "default")
	newerContainer := product(2, "deb", "12.5.0", "amd64", container, "default")
	newerARM := product(2, "deb", "12.5.0", "arm64", vm, "default")
	newerCloud := product(2, "deb", "12.5.0", "amd64", vm, "cloud")
	versionNamedCloud := product(3, "deb", "cloud", "amd64", vm, "default")
	versionNamedCloudAMD64 := product(3, "deb", "cloud", "amd64", vm, "amd64")
	versionNamedAMD64 := product(3, "deb", "amd64", "amd64", vm, "default")
	flavourNamedAMD64 := product(2, "deb", "12.5.0", "amd64", vm, "amd64")
	other := product(3, "other", "1", "amd64", vm, "default")
	again := other
	again.Fingerprint = newer.Fingerprint

	type names map[string][]string
	tests := []struct {
		name     string
		products []streams.Product
		aliases  []streams.Alias
		want     names
	}{
		{"a version without aliases has its own name only", []streams.Product{older}, nil,
			names{older.Fingerprint: {"deb/12.4.0"}}},
		{"latest gives the bare name", []streams.Product{older, newer}, []streams.Alias{alias("deb", "latest", "12.5.0"), alias("deb", "stable", "12.4.0")},
			names{older.Fingerprint: {"deb/12.4.0", "deb/stable"}, newer.Fingerprint: {"deb", "deb/12.5.0", "deb/latest"}}},
		{"a rollback moves names back", []streams.Product{older, newer}, []streams.Alias{alias("deb", "latest", "12.4.0")},
			names{older.Fingerprint: {"deb", "deb/12.4.0", "deb/latest"}, newer.Fingerprint: {"deb/12.5.0"}}},
		{"types and architectures share names", []streams.Product{newer, newerContainer, newerARM}, []streams.Alias{alias("deb", "latest", "12.5.0")},
			names{newer.Fingerprint: {"deb", "deb/12.5.0", "deb/latest"}, newerContainer.Fingerprint: {"deb", "deb/12.5.0", "deb/latest"},
				newerARM.Fingerprint: {"deb", "deb/12.5.0", "deb/latest"}}},
		{"another flavour is part of the name", []streams.Product{newer, newerCloud}, []streams.Alias{alias("deb", "latest", "12.5.0")},
			names{newer.Fingerprint: {"deb", "deb/12.5.0", "deb/latest"}, newerCloud.Fingerprint: {"deb/12.5.0/cloud", "deb/cloud", "deb/latest/cloud"}}},
		{"a version wins over an alias of its name", []streams.Product{older, newer}, []streams.Alias{alias("deb", "12.4.0", "12.5.0")},
			names{older.Fingerprint: {"deb/12.4.0"}, newer.Fingerprint: {"deb/12.5.0"}}},
		{"a version wins over a flavour of latest of its name", []streams.Product{newerCloud, versionNamedCloud}, []streams.Alias{alias("deb", "latest", "12.5.0")},
			names{newerCloud.Fingerprint: {"deb/12.5.0/cloud", "deb/latest/cloud"}, versionNamedCloud.Fingerprint: {"deb/cloud"}}},
		{"a version wins over what clients make of a flavour of latest", []streams.Product{newerCloud, versionNamedCloudAMD64}, []streams.Alias{alias("deb", "latest", "12.5.0")},
			names{newerCloud.Fingerprint: {"deb/12.5.0/cloud", "deb/latest/cloud"}, versionNamedCloudAMD64.Fingerprint: {"deb/cloud/amd64"}}},
		{"the bare name wins over a version named like an architecture", []streams.Product{newer, versionNamedAMD64}, []streams.Alias{alias("deb", "latest", "12.5.0")},
			names{newer.Fingerprint: {"deb", "deb/12.5.0", "deb/latest"}, versionNamedAMD64.Fingerprint: nil}},
		{"the default flavour wins over one named like an architecture", []streams.Product{newer, flavourNamedAMD64}, nil,
			names{newer.Fingerprint: {"deb/12.5.0"}, flavourNamedAMD64.Fingerprint: nil}},
		{"a removed alias gives no name", []streams.Product{newer}, []streams.Alias{alias("deb", "latest", "")},
			names{newer.Fingerprint: {"deb/12.5.0"}}},
		{"an alias of another image gives no name", []streams.Product{newer}, []streams.Alias{alias("other", "latest", "12.5.0")},
			names{newer.Fingerprint: {"deb/12.5.0"}}},
		{"one fingerprint is listed once with all names", []streams.Product{again, newer}, []streams.Alias{alias("deb", "latest", "12.5.0"), alias("other", "latest", "1")},
			names{newer.Fingerprint: {"deb", "deb/12.5.0", "deb/latest", "other", "other/1", "other/latest"}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			set := documents(t, test.products, test.aliases, public("deb", "other"))
			for _, dialect := range dialects() {
				if diff := cmp.Diff(test.want, names(shortNames(read(t, set, dialect)))); diff != "" {
					t.Errorf("names for %s (-want +got):\n%s", dialect, diff)
				}
			}
		})
	}
}

func TestOnlyWhatClientsCanUseIsListed(t *testing.T) {
	t.Parallel()
	good := product(1, "deb", "1", "amd64", vm, "default")
	change := func(change func(*streams.Product)) streams.Product {
		p := product(2, "deb", "2", "amd64", vm, "default")
		change(&p)
		return p
	}
	tests := []struct {
		name string
		bad  streams.Product
	}{
		{"no fingerprint", change(func(p *streams.Product) { p.Fingerprint = "" })},
		{"no metadata", change(func(p *streams.Product) { p.Metadata = streams.File{} })},
		{"a root of the other type", change(func(p *streams.Product) { p.Root.Format = "rootfs.squashfs" })},
		{"an architecture that clients don't know", change(func(p *streams.Product) { p.Variant.Architecture = "vax" })},
		{"a private image", change(func(p *streams.Product) { p.Image = "secret" })},
		{"an image that is not described", change(func(p *streams.Product) { p.Image = "unknown" })},
	}
	images := append(public("deb"), streams.Image{Name: "secret", Visibility: events.Private})
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			set := documents(t, []streams.Product{good, test.bad}, nil, images)
			for _, dialect := range dialects() {
				listed := read(t, set, dialect)
				if len(listed) != 1 || listed[0].Fingerprint != good.Fingerprint {
					t.Errorf("%s clients see %+v, want the good product alone", dialect, listed)
				}
			}
			if strings.Contains(string(set.Images), "secret") || set.Changed != good.Published {
				t.Errorf("the documents tell of what isn't listed: changed %+v\n%s", set.Changed, set.Images)
			}
		})
	}
}

func TestTheRemainingProductOfAFingerprintIsListedWhenTheFirstBecomesPrivate(t *testing.T) {
	t.Parallel()
	first, second := product(1, "one", "1", "amd64", vm, "default"), product(2, "two", "1", "amd64", vm, "default")
	second.Fingerprint = first.Fingerprint
	images := append(public("two"), streams.Image{Name: "one", Visibility: events.Private})
	listed := read(t, documents(t, []streams.Product{first, second}, nil, images), clientrules.Incus)
	want := map[string][]string{second.Fingerprint: {"two/1"}}
	if diff := cmp.Diff(want, shortNames(listed)); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

func TestClientsLearnWhatAnImageIs(t *testing.T) {
	t.Parallel()
	silent := product(2, "deb", "12.5.0", "amd64", container, "cloud")
	silent.OS, silent.Release = "", ""
	silent.Root.Format = "rootfs.tar.xz"
	set := documents(t, []streams.Product{product(1, "deb", "12.4.0", "amd64", vm, "default"), silent}, nil,
		[]streams.Image{{Name: "deb", Visibility: events.Public}})

	path := "api/images/deb/versions/12.5.0/variants/amd64.container.cloud/formats/"
	want := clientrules.Image{
		Fingerprint:  silent.Fingerprint,
		Architecture: "x86_64",
		Type:         clientrules.Container,
		Properties: map[string]string{"os": "deb", "release": "12.5.0", "version": "12.5.0", "architecture": "amd64", "variant": "cloud",
			"serial": "20261124_120002", "type": "root.tar.xz", "description": "deb 12.5.0 amd64 (cloud) (20261124_120002)"},
		Files: []clientrules.File{
			{Role: "meta", FileType: "incus.tar.xz", Path: path + "incus.tar.xz", SHA256: silent.Metadata.SHA256, SizeBytes: 700},
			{Role: "root", FileType: "root.tar.xz", Path: path + "rootfs.tar.xz", SHA256: silent.Root.SHA256, SizeBytes: 196608},
		},
		Product:   "deb:12.5.0:amd64:container:cloud",
		Serial:    "20261124_120002",
		SizeBytes: 196608 + 700,
		CreatedAt: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC),
		ExpiresAt: time.Unix(0, 0).UTC(),
	}
	index := slices.IndexFunc(read(t, set, clientrules.Incus), func(i clientrules.Image) bool { return i.Fingerprint == silent.Fingerprint })
	got := read(t, set, clientrules.Incus)[index]
	got.Aliases = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	// The version is part of the description where the release doesn't say it.
	other := read(t, set, clientrules.LXD)[1-index]
	if got, want := other.Properties["description"], "debian bookworm amd64 (12.4.0) (20261124_120001)"; got != want {
		t.Errorf("description is %q, want %q", got, want)
	}
}

func TestNothingPublishedIsAnEmptyRemote(t *testing.T) {
	t.Parallel()
	set := documents(t, nil, nil, nil)
	for _, dialect := range dialects() {
		if images := read(t, set, dialect); len(images) != 0 {
			t.Errorf("%s clients see %+v", dialect, images)
		}
	}
	var index incus.Index
	if err := json.Unmarshal(set.Index, &index); err != nil {
		t.Fatal(err)
	}
	if entry := index.Index[incus.ContentID]; entry.Products == nil || len(entry.Products) != 0 {
		t.Errorf("the index entry lists %#v, want an empty list", entry.Products)
	}
	if !set.Changed.At.IsZero() || strings.Contains(string(set.Images), "updated") {
		t.Errorf("documents that nothing changed have a date: %+v\n%s", set.Changed, set.Images)
	}
}

// Whatever is published and named, both clients see each fingerprint once, without a contested name, and where latest points
// the image's name leads.
func TestClientsLearnWhatThePublisherSays(t *testing.T) {
	t.Parallel()
	no := false
	p := product(1, "deb", "12.5.0", "amd64", vm, "default")
	p.Traits = events.Traits{ReleaseTitle: "12 (bookworm)", Codename: "bookworm", SupportEOL: "2028-06-30", Supported: &no, Requirements: map[string]string{"secureboot": "false"}}
	set := documents(t, []streams.Product{p}, nil, public("deb"))
	for _, dialect := range dialects() {
		image := read(t, set, dialect)[0]
		if image.Properties["requirements.secureboot"] != "false" || image.Properties["release"] != "bookworm" || !image.ExpiresAt.Equal(time.Date(2028, 6, 30, 0, 0, 0, 0, time.UTC)) ||
			!strings.HasPrefix(image.Properties["description"], "debian 12 (bookworm) amd64") {
			t.Errorf("%s clients see %+v", dialect, image)
		}
	}
	var document incus.Products
	if err := json.Unmarshal(set.Images, &document); err != nil {
		t.Fatal(err)
	}
	if got := document.Products["deb:12.5.0:amd64:virtual-machine:default"]; got.ReleaseCodename != "bookworm" || got.Supported {
		t.Errorf("product %+v", got)
	}
}

func TestAUnifiedImageIsListedForThoseWhoUnderstandIt(t *testing.T) {
	t.Parallel()
	for _, kind := range []events.VariantType{vm, container} {
		p := product(1, "deb", "1", "amd64", kind, "default")
		p.Root, p.Metadata = streams.File{}, streams.File{Format: "incus_combined.tar.xz", SHA256: p.Fingerprint, SizeBytes: 9000}
		set := documents(t, []streams.Product{p}, []streams.Alias{alias("deb", "latest", "1")}, public("deb"))
		images := read(t, set, clientrules.Incus)
		found, err := clientrules.Resolve(images, "x86_64", string(kind), "deb")
		if err != nil || found.Fingerprint != p.Fingerprint || found.SizeBytes != 9000 || len(images) != 1 {
			t.Errorf("Incus clients find %+v, %v", found, err)
		}
		seen, _ := clientrules.Read(set.Index, func(string) ([]byte, error) { return set.Images, nil }, clientrules.LXD)
		if want := map[bool]int{true: 1, false: 0}[kind == container]; len(seen) != want {
			t.Errorf("LXD clients see %d images of a unified %s, want %d", len(seen), kind, want)
		}
	}
}

func TestAnyDocumentsAreSoundForBothClients(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		words := rapid.SampledFrom([]string{"1", "2.0+x~1", "latest", "stable", "cloud", "amd64", "arm64", "default"})
		var products []streams.Product
		seen := map[string]bool{}
		sequences := map[string]int{}
		for range rapid.IntRange(0, 25).Draw(t, "products") {
			image, version := names.Draw(t, "image"), words.Draw(t, "version")
			if sequences[image+" "+version] == 0 {
				sequences[image+" "+version] = len(sequences) + 1
			}
			p := product(sequences[image+" "+version], image, version, rapid.SampledFrom([]string{"amd64", "x86_64", "arm64", "i386"}).Draw(t, "architecture"),
				rapid.SampledFrom([]events.VariantType{vm, container}).Draw(t, "type"), rapid.SampledFrom([]string{"default", "cloud", "amd64"}).Draw(t, "flavour"))
			key := strings.Replace(image+" "+version+" "+p.Variant.Name(), "x86_64", "amd64", 1)
			if seen[key] {
				continue
			}
			seen[key] = true
			if rapid.IntRange(0, 3).Draw(t, "shared fingerprint") == 0 {
				p.Fingerprint = digest(rapid.SampledFrom([]string{"x", "y"}).Draw(t, "bytes"))
			}
			if p.Variant.Type == container && rapid.Bool().Draw(t, "unified") {
				p.Root, p.Metadata = streams.File{}, streams.File{Format: "incus_combined.tar.gz", SHA256: p.Fingerprint, SizeBytes: 9000}
			}
			products = append(products, p)
		}
		aliases := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) streams.Alias {
			return alias(names.Draw(t, "image"), words.Draw(t, "alias"), words.Draw(t, "version"))
		}), 0, 12, func(a streams.Alias) string { return a.Image + "/" + a.Alias }).Draw(t, "aliases")
		images := public("a", "b")

		set, err := allDocuments(products, aliases, images)
		if err != nil {
			t.Fatal(err)
		}
		reordered, err := allDocuments(rapid.Permutation(products).Draw(t, "other order"), rapid.Permutation(aliases).Draw(t, "other order"), images)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(set, reordered); diff != "" {
			t.Fatalf("the order of the rows shows in the documents:\n%s", diff)
		}
		want := map[string]bool{}
		versions := map[string]bool{}
		for _, p := range products {
			versions[p.Image+"/"+p.Version] = true
			if p.Image != "c" {
				want[p.Fingerprint] = true
			}
		}
		for _, dialect := range dialects() {
			listed := read(t, set, dialect)
			got := map[string]bool{}
			for _, image := range listed {
				got[image.Fingerprint] = true
			}
			if diff := cmp.Diff(want, got); diff != "" || len(listed) != len(want) {
				t.Fatalf("fingerprints for %s (-want +got):\n%s", dialect, diff)
			}
			for _, a := range aliases {
				if a.Alias != "latest" || a.Image == "c" || versions[a.Image+"/latest"] {
					continue
				}
				for _, p := range products {
					if p.Image != a.Image || p.Version != a.Version || p.Variant.Flavour != "default" {
						continue
					}
					held := slices.ContainsFunc(listed, func(i clientrules.Image) bool {
						return slices.ContainsFunc(i.Aliases, func(c clientrules.Alias) bool { return c.Name == a.Image })
					})
					if !held {
						t.Fatalf("%s: latest of %s is %s, but nothing has the bare name", dialect, a.Image, a.Version)
					}
				}
			}
		}
	})
}
