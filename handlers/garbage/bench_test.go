package garbage_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

// BenchmarkCollect looks for garbage among 10,000 versions, each with an ended session and job, two files and the blob of a
// derived file, and then collects a tenth of them, which was withdrawn: how long the look takes and each blob, and how much more
// memory is in use meanwhile.
func BenchmarkCollect(b *testing.B) {
	const versions = 10_000
	y := newYard(b)
	long := time.Now().UTC().Add(-30 * 24 * time.Hour)
	var group errgroup.Group
	group.SetLimit(16)
	for i := range versions {
		group.Go(func() error { return y.fill(i, i%10 == 0, long) })
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	y.now = time.Now().Add(2 * time.Hour)
	c := y.collector(nil)
	collect := func(request garbage.Request) (result garbage.Result, took time.Duration, heap uint64) {
		runtime.GC()
		var before, now runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		result, err := c.Collect(b.Context(), request, func(operations.Progress) {
			runtime.ReadMemStats(&now)
			heap = max(heap, now.HeapAlloc)
		})
		if err != nil {
			b.Fatal(err)
		}
		return result, time.Since(began), heap - min(heap, before.HeapAlloc)
	}
	for b.Loop() {
		dry, took, heap := collect(garbage.Request{DryRun: true})
		b.ReportMetric(took.Seconds(), "s/look")
		b.ReportMetric(float64(dry.Events), "events")
		b.ReportMetric(float64(heap)/(1<<20), "MiB")
		done, took, _ := collect(garbage.Request{})
		b.ReportMetric(took.Seconds(), "s/collection")
		b.ReportMetric(float64(done.Blobs), "blobs")
	}
}

// fill appends what a published version leaves in the log, and puts its files into the store, empty ones.
func (y *yard) fill(i int, withdrawn bool, at time.Time) error {
	name := fmt.Sprint(i)
	upload := fmt.Sprintf("019aba40-0000-7000-8000-%012d", i)
	var formats []events.ManifestFormat
	var changes []events.Change
	for _, format := range []string{workstest.RootFormat, events.FormatMetadata, "derived"} {
		digest := eventstest.Digest(name + format)
		path := y.Path(digest)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o750), os.WriteFile(path, nil, 0o444)); err != nil {
			return err
		}
		changes = append(changes, events.Change{Fact: events.BlobPromoted{Blob: events.Blob{Digest: digest, MediaType: "application/octet-stream"}}})
		if format != "derived" {
			formats = append(formats, events.ManifestFormat{Format: format, Digest: digest, MediaType: "application/octet-stream", Origin: events.OriginUploaded})
		}
	}
	v := events.Version{Image: image, Version: name, State: events.StatePublished, UploadID: upload,
		Manifest: &events.Manifest{Image: image, Version: name, UploadID: upload, PublishedAt: at, Visibility: events.Public,
			Variants: []events.ManifestVariant{{Variant: workstest.Container, Formats: formats}}}}
	version := events.Change{Fact: events.VersionPublished{Version: v}}
	if withdrawn {
		v.State, v.Withdrawal = events.StateWithdrawn, &events.Withdrawal{Reason: "old", By: "imgsrv", At: at}
		version.Fact = events.VersionWithdrawn{Version: v}
	}
	changes = append(changes, version,
		events.Change{Fact: events.UploadCompleted{Upload: events.Upload{ID: upload, Image: image, Version: name, State: events.SessionCompleted}}},
		events.Change{Fact: events.JobSucceeded{Job: events.Job{ID: events.JobIDFor(upload), Image: image, Version: name, State: events.JobStateSucceeded}}},
		events.Change{Fact: events.DerivedMade{Derived: events.Derived{Image: image, Version: name, Variant: workstest.Container.Name(), Format: "derived", Kind: events.DerivedFormat,
			State: events.DerivedIsMade, Digest: eventstest.Digest(name + "derived")}}})
	_, err := y.Log.Append(y.T.Context(), jetstream.Cause{}, changes...)
	return err
}
