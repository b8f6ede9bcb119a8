package scrub_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/handlers/scrub"
)

// BenchmarkFsck checks a storage of 256 MiB, in 16 large files and 1,000 small ones, at different rates.
func BenchmarkFsck(b *testing.B) {
	w := newWorks(b)
	random := rand.NewChaCha8([32]byte{1})
	total := int64(0)
	for i := range 1016 {
		data := make([]byte, 600)
		if i < 16 {
			data = make([]byte, 16<<20)
		}
		_, _ = random.Read(data)
		w.put(data)
		total += int64(len(data))
	}
	s, _ := w.node(nil)
	for _, rate := range []int64{32 << 20, 128 << 20, 0} {
		name := "unlimited"
		if rate > 0 {
			name = fmt.Sprintf("%dMiB", rate>>20)
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(total)
			began := time.Now()
			for b.Loop() {
				report, err := s.Fsck(b.Context(), scrub.Options{BytesPerSecond: rate}, func(int64, int64) {})
				if err != nil || report.Blobs != 1016 || len(report.Damaged) != 0 {
					b.Fatal(report, err)
				}
			}
			b.ReportMetric(float64(total)*float64(b.N)/(1<<20)/time.Since(began).Seconds(), "MiB/s")
		})
	}
}
