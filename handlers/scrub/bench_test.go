package scrub_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/promotion"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// BenchmarkFsck checks a storage of 256 MiB, in 16 large files and 1,000 small ones, at different rates.
func BenchmarkFsck(b *testing.B) {
	store, err := blob.Open(filepath.Join(b.TempDir(), "storage"))
	if err != nil {
		b.Fatal(err)
	}
	log := natstest.Log(b)
	random := rand.NewChaCha8([32]byte{1})
	total := int64(0)
	for i := range 1016 {
		data := make([]byte, 600)
		if i < 16 {
			data = make([]byte, 16<<20)
		}
		_, _ = random.Read(data)
		name := fmt.Sprint("b", i)
		if err := store.WriteIngress("bench", name, data); err != nil {
			b.Fatal(err)
		}
		blob := events.Blob{Digest: digestOf(data), Size: int64(len(data))}
		_, err := log.Decide(b.Context(), jetstream.Cause{}, func(ctx context.Context) ([]events.Change, error) {
			return promotion.Blob(ctx, log, store, blob, func(ctx context.Context, _ events.Blob) error {
				return store.Admit(ctx, "bench", name, blob.Digest.Hex(), blob.Size)
			})
		})
		if err != nil {
			b.Fatal(err)
		}
		total += blob.Size
	}
	s, err := scrub.New(scrub.Config{Log: log, Store: store, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.CatchUp(b.Context()); err != nil {
		b.Fatal(err)
	}
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
