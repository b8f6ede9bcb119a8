package garbage_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/handlers/publication"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

const image = "image"

var (
	container = events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"}
	metadata  = append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, "metadata"...)
)

// yard is a log and a byte store, with consumers that publish.
type yard struct {
	t     testing.TB
	root  string
	log   *jetstream.Log
	store *blob.Store
	now   time.Time // of the collectors; zero: the real time
}

func newYard(t testing.TB) *yard {
	t.Helper()
	root := t.TempDir()
	store, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return &yard{t: t, root: root, log: natstest.Log(t), store: store}
}

// publications runs the consumers of a node until the test ends.
func (y *yard) publications() {
	y.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	p, err := publication.New(publication.Config{Log: y.log, Store: y.store, Logger: slog.New(slog.DiscardHandler), Pause: 5 * time.Millisecond, Attempts: 2})
	if err != nil {
		y.t.Fatal(err)
	}
	go func() { done <- p.Run(ctx) }()
	var once sync.Once
	y.t.Cleanup(func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				y.t.Errorf("publications ended: %v", err)
			}
		})
	})
}

func (y *yard) collector(change func(*garbage.Config)) *garbage.Collector {
	y.t.Helper()
	cfg := garbage.Config{Log: y.log, Store: y.store, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Clock: func() time.Time {
		if y.now.IsZero() {
			return time.Now()
		}
		return y.now
	}}
	if change != nil {
		change(&cfg)
	}
	c, err := garbage.New(cfg)
	if err != nil {
		y.t.Fatal(err)
	}
	return c
}

func (y *yard) collect(c *garbage.Collector, dry bool) garbage.Result {
	y.t.Helper()
	result, err := c.Collect(y.t.Context(), garbage.Request{DryRun: dry}, func(operations.Progress) {})
	if err != nil {
		y.t.Fatal(err)
	}
	return result
}

func digestOf(parts ...[]byte) events.Digest {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return events.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// root is a squashfs as far as its magic goes.
func root(text string) []byte { return append([]byte("hsqs"), text...) }

func (y *yard) decide(decide func(context.Context) ([]events.Change, error)) error {
	_, err := y.log.Decide(context.Background(), jetstream.Cause{Actor: "test"}, decide)
	return err
}

// present says whether a session for some bytes is told that they are there, and on which state of the blob: as POST /api/images does.
func (y *yard) present(ctx context.Context, digest events.Digest, size int64) (events.Current[events.Blob], bool, error) {
	known, err := y.log.Blob(ctx, digest)
	if err != nil || known.Sequence == 0 || known.State.State != events.BlobIsPresent {
		return known, false, err
	}
	there, err := y.store.HasBlob(digest.Hex(), size)
	return known, there, err
}

// upload opens a session for a container's root, brings the bytes where the session isn't told that they are there, and gives its id.
func (y *yard) upload(version string, data []byte, told bool) (id string, present bool, err error) {
	ctx := context.Background()
	id = uuid.Must(uuid.NewV7()).String()
	size, digest := int64(len(data)), digestOf(data)
	if err := y.store.CreateSession(id); err != nil {
		return id, false, err
	}
	err = y.decide(func(ctx context.Context) ([]events.Change, error) {
		held, err := y.log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		described, err := y.log.Image(ctx, image)
		if err != nil {
			return nil, err
		}
		file := events.UploadFile{Format: "rootfs.squashfs", Size: size, State: events.FilePending}
		cmd := events.InitiateUpload{Version: held, Image: described, IsArchitecture: func(string) bool { return false }}
		known, there, err := y.present(ctx, digest, size)
		if err != nil {
			return nil, err
		}
		if present = told && there; present {
			file.State, file.Digest = events.FilePresent, digest
			cmd.Present = map[events.Digest]events.Current[events.Blob]{digest: known}
		}
		cmd.Session = events.Upload{ID: id, Image: image, Version: version, Visibility: events.Public, InitiatedAt: time.Now().UTC(), InitiatedBy: "test",
			Variants: []events.UploadVariant{{Variant: container, Files: []events.UploadFile{file},
				Metadata: &events.MadeFile{Format: events.FormatMetadata, Digest: digestOf(metadata), Data: metadata}}}}
		return events.Initiate(cmd)
	})
	if err != nil || present {
		return id, present, err
	}
	intake, err := y.store.CreateIntake(ctx, id, 0, blob.IntakeSpec{SizeBytes: size})
	if err != nil {
		return id, false, err
	}
	if _, err := intake.Append(ctx, bytes.NewReader(data)); err != nil {
		return id, false, err
	}
	name := container.Name() + ".rootfs.squashfs"
	if err := y.store.LinkToIngress(ctx, id, 0, events.JobIDFor(id), name); err != nil {
		return id, false, err
	}
	return id, false, y.decide(func(ctx context.Context) ([]events.Change, error) {
		current, err := y.log.Upload(ctx, id)
		if err != nil {
			return nil, err
		}
		return events.Complete(events.CompleteFile{File: events.FileRef{Variant: container.Name(), Format: "rootfs.squashfs"}, Size: size,
			Digest: digest, Ingress: name, At: time.Now().UTC()}, current)
	})
}

// ended waits for the end of a session's job.
func (y *yard) ended(upload string) (events.Job, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	tail, err := y.log.Tail(ctx, 0, events.JobEntity(events.JobIDFor(upload)).Subject())
	if err != nil {
		return events.Job{}, err
	}
	defer tail.Close()
	for {
		batch, err := tail.Next(ctx, 10)
		if err != nil {
			return events.Job{}, err
		}
		for _, event := range batch {
			if j := event.Fact.(events.JobFact).After(); j.State == events.JobStateSucceeded || j.State == events.JobStateFailed {
				return j, nil
			}
		}
	}
}

func (y *yard) publish(version string, data []byte) {
	y.t.Helper()
	id, _, err := y.upload(version, data, true)
	if err != nil {
		y.t.Fatal(err)
	}
	if job, err := y.ended(id); err != nil || job.State != events.JobStateSucceeded {
		y.t.Fatalf("job of %s is %s: %+v, %v", version, job.State, job.Problem, err)
	}
}

func (y *yard) withdraw(version string) error {
	return y.decide(func(ctx context.Context) ([]events.Change, error) {
		current, err := y.log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		at := y.now
		if at.IsZero() {
			at = time.Now()
		}
		return events.Withdraw(events.WithdrawVersion{Version: current, Withdrawal: events.Withdrawal{Reason: "bad", By: "test", At: at.UTC()}})
	})
}

func (y *yard) restore(version string) error {
	return y.decide(func(ctx context.Context) ([]events.Change, error) {
		current, err := y.log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		return events.Restore(current, "test", time.Now().UTC())
	})
}

// derive records a further file of a version, whose bytes are made now: as handlers/derive does. A base makes it a delta.
func (y *yard) derive(version, format, base string, data []byte) error {
	scratch, err := y.store.NewScratch()
	if err != nil {
		return err
	}
	defer scratch.Close() //nolint:errcheck // of a test's folder
	if err := writeFile(scratch.Dir(), "made", data); err != nil {
		return err
	}
	digest := digestOf(data)
	return y.decide(func(ctx context.Context) ([]events.Change, error) {
		held, err := y.log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		current, err := y.log.Derived(ctx, image, version, container.Name(), format)
		if err != nil {
			return nil, err
		}
		made := events.Derived{Image: image, Version: version, Variant: container.Name(), Format: format, Kind: events.DerivedFormat, Digest: digest, Size: int64(len(data)),
			MediaType: "text/plain", MadeAt: time.Now().UTC(), From: &events.DerivedSource{Format: "rootfs.squashfs", Digest: digest}, How: &events.DerivedHow{Tool: "test"}}
		if base != "" {
			made.Kind, made.BaseVersion, made.BaseDigest = events.DerivedDelta, base, digest
		}
		recorded, err := events.RecordDerived(made, held, current)
		if err != nil || len(recorded) == 0 {
			return nil, err
		}
		known, err := y.log.SettledBlob(ctx, digest)
		if err != nil {
			return nil, err
		}
		if err := scratch.Admit(ctx, "made", digest.Hex(), int64(len(data))); err != nil {
			return nil, err
		}
		return append(events.PromoteBlob(events.Blob{Digest: digest, Size: int64(len(data)), MediaType: "text/plain"}, known), recorded...), nil
	})
}
