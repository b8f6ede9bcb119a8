package streams_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/projections/streams"
)

// lineOf is a public image with so many versions, one container in each, of which latest is the newest.
func lineOf(versions int) *streams.Tables {
	var products []streams.Product
	for n := range versions {
		products = append(products, streams.Product{Image: "deb", Version: fmt.Sprint(n), Variant: events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"},
			Fingerprint: fmt.Sprintf("%064d", n), Metadata: streams.File{Format: "incus.tar.xz"}, Root: streams.File{Format: "squashfs"},
			KeyedAt: noon(n), Published: streams.Change{Sequence: events.Sequence(n + 1), At: noon(n)}})
	}
	return streams.NewTables(products, []streams.Alias{{Image: "deb", Alias: "latest", Version: fmt.Sprint(versions - 1)}}, []streams.Image{{Name: "deb", Visibility: events.Public}})
}

// What the pages of an image have in common is found out once, whoever asks first.
func TestPagesAreMadeAtTheSameTime(t *testing.T) {
	t.Parallel()
	line := lineOf(50).Line("deb")
	var readers sync.WaitGroup
	for n := range 50 {
		readers.Go(func() {
			after := ""
			if n > 0 {
				after = fmt.Sprint(50 - n)
			}
			page, known, err := line.Page(after, 1)
			want := fmt.Sprintf(`"aliases":"deb/%d"`, 49-n)
			if n == 0 {
				want = `"aliases":"deb,deb/49,deb/latest"`
			}
			if err != nil || !known || !strings.Contains(string(page.Body), want) || strings.Count(string(page.Body), `"aliases"`) != 1 {
				t.Errorf("after %q: %s, %v", after, page.Body, err)
			}
		})
	}
	readers.Wait()
}

// BenchmarkPage measures a page of 100 versions out of 10,000, once the first one was made.
func BenchmarkPage(b *testing.B) {
	line := lineOf(10_000).Line("deb")
	for b.Loop() {
		if _, known, err := line.Page("5000", 100); err != nil || !known {
			b.Fatal(err)
		}
	}
}
