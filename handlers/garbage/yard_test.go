package garbage_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/handlers/publication"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

const image = "image"

// yard is works with consumers that publish.
type yard struct {
	*workstest.Works
	now time.Time // of the collectors; zero: the real time
}

func newYard(t testing.TB) *yard {
	t.Helper()
	return &yard{Works: workstest.New(t)}
}

// clock is the time of the collectors.
func (y *yard) clock() time.Time {
	if y.now.IsZero() {
		return time.Now()
	}
	return y.now
}

// publications runs the consumers of a node until the test ends.
func (y *yard) publications() {
	y.T.Helper()
	p, err := publication.New(publication.Config{Log: y.Log, Store: y.Store, Logger: slog.New(slog.DiscardHandler), Pause: 5 * time.Millisecond, Attempts: 2})
	if err != nil {
		y.T.Fatal(err)
	}
	workstest.Run(y.T, p.Run)
}

func (y *yard) collector(change func(*garbage.Config)) *garbage.Collector {
	y.T.Helper()
	cfg := garbage.Config{Log: y.Log, Store: y.Store, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Clock: y.clock}
	if change != nil {
		change(&cfg)
	}
	c, err := garbage.New(cfg)
	if err != nil {
		y.T.Fatal(err)
	}
	return c
}

func (y *yard) collect(c *garbage.Collector, dry bool) garbage.Result {
	y.T.Helper()
	result, err := c.Collect(y.T.Context(), garbage.Request{DryRun: dry}, func(operations.Progress) {})
	if err != nil {
		y.T.Fatal(err)
	}
	return result
}

// present says whether a session for some bytes is told that they are there, and on which state of the blob: as POST /api/images does.
func (y *yard) present(ctx context.Context, digest events.Digest, size int64) (events.Current[events.Blob], bool, error) {
	known, err := y.Log.Blob(ctx, digest)
	if err != nil || known.Sequence == 0 || known.State.State != events.BlobIsPresent {
		return known, false, err
	}
	there, err := y.Store.HasBlob(digest.Hex(), size)
	return known, there, err
}

// upload opens a session for a container's root, brings the bytes where the session isn't told that they are there, and gives its id.
func (y *yard) upload(version string, data []byte, told bool) (id string, present bool, err error) {
	u := workstest.Session(image, version, int64(len(data)))
	err = y.Decide(func(ctx context.Context) ([]events.Change, error) {
		held, err := y.Log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		described, err := y.Log.Image(ctx, image)
		if err != nil {
			return nil, err
		}
		file := &u.Variants[0].Files[0]
		cmd := events.InitiateUpload{Version: held, Image: described, IsArchitecture: workstest.NoArchitecture}
		known, there, err := y.present(ctx, eventstest.Digest(data), file.Size)
		if err != nil {
			return nil, err
		}
		file.State, file.Digest = events.FilePending, ""
		if present = told && there; present {
			file.State, file.Digest = events.FilePresent, known.State.Digest
			cmd.Present = map[events.Digest]events.Current[events.Blob]{file.Digest: known}
		}
		cmd.Session = u
		return events.Initiate(cmd)
	})
	if err == nil && !present {
		err = y.Bring(u.ID, data)
	}
	return u.ID, present, err
}

// ended waits for the end of a session's job.
func (y *yard) ended(upload string) (events.Job, error) {
	return y.AwaitJob(upload, func(j events.Job) bool {
		return j.State == events.JobStateSucceeded || j.State == events.JobStateFailed
	})
}

func (y *yard) publish(version string, data []byte) {
	y.T.Helper()
	id, _, err := y.upload(version, data, true)
	if err != nil {
		y.T.Fatal(err)
	}
	if job, err := y.ended(id); err != nil || job.State != events.JobStateSucceeded {
		y.T.Fatalf("job of %s is %s: %+v, %v", version, job.State, job.Problem, err)
	}
}

func (y *yard) withdraw(version string) error {
	return y.Decide(func(ctx context.Context) ([]events.Change, error) {
		current, err := y.Log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		return events.Withdraw(events.WithdrawVersion{Version: current, Withdrawal: events.Withdrawal{Reason: "bad", By: "test", At: y.clock().UTC()}})
	})
}

func (y *yard) restore(version string) error {
	return y.Decide(func(ctx context.Context) ([]events.Change, error) {
		current, err := y.Log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		return events.Restore(current, "test", time.Now().UTC())
	})
}

// derive records a further file of a version, whose bytes are made now: as handlers/derive does. A base makes it a delta.
func (y *yard) derive(version, format, base string, data []byte) error {
	scratch, err := y.Store.NewScratch()
	if err != nil {
		return err
	}
	defer scratch.Close() //nolint:errcheck // of a test's folder
	if err := writeFile(scratch.Dir(), "made", data); err != nil {
		return err
	}
	digest := eventstest.Digest(data)
	return y.Decide(func(ctx context.Context) ([]events.Change, error) {
		held, err := y.Log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		current, err := y.Log.Derived(ctx, image, version, workstest.Container.Name(), format)
		if err != nil {
			return nil, err
		}
		made := events.Derived{Image: image, Version: version, Variant: workstest.Container.Name(), Format: format, Kind: events.DerivedFormat, Digest: digest, Size: int64(len(data)),
			MediaType: "text/plain", MadeAt: time.Now().UTC(), From: &events.DerivedSource{Format: workstest.RootFormat, Digest: digest}, How: &events.DerivedHow{Tool: "test"}}
		if base != "" {
			made.Kind, made.BaseVersion, made.BaseDigest = events.DerivedDelta, base, digest
		}
		recorded, err := events.RecordDerived(made, held, current)
		if err != nil || len(recorded) == 0 {
			return nil, err
		}
		known, err := y.Log.SettledBlob(ctx, digest)
		if err != nil {
			return nil, err
		}
		if err := scratch.Admit(ctx, "made", digest.Hex(), int64(len(data))); err != nil {
			return nil, err
		}
		return append(events.PromoteBlob(events.Blob{Digest: digest, Size: int64(len(data)), MediaType: "text/plain"}, known), recorded...), nil
	})
}
