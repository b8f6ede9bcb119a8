package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

// BenchmarkBackup backs up 10,000 versions (or IMGSRV_BENCH_VERSIONS) with their whole histories, each with a disk of 64 KiB of its
// own, then a hundred versions more, and restores all of it. One run is enough: -benchtime 1x. It tells
// seconds: first-s, next-s and restore-s.
func BenchmarkBackup(b *testing.B) {
	versions := 10_000
	if n, err := strconv.Atoi(os.Getenv("IMGSRV_BENCH_VERSIONS")); err == nil {
		versions = n
	}
	const more = 100
	for b.Loop() {
		b.StopTimer()
		source := bench{workstest.New(b)}
		h := eventstest.New()
		h.Publish(b, eventstest.Session("debian", "1", "latest"))
		one := h.Batches
		var grown int
		grow := func(n int) {
			var group errgroup.Group
			group.SetLimit(8)
			for range n {
				grown++
				number := grown
				group.Go(func() error { return source.publish(b.Context(), one, number) })
			}
			if err := group.Wait(); err != nil {
				b.Fatal(err)
			}
		}
		grow(versions)
		place := b.TempDir()
		cfg := backup.Config{Log: source.Log, Blobs: source.Store, Logger: slog.New(slog.DiscardHandler)}
		back := func() backup.Result {
			began := time.Now()
			result, err := backup.Make(b.Context(), cfg, backup.Request{Place: place}, func(backup.Progress) {})
			if err != nil || len(result.Missing) > 0 {
				b.Fatal(err, result.Missing)
			}
			result.TookSeconds = time.Since(began).Seconds()
			return result
		}
		b.StartTimer()
		first := back()
		b.StopTimer()
		grow(more)
		b.StartTimer()
		next := back()
		b.StopTimer()
		if next.Copied.Count != more || first.Copied.Count != versions {
			b.Fatalf("copied %d blobs and then %d", first.Copied.Count, next.Copied.Count)
		}
		target, dir := workstest.New(b), b.TempDir()
		b.StartTimer()
		restored, err := backup.Restore(b.Context(), backup.RestoreConfig{Place: place, DataDir: dir, StorageDir: filepath.Join(dir, "storage"), Logger: cfg.Logger,
			OpenLog: func(context.Context) (*jetstream.Log, func() error, error) {
				return target.Log, func() error { return nil }, nil
			}}, func(backup.Progress) {})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(first.TookSeconds, "first-s")
		b.ReportMetric(next.TookSeconds, "next-s")
		b.ReportMetric(restored.TookSeconds, "restore-s")
		b.ReportMetric(float64(restored.Sequence), "events")
		b.ReportMetric(float64(restored.Blobs.Count), "blobs")
		b.ReportMetric(0, "ns/op")
	}
}

type bench struct{ *workstest.Works }

// publish appends the facts of one publication as another version, with bytes of its own.
func (s bench) publish(ctx context.Context, batches [][]events.Change, n int) error {
	content := make([]byte, 64<<10)
	sum := sha256.Sum256([]byte(strconv.Itoa(n)))
	for i := range content {
		content[i] = sum[i%len(sum)] ^ byte(i>>8)
	}
	digest := events.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(content)))
	if err := s.Store.Fill().Put(ctx, digest.Hex(), int64(len(content)), bytes.NewReader(content)); err != nil {
		return err
	}
	for _, batch := range batches {
		_, err := s.Log.Decide(ctx, jetstream.Cause{Actor: "bench"}, func(ctx context.Context) ([]events.Change, error) {
			var changes []events.Change
			for _, change := range batch {
				fact := another(change.Fact, n, digest, int64(len(content)))
				if entity := fact.Entity(); n > 1 && (entity.Kind == events.KindAlias || entity.Kind == events.KindImage) {
					continue // one for all, and all at once
				}
				last, _, err := s.Log.Last(ctx, fact.Entity())
				if err != nil {
					return nil, err
				}
				changes = append(changes, events.Change{Fact: fact, Expect: last.Sequence})
			}
			return changes, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// another is the same fact of the n-th version.
func another(fact events.Fact, n int, digest events.Digest, size int64) events.Fact {
	name, id := fmt.Sprintf("1.%d", n), fmt.Sprintf("0199c0de-0000-7000-8000-%012d", n)
	upload := func(u events.Upload) events.Upload {
		u.ID, u.JobID, u.Version = id, events.JobIDFor(id), name
		return u
	}
	job := func(j events.Job) events.Job {
		j.ID, j.UploadID, j.Version = events.JobIDFor(id), id, name
		return j
	}
	version := func(v events.Version) events.Version {
		v.Version, v.UploadID = name, id
		if v.Manifest != nil {
			m := *v.Manifest
			m.Version = name
			m.Variants = []events.ManifestVariant{{Variant: m.Variants[0].Variant, Formats: []events.ManifestFormat{{Format: "disk.raw", Digest: digest, Size: size, MediaType: "application/octet-stream", Origin: events.OriginUploaded}}}}
			v.Manifest = &m
		}
		return v
	}
	switch f := fact.(type) {
	case events.UploadInitiated:
		return events.UploadInitiated{Upload: upload(f.Upload)}
	case events.UploadFileCompleted:
		return events.UploadFileCompleted{Upload: upload(f.Upload), File: f.File}
	case events.UploadCompleted:
		return events.UploadCompleted{Upload: upload(f.Upload)}
	case events.VersionReserved:
		return events.VersionReserved{Version: version(f.Version)}
	case events.VersionPublished:
		return events.VersionPublished{Version: version(f.Version)}
	case events.JobQueued:
		return events.JobQueued{Job: job(f.Job)}
	case events.JobStepStarted:
		return events.JobStepStarted{Job: job(f.Job)}
	case events.JobStepCompleted:
		return events.JobStepCompleted{Job: job(f.Job), Step: f.Step}
	case events.JobSucceeded:
		return events.JobSucceeded{Job: job(f.Job)}
	case events.BlobPromoted:
		return events.BlobPromoted{Blob: events.Blob{Digest: digest, Size: size, MediaType: "application/octet-stream"}}
	}
	return fact
}
