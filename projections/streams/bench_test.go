package streams_test

import (
	"fmt"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/projections/streams"
)

// BenchmarkApply measures what an event costs the projection, one transaction each, with so many versions in its tables.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1000, 10_000, 100_000} {
		b.Run(fmt.Sprintf("versions=%d", n), func(b *testing.B) {
			s := newStream(b)
			fact := func(i int) events.Fact {
				return published(fmt.Sprintf("image-%d", i%(n/200)), fmt.Sprintf("%d.0", i), fmt.Sprint(i), events.Public, 60*i)
			}
			for from := 0; from < n; from += 1000 {
				var facts []events.Fact
				for i := range 1000 {
					facts = append(facts, fact(from+i))
				}
				s.append(facts...)
			}
			if _, err := s.pool.Exec(b.Context(), `ANALYZE`); err != nil {
				b.Fatal(err)
			}
			i := n
			for b.Loop() {
				s.append(fact(i))
				i++
			}
		})
	}
}

// BenchmarkDocuments measures what a node's first request costs it without the database: documents of all that is published.
func BenchmarkDocuments(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		var products []streams.Product
		for i := range n {
			products = append(products, product(i+1, fmt.Sprintf("image-%d", i%50), fmt.Sprintf("%d.0", i), "amd64", vm, "default"))
		}
		var images []string
		var aliases []streams.Alias
		for i := range 50 {
			images = append(images, fmt.Sprintf("image-%d", i))
			aliases = append(aliases, alias(images[i], "latest", fmt.Sprintf("%d.0", i)))
		}
		b.Run(fmt.Sprintf("products=%d", n), func(b *testing.B) {
			size := 0
			for b.Loop() {
				set, err := allDocuments(products, aliases, public(images...))
				if err != nil {
					b.Fatal(err)
				}
				size = len(set.Images)
			}
			b.ReportMetric(float64(size), "document-bytes")
		})
	}
}
