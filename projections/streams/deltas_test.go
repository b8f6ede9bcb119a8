package streams_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/projections/streams"
)

// deltaFrom is what turns the root of one product into another's, made as the n-th event.
func deltaFrom(n int, base, target streams.Product) streams.Delta {
	return streams.Delta{
		File:         streams.File{Format: target.Root.Format + ".from-" + base.Version + ".vcdiff", SHA256: digest("delta from " + base.Root.SHA256), SizeBytes: 900},
		TargetSHA256: target.Root.SHA256, BaseVersion: base.Version, BaseSHA256: base.Root.SHA256,
		Changed: streams.Change{Sequence: events.Sequence(n), At: noon(n)},
	}
}

// deltaFiles lists, for each image that a client sees, the deltas it may fetch.
func deltaFiles(images []clientrules.Image) map[string][]clientrules.File {
	found := map[string][]clientrules.File{}
	for _, image := range images {
		for _, f := range image.Files {
			if strings.HasPrefix(f.Role, "root.delta-") {
				found[image.Fingerprint] = append(found[image.Fingerprint], f)
			}
		}
	}
	return found
}

func TestClientsFindTheDeltaFromTheVersionBefore(t *testing.T) {
	t.Parallel()
	for kind, fileType := range map[events.VariantType]string{vm: "disk-kvm.img.vcdiff", container: "squashfs.vcdiff"} {
		oldest, older, newer := product(1, "deb", "1", "amd64", kind, "default"), product(2, "deb", "2", "x86_64", kind, "default"), product(3, "deb", "3", "amd64", kind, "default")
		newer.Deltas = []streams.Delta{deltaFrom(4, oldest, newer), deltaFrom(5, older, newer)}
		aliases := []streams.Alias{alias("deb", "latest", "3")}
		set := documents(t, []streams.Product{oldest, older, newer}, aliases, public("deb"))
		without := newer
		without.Deltas = nil
		plain := documents(t, []streams.Product{oldest, older, without}, aliases, public("deb"))
		// One alone, though there are two: a host that has both bases applies both, and gets nothing.
		want := map[string][]clientrules.File{newer.Fingerprint: {{
			Role: "root.delta-" + older.Fingerprint, FileType: fileType, SHA256: newer.Deltas[1].File.SHA256, SizeBytes: 900,
			Path: "api/images/deb/versions/3/variants/" + newer.Variant.Name() + "/formats/" + newer.Root.Format + ".from-2.vcdiff",
		}}}
		for _, dialect := range dialects() {
			listed := read(t, set, dialect)
			if dialect == clientrules.LXD && kind == vm {
				if found := deltaFiles(listed); len(found) > 0 {
					t.Errorf("LXD, which has no deltas of disks, sees %v", found)
				}
			} else if diff := cmp.Diff(want, deltaFiles(listed)); diff != "" {
				t.Errorf("%s: deltas for %s (-want +got):\n%s", kind, dialect, diff)
			}
			if diff := cmp.Diff(shortNames(read(t, plain, dialect)), shortNames(listed)); diff != "" {
				t.Errorf("%s: for %s a delta changes what there is (-without +with):\n%s", kind, dialect, diff)
			}
		}
		if set.Changed.Sequence != 5 {
			t.Errorf("the documents changed at %d, want the fact of the last delta", set.Changed.Sequence)
		}
	}
}

func TestADeltaThatNobodyCanApplyIsNotListed(t *testing.T) {
	t.Parallel()
	older, newer := product(1, "deb", "1", "amd64", container, "default"), product(2, "deb", "2", "amd64", container, "default")
	good := deltaFrom(3, older, newer)
	type world struct {
		older, newer streams.Product
		images       []streams.Image
		delta        streams.Delta
	}
	tests := map[string]func(*world){
		"removed":                        func(w *world) { w.delta.Removed = true },
		"from a version that isn't here": func(w *world) { w.delta.BaseVersion = "0" },
		"from another root":              func(w *world) { w.delta.BaseSHA256 = digest("another") },
		"to another root":                func(w *world) { w.delta.TargetSHA256 = digest("another") },
		"from another variant":           func(w *world) { w.older.Variant.Flavour = "cloud" },
		"from another image":             func(w *world) { w.older.Image = "other" },
		"from the same image":            func(w *world) { w.older.Fingerprint = w.newer.Fingerprint },
		"from a base without metadata":   func(w *world) { w.older.Metadata = streams.File{} },
		"of a tarball":                   func(w *world) { w.older.Root.Format, w.newer.Root.Format = "rootfs.tar.xz", "rootfs.tar.xz" },
		"from another form of root":      func(w *world) { w.older.Root.Format = "rootfs.tar.xz" },
		"of a private image":             func(w *world) { w.images[0].Visibility = events.Private },
	}
	for name, change := range tests {
		w := world{older, newer, public("deb", "other"), good}
		change(&w)
		w.newer.Deltas = []streams.Delta{w.delta}
		set := documents(t, []streams.Product{w.older, w.newer}, nil, w.images)
		for _, dialect := range dialects() {
			if found := deltaFiles(read(t, set, dialect)); len(found) > 0 {
				t.Errorf("%s: %s clients see %v", name, dialect, found)
			}
		}
		if strings.Contains(string(set.Images), "vcdiff") {
			t.Errorf("%s: the delta is in the documents", name)
		}
	}
	newer.Deltas = []streams.Delta{good}
	if found := deltaFiles(read(t, documents(t, []streams.Product{older, newer}, nil, public("deb")), clientrules.LXD)); len(found) != 1 {
		t.Errorf("the delta that is changed above is not listed as it is: %v", found)
	}
}

func TestReadersOfAPrivateImageSeeItsDeltas(t *testing.T) {
	t.Parallel()
	older, newer := product(1, "secret", "1", "amd64", vm, "default"), product(2, "secret", "2", "amd64", vm, "default")
	newer.Deltas = []streams.Delta{deltaFrom(3, older, newer)}
	products := []streams.Product{older, newer}
	if set := documents(t, products, nil, private("secret")); strings.Contains(string(set.Images), "secret") || set.Changed.Sequence != 0 {
		t.Errorf("everybody sees something of a private image, changed at %d:\n%s", set.Changed.Sequence, set.Images)
	}
	found := deltaFiles(read(t, documentsFor(t, products, nil, private("secret"), "secret"), clientrules.Incus))
	if len(found[newer.Fingerprint]) != 1 {
		t.Errorf("a reader sees the deltas %v", found)
	}
}

// Whatever deltas there are, each one that is listed starts from an image that is listed too, and changes nothing else.
func TestAnyDeltasCanBeApplied(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		var products []streams.Product
		for i := range rapid.IntRange(1, 10).Draw(rt, "versions") {
			for _, kind := range rapid.SampledFrom([][]events.VariantType{{vm}, {container}, {vm, container}}).Draw(rt, "types") {
				p := product(i+1, rapid.SampledFrom([]string{"a", "secret"}).Draw(rt, "image"), fmt.Sprint("v", i), rapid.SampledFrom([]string{"amd64", "x86_64"}).Draw(rt, "architecture"), kind, "default")
				if rapid.IntRange(0, 4).Draw(rt, "shared fingerprint") == 0 {
					p.Fingerprint = digest(rapid.SampledFrom([]string{"x", "y"}).Draw(rt, "bytes") + string(kind))
				}
				for range rapid.IntRange(0, 3).Draw(rt, "deltas") {
					if len(products) == 0 {
						break
					}
					d := deltaFrom(20, products[rapid.IntRange(0, len(products)-1).Draw(rt, "base")], p)
					d.Removed = rapid.IntRange(0, 4).Draw(rt, "removed") == 0
					p.Deltas = append(p.Deltas, d)
				}
				products = append(products, p)
			}
		}
		readable := rapid.Bool().Draw(rt, "may read secret")
		images := append(public("a"), private("secret")...)
		mayRead := func(string) bool { return readable }
		set, err := allDocumentsFor(products, nil, images, mayRead)
		if err != nil {
			rt.Fatal(err)
		}
		bare := make([]streams.Product, len(products))
		for i, p := range products {
			p.Deltas = nil
			bare[i] = p
		}
		plain, err := allDocumentsFor(bare, nil, images, mayRead)
		if err != nil {
			rt.Fatal(err)
		}
		for _, dialect := range dialects() {
			listed := read(rt, set, dialect)
			if diff := cmp.Diff(shortNames(read(rt, plain, dialect)), shortNames(listed)); diff != "" {
				rt.Fatalf("%s: deltas change what is listed (-without +with):\n%s", dialect, diff)
			}
			for fingerprint, files := range deltaFiles(listed) {
				if len(files) != 1 {
					rt.Fatalf("%s: image %s has the deltas %v", dialect, fingerprint, files)
				}
				base := strings.TrimPrefix(files[0].Role, "root.delta-")
				if _, there := shortNames(listed)[base]; !there || base == fingerprint {
					rt.Fatalf("%s: the delta of %s starts from %s", dialect, fingerprint, base)
				}
			}
		}
	})
}

func TestADeltaComesAndGoesWithItsFacts(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	for _, version := range []string{"1", "2"} {
		h.publish(events.Upload{Image: "deb", Version: version, Variants: []events.UploadVariant{variant(vm, "default", "vm"+version)}})
		h.tick()
	}
	steps := []struct {
		name string
		do   func()
		want int
	}{
		{"published", func() {}, 0},
		{"made", func() { h.makeDelta("deb", "1", "2", vm) }, 1},
		{"removed", func() { h.removeDelta("deb", "1", "2", vm) }, 0},
		{"made again", func() { h.makeDelta("deb", "1", "2", vm) }, 1},
	}
	applied := 0
	for _, step := range steps {
		h.tick()
		step.do()
		if err := db.apply(t.Context(), h.events[applied:]...); err != nil {
			t.Fatal(err)
		}
		applied = len(h.events)
		set := db.stored(t)
		if found := deltaFiles(read(t, set, clientrules.Incus)); len(found) != step.want {
			t.Errorf("%s: clients see the deltas %v", step.name, found)
		}
		if step.name != "published" && set.Changed.Sequence != events.Sequence(applied) {
			t.Errorf("%s: the documents changed at %d, want %d", step.name, set.Changed.Sequence, applied)
		}
	}
}

// makeDelta records a delta between the roots of two published versions.
func (h *history) makeDelta(image, base, target string, kind events.VariantType) {
	h.t.Helper()
	name := events.Variant{Architecture: "amd64", Type: kind, Flavour: "default"}.Name()
	root := map[events.VariantType]string{vm: "disk.qcow2", container: "rootfs.squashfs"}[kind]
	version := func(v string) events.Current[events.Version] {
		return last[events.Version](h, events.VersionEntity(image, v))
	}
	from, _ := version(target).State.Manifest.Format(name, root)
	baseRoot, _ := version(base).State.Manifest.Format(name, root)
	format := root + ".from-" + base + ".vcdiff"
	h.add(events.RecordDerived(events.Derived{Image: image, Version: target, Variant: name, Format: format, Kind: events.DerivedDelta,
		Digest: events.Digest("sha256:" + digest(image+base+target)), Size: 500, MediaType: "application/x-vcdiff",
		From: &events.DerivedSource{Format: root, Digest: from.Digest}, BaseVersion: base, BaseDigest: baseRoot.Digest,
		How: &events.DerivedHow{Tool: "xdelta3"}, MadeAt: h.now}, version(target),
		last[events.Derived](h, events.DerivedEntity(image, target, name, format))))
}

func (h *history) removeDelta(image, base, target string, kind events.VariantType) {
	h.t.Helper()
	root := map[events.VariantType]string{vm: "disk.qcow2", container: "rootfs.squashfs"}[kind]
	name := events.Variant{Architecture: "amd64", Type: kind, Flavour: "default"}.Name()
	h.add(events.RemoveDerived(last[events.Derived](h, events.DerivedEntity(image, target, name, root+".from-"+base+".vcdiff")), "admin", h.now))
}
