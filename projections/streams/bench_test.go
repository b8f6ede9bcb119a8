package streams_test

import (
	"fmt"
	"testing"

	"github.com/imgsrv/imgsrv/projections/streams"
)

// Each publication derives the documents anew; this is what that costs without the database.
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
				set, err := streams.Documents(products, aliases, public(images...))
				if err != nil {
					b.Fatal(err)
				}
				size = len(set.Images)
			}
			b.ReportMetric(float64(size), "document-bytes")
		})
	}
}
