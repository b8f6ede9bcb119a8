package scrub_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/promotion"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// works is a log and a storage, with nodes that scrub it.
type works struct {
	*workstest.Works // the store is of a node that doesn't scrub

	errors atomic.Int64
}

func newWorks(t testing.TB) *works {
	t.Helper()
	return &works{Works: workstest.New(t)}
}

// Handle counts errors that are logged, which an operator is woken by.
func (w *works) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		w.errors.Add(1)
	}
	return nil
}

func (w *works) Enabled(context.Context, slog.Level) bool { return true }

func (w *works) WithAttrs([]slog.Attr) slog.Handler { return w }

func (w *works) WithGroup(string) slog.Handler { return w }

// node is a node that scrubs, with its view of the storage.
func (w *works) node(change func(*scrub.Config)) (*scrub.Scrubber, *blob.Store) {
	w.T.Helper()
	store := w.OpenStore()
	cfg := scrub.Config{Log: w.Log, Store: store, Logger: slog.New(w), Meter: noop.Meter{}}
	if change != nil {
		change(&cfg)
	}
	s, err := scrub.New(cfg)
	if err != nil {
		w.T.Fatal(err)
	}
	if err := s.CatchUp(w.T.Context()); err != nil {
		w.T.Fatal(err)
	}
	return s, store
}

// promote is what a publication does with a file that has arrived at a node.
func (w *works) promote(store *blob.Store, data []byte) error {
	job := uuid.NewString()
	if err := store.WriteIngress(job, "f", data); err != nil {
		return err
	}
	b := events.Blob{Digest: eventstest.Digest(data), Size: int64(len(data)), MediaType: "text/plain"}
	_, err := w.Log.Decide(w.T.Context(), jetstream.Cause{Actor: "imgsrv"}, func(ctx context.Context) ([]events.Change, error) {
		return promotion.Blob(ctx, w.Log, store, b, func(ctx context.Context, _ events.Blob) error {
			return store.Admit(ctx, job, "f", b.Digest.Hex(), b.Size)
		})
	})
	return errors.Join(err, store.RemoveIngress(job))
}

func (w *works) put(data []byte) events.Digest {
	w.T.Helper()
	if err := w.promote(w.Store, data); err != nil {
		w.T.Fatal(err)
	}
	return eventstest.Digest(data)
}

// publish publishes blobs as the formats of a version of an image.
func (w *works) publish(version, upload string, formats ...events.ManifestFormat) {
	w.T.Helper()
	manifest := &events.Manifest{Image: "image", Version: version, UploadID: upload, Variants: []events.ManifestVariant{{
		Variant: events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"}, Formats: formats}}}
	w.Append(events.VersionPublished{Version: events.Version{Image: "image", Version: version, State: events.StatePublished, Manifest: manifest}})
}

// rot changes one bit of a blob where it lies.
func (w *works) rot(d events.Digest) {
	w.T.Helper()
	f := w.open(d)
	defer f.Close() //nolint:errcheck // the write is looked at
	one := make([]byte, 1)
	if _, err := f.ReadAt(one, 1); err != nil {
		w.T.Fatal(err)
	}
	one[0] ^= 16
	if _, err := f.WriteAt(one, 1); err != nil {
		w.T.Fatal(err)
	}
}

func (w *works) open(d events.Digest) *os.File {
	w.T.Helper()
	if err := os.Chmod(w.Path(d), 0o644); err != nil {
		w.T.Fatal(err)
	}
	f, err := os.OpenFile(w.Path(d), os.O_RDWR, 0)
	if err != nil {
		w.T.Fatal(err)
	}
	return f
}

func (w *works) damage(d events.Digest) *events.Damage {
	w.T.Helper()
	current, err := w.Log.Blob(w.T.Context(), d)
	if err != nil {
		w.T.Fatal(err)
	}
	return current.State.Damage
}

// facts are the types of all facts about a blob, in order.
func (w *works) facts(d events.Digest) (types []events.Type) {
	w.T.Helper()
	head, err := w.Log.Head(w.T.Context())
	if err != nil {
		w.T.Fatal(err)
	}
	err = w.Log.Read(w.T.Context(), head, []string{events.BlobEntity(d).Subject()}, func(e events.Event) error {
		types = append(types, e.Type)
		return nil
	})
	if err != nil {
		w.T.Fatal(err)
	}
	return types
}

// await waits for a fact of a type about a blob.
func (w *works) await(d events.Digest, typ events.Type) {
	w.T.Helper()
	if _, err := w.Await(events.BlobEntity(d), func(fact events.Fact) bool { return fact.Type() == typ }); err != nil {
		w.T.Fatal(err)
	}
}

func (w *works) fsck(s *scrub.Scrubber, opt scrub.Options) *scrub.FsckReport {
	w.T.Helper()
	var last int64
	report, err := s.Fsck(w.T.Context(), opt, func(done, total int64) {
		if done < 0 || done > total {
			w.T.Errorf("progress: %d of %d", done, total)
		}
		last = total - done
	})
	if err != nil {
		w.T.Fatal(err)
	}
	if last != 0 {
		w.T.Errorf("the progress ends %d bytes before the end", last)
	}
	return report
}

// served says whether a node would send the blob's bytes, which are then the right ones.
func (w *works) served(store *blob.Store, d events.Digest) bool {
	w.T.Helper()
	f, _, err := store.OpenBlob(d.Hex())
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(f)
	if err != nil || eventstest.Digest(data) != d {
		w.T.Errorf("wrong bytes of %s are served: %v", d, err)
	}
	return true
}

const (
	promoted = events.Type("imgsrv.blob.promoted.v1")
	damaged  = events.Type("imgsrv.blob.damaged.v1")
	repaired = events.Type("imgsrv.blob.repaired.v1")
)
