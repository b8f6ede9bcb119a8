package streams

import (
	"cmp"
	"maps"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// Tables is all that documents are made of, at one moment. It is never changed: what is read later is another one, which has in
// common with it what has stayed the same.
type Tables struct {
	Revision Revision
	position events.Sequence // of the last fact in it
	lines    map[string]*Line
}

// Line is an image with all that was published of it. It is never changed: one of other rows is another one. It may be used by several
// goroutines.
type Line struct {
	image    Image      // without a visibility where no fact has described it
	products []*listing // in the order of their publication
	aliases  []Alias    // by name
	changed  Change     // the last fact that shows to those who may read the image
	siblings map[siblingKey]*listing
	own      *ownNames // of its pages
}

// listing is a product and what follows from it alone.
type listing struct {
	Product        // its architecture by the canonical name
	variant string // as facts name it
	key     string // in a document
	usable  bool   // by clients
}

// shown says whether clients are told of it.
func (l *listing) shown() bool { return l.usable && !l.Withdrawn }

// NewTables makes tables of rows, in any order.
func NewTables(products []Product, aliases []Alias, images []Image) *Tables {
	return (&Tables{}).with(rows{products: products, aliases: aliases, images: images})
}

// Private lists the private images, sorted.
func (t *Tables) Private() []string {
	var names []string
	for name, line := range t.lines {
		if line.image.Visibility != "" && line.image.Visibility != events.Public {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Line finds an image; nil if there is none of that name.
func (t *Tables) Line(image string) *Line {
	if line := t.lines[image]; line != nil && line.image.Visibility != "" {
		return line
	}
	return nil
}

// Visibility says who may read the image.
func (l *Line) Visibility() events.Visibility { return l.image.Visibility }

// with is t after some of its rows have become others.
func (t *Tables) with(changed rows) *Tables {
	drafts := map[string]*draft{}
	of := func(image string) *draft {
		d := drafts[image]
		if d == nil {
			d = newDraft(t.lines[image])
			drafts[image] = d
		}
		return d
	}
	for _, image := range changed.images {
		of(image.Name).setImage(image)
	}
	for _, product := range changed.products {
		of(product.Image).setProduct(product)
	}
	for _, row := range changed.deltas {
		of(row.image).setDelta(row)
	}
	for _, alias := range changed.aliases {
		of(alias.Image).setAlias(alias)
	}
	out := &Tables{Revision: t.Revision, position: t.position, lines: maps.Clone(t.lines)}
	if out.lines == nil {
		out.lines = make(map[string]*Line, len(drafts))
	}
	for image, d := range drafts {
		if d.changed {
			out.lines[image] = d.line()
		}
	}
	return out
}

// draft is a line that is being made of an earlier one.
type draft struct {
	Line
	changed bool
	places  map[variantKey]int // of products; nil until it is needed
}

type variantKey struct{ version, variant string }

func newDraft(of *Line) *draft {
	if of == nil {
		return &draft{}
	}
	return &draft{Line: Line{image: of.image, products: slices.Clone(of.products), aliases: slices.Clone(of.aliases)}}
}

func (d *draft) setImage(image Image) {
	if d.image != image {
		d.image, d.changed = image, true
	}
}

func (d *draft) place(version, variant string) (int, bool) {
	if d.places == nil {
		d.places = make(map[variantKey]int, len(d.products)+1)
		for i, p := range d.products {
			d.places[variantKey{p.Version, p.variant}] = i
		}
	}
	i, known := d.places[variantKey{version, variant}]
	return i, known
}

func (d *draft) setProduct(p Product) {
	d.changed = true
	variant := p.Variant.Name()
	i, known := d.place(p.Version, variant)
	if !known {
		i = len(d.products)
		d.places[variantKey{p.Version, variant}] = i
		d.products = append(d.products, nil)
	} else if p.Deltas == nil {
		p.Deltas = d.products[i].Deltas
	}
	d.products[i] = newListing(p, variant)
}

// setDelta passes over one of a variant that isn't there: a delta's fact comes after its version's.
func (d *draft) setDelta(row deltaRow) {
	i, known := d.place(row.version, row.variant)
	if !known {
		return
	}
	d.changed = true
	p := d.products[i].Product
	p.Deltas = slices.Clone(p.Deltas)
	if at := slices.IndexFunc(p.Deltas, func(other Delta) bool { return other.File.Format == row.File.Format }); at >= 0 {
		p.Deltas[at] = row.Delta
	} else {
		p.Deltas = append(p.Deltas, row.Delta)
	}
	d.products[i] = newListing(p, row.variant)
}

func (d *draft) setAlias(alias Alias) {
	d.changed = true
	if at := slices.IndexFunc(d.aliases, func(other Alias) bool { return other.Alias == alias.Alias }); at >= 0 {
		d.aliases[at] = alias
		return
	}
	d.aliases = append(d.aliases, alias)
}

func (d *draft) line() *Line {
	line := d.Line
	line.own = &ownNames{}
	slices.SortFunc(line.products, byPublication)
	slices.SortFunc(line.aliases, func(a, b Alias) int { return cmp.Compare(a.Alias, b.Alias) })
	line.findSiblings()
	line.changed = line.image.Changed
	for _, alias := range line.aliases {
		line.changed = later(line.changed, alias.Changed)
	}
	for _, p := range line.products {
		if !p.usable {
			continue
		}
		line.changed = later(line.changed, later(p.Published, p.Changed))
		for _, delta := range p.Deltas {
			line.changed = later(line.changed, delta.Changed)
		}
	}
	return &line
}

func later(a, b Change) Change {
	if b.Sequence > a.Sequence {
		return b
	}
	return a
}

func newListing(p Product, variant string) *listing {
	l := &listing{variant: variant}
	architecture, known := incus.Canonical(p.Variant.Architecture)
	if known {
		p.Variant.Architecture = architecture
	}
	l.Product, l.key = p, productKey(p)
	l.usable = known && p.Fingerprint != "" && p.Metadata.Format != "" && (rootType(p) != "" || isUnified(p))
	return l
}

// byPublication is the order in which products of one fingerprint, or those that claim one name, go before each other.
func byPublication(a, b *listing) int {
	return cmp.Or(cmp.Compare(a.Published.Sequence, b.Published.Sequence), cmp.Compare(flavourRank(a), flavourRank(b)), cmp.Compare(a.key, b.key))
}

func flavourRank(l *listing) int {
	if l.Variant.Flavour == events.DefaultFlavour {
		return 0
	}
	return 1
}
