package streams

import (
	"fmt"
	"sync"

	"github.com/imgsrv/imgsrv/internal/incus"
)

// Page is a document of one image's products alone.
type Page struct {
	Body    []byte
	Next    string // the version that the page ends with, if older ones follow
	Changed Change // the last fact that shows to those who may read the image
}

// Page makes a document of at most limit (above 0) versions of the image: the newest ones, or those published before a version.
// Products of one fingerprint are listed once, as the first of them that was published; names are those that the image has for
// itself. False where there never was the version.
func (l *Line) Page(before string, limit int) (Page, bool, error) {
	upTo, known := l.until(before)
	if !known {
		return Page{}, false, nil
	}
	owners, names := l.ownNames()
	page := Page{Changed: l.changed}
	document := incus.NewProducts(l.changed.At)
	if l.changed.Sequence == 0 {
		document.Updated = ""
	}
	versions, last := 0, ""
	for i := upTo - 1; i >= 0; i-- {
		p := l.products[i]
		if owners[p.Fingerprint] != p {
			continue
		}
		if p.Version != last {
			if versions == limit {
				page.Next = last
				break
			}
			versions, last = versions+1, p.Version
		}
		product, err := describe(p.Product, l.image, names[p.Fingerprint])
		if err != nil {
			return Page{}, true, fmt.Errorf("list %s of %s %s: %w", p.variant, p.Image, p.Version, err)
		}
		addDeltas(product, p.Product, listedDeltas(p, l))
		document.Products[p.key] = product
	}
	var err error
	page.Body, err = document.Encode()
	return page, true, err
}

// ownNames is what the image's documents list, were it alone, by fingerprint: who is listed, and under which names. All pages need the same, and
// of thousands of versions it takes longer to find out than to write a page.
type ownNames struct {
	once   sync.Once
	owners map[string]*listing
	names  map[string][]string
}

func (l *Line) ownNames() (owners map[string]*listing, names map[string][]string) {
	l.own.once.Do(func() {
		owners := make(map[string]*listing, len(l.products))
		for _, p := range l.products {
			if p.shown() && owners[p.Fingerprint] == nil {
				owners[p.Fingerprint] = p
			}
		}
		l.own.owners, l.own.names = owners, assign(l, func(fingerprint string) *listing { return owners[fingerprint] })
	})
	return l.own.owners, l.own.names
}

// until is how many of the line's products were published before a version; all for "".
func (l *Line) until(version string) (int, bool) {
	if version == "" {
		return len(l.products), true
	}
	for i, p := range l.products { // those of a version follow each other
		if p.Version == version {
			return i, true
		}
	}
	return 0, false
}
