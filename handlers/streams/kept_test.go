package streams

import (
	"fmt"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/pieces"
	projection "github.com/imgsrv/imgsrv/projections/streams"
)

// What an image was before, maybe with thousands of versions, isn't kept for the sake of small pages of it.
func TestPagesOfAnEarlierStateAreNotKept(t *testing.T) {
	t.Parallel()
	var p pages
	var last *projection.Line
	var lastPage *content
	for i := range 20 {
		var products []projection.Product
		for n := range i + 1 {
			products = append(products, projection.Product{Image: "deb", Version: fmt.Sprint(n), Variant: events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"},
				Fingerprint: fmt.Sprintf("%064d", n), Metadata: projection.File{Format: "incus.tar.xz"}, Root: projection.File{Format: "squashfs"},
				KeyedAt: time.Unix(int64(n), 0), Published: projection.Change{Sequence: events.Sequence(n + 1)}})
		}
		tables := projection.NewTables(products, nil, []projection.Image{{Name: "deb", Visibility: events.Public}})
		for _, query := range []url.Values{{"limit": {"1"}}, {"limit": {"1"}}, {}} {
			var err error
			if lastPage, err = p.of(&state{tables: tables}, access.Principal{}, "deb", query); err != nil {
				t.Fatal(err)
			}
		}
		last = tables.Line("deb")
	}
	of := p.known["deb"]
	if len(p.known) != 1 || of.line != last || len(of.known) != 2 || p.bytes != of.bytes || p.bytes <= int(lastPage.body.Len()) || p.bytes > 2*int(lastPage.body.Len()) {
		t.Errorf("kept: %d images, %+v, %d bytes", len(p.known), of, p.bytes)
	}
}

func TestSignedDocumentsKeptAreBoundedByTheirBytes(t *testing.T) {
	t.Parallel()
	signer, _, err := sjson.Load(filepath.Join(t.TempDir(), "streams.key"))
	if err != nil {
		t.Fatal(err)
	}
	s := signing{signer: signer}
	of := func(text string) {
		t.Helper()
		if _, err := s.of(incus.ImagesPath, newContent(time.Time{}, pieces.Body{pieces.New([]byte(text))})); err != nil {
			t.Fatal(err)
		}
	}
	of("one")
	of("one")
	one := s.bytes
	if of("two"); len(s.known) != 2 || s.bytes != 2*one || one < len("one") {
		t.Errorf("%d documents are kept, %d bytes after %d", len(s.known), s.bytes, one)
	}
	s.bytes = maxSignedBytes
	if of("six"); len(s.known) != 1 || s.bytes != one {
		t.Errorf("over the bound %d documents are kept, %d bytes", len(s.known), s.bytes)
	}
}
