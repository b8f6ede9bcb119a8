package streams

import (
	"fmt"
	"maps"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/pieces"
)

// View makes the documents of those who may read the same images. It keeps what it made, so that the next state of the tables costs
// what is another in it, beside some comparisons of pointers. A View is for one goroutine.
type View struct {
	mayRead func(image string) bool

	lines     map[string]*shownLine // of all images, by name
	sharing   map[string][]*listing // what clients are told of, by fingerprint, in the order of publication: the first is the owner
	fragments map[string]*fragment  // by fingerprint: the owner as it is listed
	cut       []*chunk              // fragments by key, in chunks
}

// Shown is the documents that a View makes of tables. It is never changed.
type Shown struct {
	Index, Images pieces.Body
	Changed       Change // the last fact that shows in them; zero if none does

	chunks []*chunk
}

// shownLine is what a view knows of an image.
type shownLine struct {
	of    *Line
	names map[string][]string // that its products claim and get, by fingerprint
}

// NewView makes a view of the public images and of those private ones that mayRead says; it isn't asked about public ones, and must
// always say the same of an image.
func NewView(mayRead func(image string) bool) *View {
	v := &View{mayRead: mayRead}
	v.clear()
	return v
}

func (v *View) clear() {
	v.lines, v.sharing, v.fragments, v.cut = map[string]*shownLine{}, map[string][]*listing{}, map[string]*fragment{}, nil
}

// Show makes the documents of tables: a function of the rows alone, whose order doesn't matter.
//
// Each product of an image that may be seen is listed with one version in it. Products of one fingerprint are listed once, as the
// first one published, with the names of all: a client can't fetch a fingerprint that is listed twice. Private images that mayRead
// says are listed as if they were public: what is said of fingerprints and names holds over all of them together. Beside its one
// version a product may have others that only say which image a delta starts from; they make no image.
//
// What is the same in documents made elsewhere of the same tables, where such are given, is taken
// from them. After an error the view begins anew with the next tables.
func (v *View) Show(t *Tables, elsewhere *Shown) (*Shown, error) {
	shown, err := v.show(t, elsewhere)
	if err != nil {
		v.clear()
	}
	return shown, err
}

func (v *View) show(t *Tables, elsewhere *Shown) (*Shown, error) {
	for image := range v.lines {
		if t.lines[image] == nil { // rows don't go: these are of another derivation
			v.clear()
			break
		}
	}
	stale := v.replaceLines(t)
	if err := v.describe(stale, elsewhere); err != nil {
		return nil, err
	}
	out := &Shown{}
	for _, line := range t.lines {
		if v.reads(line) {
			out.Changed = later(out.Changed, line.changed)
		} else {
			out.Changed = later(out.Changed, line.image.Changed)
		}
	}
	out.chunks = v.cut
	return out, out.assemble()
}

func (v *View) reads(line *Line) bool {
	switch line.image.Visibility {
	case events.Public:
		return true
	case "":
		return false
	}
	return v.mayRead(line.image.Name)
}

// replaceLines puts the lines that are others in the place of those before, and returns the fingerprints that may be listed otherwise.
func (v *View) replaceLines(t *Tables) (stale map[string]bool) {
	stale = map[string]bool{}
	named := map[string]bool{} // images whose names may lead elsewhere
	for image, line := range t.lines {
		known := v.lines[image]
		if known != nil && known.of == line {
			continue
		}
		var before *Line
		if known == nil {
			known = &shownLine{}
			v.lines[image] = known
		} else if v.reads(known.of) {
			before = known.of
		}
		known.of, named[image] = line, true
		for _, fingerprint := range v.replaceProducts(before, line) {
			stale[fingerprint] = true
		}
	}
	for fingerprint := range maps.Clone(stale) {
		for _, p := range v.sharing[fingerprint] {
			named[p.Image] = true // its owner may be another one
		}
	}
	for image := range named {
		known := v.lines[image]
		names := map[string][]string{}
		if v.reads(known.of) {
			names = assign(known.of, func(fingerprint string) *listing { return v.sharing[fingerprint][0] })
		}
		for fingerprint, were := range known.names {
			if !slices.Equal(were, names[fingerprint]) {
				stale[fingerprint] = true
			}
		}
		for fingerprint := range names {
			if known.names[fingerprint] == nil {
				stale[fingerprint] = true
			}
		}
		known.names = names
	}
	return stale
}

// replaceProducts puts the products of a line in the place of those it had before; nil for none. It returns the fingerprints of those
// that may be listed otherwise, for another reason than their names.
func (v *View) replaceProducts(before, line *Line) (touched []string) {
	old := map[*listing]bool{}
	// What all products of the image say, or what a delta starts from, may be another.
	all := before != nil && (before.image.OS != line.image.OS || before.image.Release != line.image.Release)
	if before != nil {
		old = make(map[*listing]bool, len(before.products))
		for _, p := range before.products {
			old[p] = p.shown()
		}
	}
	if v.reads(line) {
		for _, p := range line.products {
			if !p.shown() {
				continue
			}
			if all || !old[p] || len(p.Deltas) > 0 {
				touched = append(touched, p.Fingerprint)
			}
			if old[p] {
				delete(old, p)
				continue
			}
			with := append(slices.Clip(v.sharing[p.Fingerprint]), p)
			slices.SortFunc(with, byPublication)
			v.sharing[p.Fingerprint] = with
		}
	}
	for p, shown := range old {
		if !shown {
			continue
		}
		touched = append(touched, p.Fingerprint)
		if rest := slices.DeleteFunc(slices.Clone(v.sharing[p.Fingerprint]), func(other *listing) bool { return other == p }); len(rest) > 0 {
			v.sharing[p.Fingerprint] = rest
		} else {
			delete(v.sharing, p.Fingerprint)
		}
	}
	return touched
}

// describe makes the fragments of fingerprints that may be listed otherwise now, and cuts all anew.
func (v *View) describe(stale map[string]bool, elsewhere *Shown) error {
	gone, come := map[*fragment]bool{}, []*fragment(nil)
	for fingerprint := range stale {
		known := v.fragments[fingerprint]
		owner, fresh := (*listing)(nil), (*fragment)(nil)
		if sharing := v.sharing[fingerprint]; len(sharing) > 0 {
			owner = sharing[0]
			says := v.says(owner)
			if known.is(says) {
				continue
			}
			if fresh = elsewhere.find(owner.key); !fresh.is(says) {
				var err error
				if fresh, err = newFragment(says); err != nil {
					return fmt.Errorf("list %s of %s %s: %w", owner.variant, owner.Image, owner.Version, err)
				}
			}
			v.fragments[fingerprint] = fresh
			come = append(come, fresh)
		} else {
			delete(v.fragments, fingerprint)
		}
		if known != nil {
			gone[known] = true
		}
	}
	if len(gone) > 0 || len(come) > 0 {
		v.cut = cut(v.cut, gone, come, elsewhere)
	}
	return nil
}

// says collects all that a fragment is made of.
func (v *View) says(owner *listing) said {
	line := v.lines[owner.Image].of
	names := []string(nil)
	asked := ""
	for _, p := range v.sharing[owner.Fingerprint] {
		if p.Image != asked { // else its names are there already; an image that comes again adds the same ones
			asked = p.Image
			names = append(names, v.lines[p.Image].names[owner.Fingerprint]...)
		}
	}
	return said{owner: owner, os: line.image.OS, release: line.image.Release, names: names, deltas: listedDeltas(owner, line)}
}
