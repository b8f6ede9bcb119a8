package blob

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const benchBytes = 256 << 20

// endless repeats its bytes: a reader that costs one copy.
type endless struct {
	data []byte
	at   int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.data[e.at:])
	e.at = (e.at + n) % len(e.data)
	return n, nil
}

// BenchmarkAppend compares Append, which hashes, syncs and saves its state, with a plain io.Copy of as much into a
// file, once into the page cache only (x-cached) and once with the fdatasync that makes it durable (x-synced): how
// many times as long Append takes. The sides take turns, so that a disturbed disk disturbs both.
func BenchmarkAppend(b *testing.B) {
	for _, c := range []struct {
		name   string
		prefix []byte
	}{
		{"one digest", nil},
		{"two digests", []byte("metadata")},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := openStore(b)
			if err := s.CreateSession("s"); err != nil {
				b.Fatal(err)
			}
			source := &endless{data: randomBytes(4 << 20)}
			var cached, synced, appended time.Duration
			b.SetBytes(benchBytes)
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				toCache, toDisk, err := plainCopy(filepath.Join(s.root, "plain"), source)
				if err != nil {
					b.Fatal(err)
				}
				cached, synced = cached+toCache, synced+toDisk
				in, err := s.CreateIntake(b.Context(), "s", i, IntakeSpec{SizeBytes: benchBytes, Prefix: c.prefix})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				began := time.Now()
				if n, err := in.Append(context.Background(), source); n != benchBytes || err != nil {
					b.Fatalf("Append = %d, %v", n, err)
				}
				appended += time.Since(began)
				b.StopTimer()
				if err := s.DropIntake("s", i); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(appended)/float64(cached), "x-cached")
			b.ReportMetric(float64(appended)/float64(synced), "x-synced")
		})
	}
}

// plainCopy measures the time until the bytes are in the page cache, and until they are on disk.
func plainCopy(path string, source io.Reader) (cached, synced time.Duration, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	_, err = io.Copy(f, io.LimitReader(source, benchBytes))
	cached = time.Since(began)
	if err == nil {
		err = syncData(f)
	}
	synced = time.Since(began)
	return cached, synced, errors.Join(err, f.Close(), os.Remove(path))
}

// BenchmarkSeam compares a write of one chunk through the seam with one without (x-direct). The sides take turns.
func BenchmarkSeam(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // its bytes are of no interest
	var disk Disk = osDisk{}
	chunk := randomBytes(chunkBytes)
	var direct, through time.Duration
	for b.Loop() {
		began := time.Now()
		if _, err := f.WriteAt(chunk, 0); err != nil {
			b.Fatal(err)
		}
		between := time.Now()
		if _, err := disk.WriteAt(f, chunk, 0); err != nil {
			b.Fatal(err)
		}
		direct, through = direct+between.Sub(began), through+time.Since(between)
	}
	b.ReportMetric(float64(through)/float64(direct), "x-direct")
}
