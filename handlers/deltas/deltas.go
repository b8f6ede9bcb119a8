// Package deltas makes, for each published version, deltas of its roots from those of the versions before, so that hosts that have an
// earlier one fetch less. It works behind the publication, one delta at a time: the whole files are visible first, and stay. It knows the
// log and the byte store, and nothing of HTTP or Postgres.
package deltas

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
	"github.com/imgsrv/imgsrv/store/blob"
)

const (
	// maxAttempts of one publication's deltas: they are a convenience, and what fails so often goes on failing.
	maxAttempts = 5
	// maxNewer is how many newer versions a version may have and still get deltas: behind a burst of publications, or after a time
	// without xdelta3, those that hosts fetch now come first.
	maxNewer = 8
	// retryPause is between attempts that failed.
	retryPause = 10 * time.Second
)

// mediaType of a delta: RFC 3284.
const mediaType = "application/vcdiff"

// Config is what deltas are made with.
type Config struct {
	Log    *jetstream.Log
	Store  *blob.Store
	Logger *slog.Logger
	Tool   *vcdiff.Tool
	// VersionsOf says from how many earlier versions a new one of an image gets deltas; 0: none.
	VersionsOf func(ctx context.Context, image string) (int, error)
	Clock      func() time.Time // nil: time.Now
}

// Deltas runs the consumer.
type Deltas struct {
	Config
}

// New makes the consumer; Run starts it.
func New(cfg Config) *Deltas {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	return &Deltas{cfg}
}

// Run handles publications until ctx ends. Those from before its first start on this log get no deltas.
func (d *Deltas) Run(ctx context.Context) error {
	head, err := d.Log.Head(ctx)
	if err != nil {
		return fmt.Errorf("begin to make deltas: %w", err)
	}
	return d.Log.Consume(ctx, jetstream.Consumer{Name: jetstream.ConsumerDeltas, Subject: events.SubjectOfKind(events.KindVersion),
		Workers: 1, From: head + 1, Span: spanOf}, d.handle)
}

// spanOf names what is worth a span in a trace.
func spanOf(e events.Event) string {
	if _, ok := e.Fact.(events.VersionPublished); ok {
		return "make deltas"
	}
	return ""
}

func (d *Deltas) handle(ctx context.Context, delivery jetstream.Delivery) error {
	fact, ok := delivery.Fact.(events.VersionPublished)
	if !ok || fact.Manifest == nil {
		return nil
	}
	err := d.Store.Insist(ctx, func() error { return d.makeAll(ctx, delivery, *fact.Manifest) }, func(why error) { // that counts no attempt
		d.Logger.WarnContext(ctx, "delta waits for the storage", "image", fact.Image, "version", fact.Version.Version, "error", why)
	})
	switch {
	case err == nil, ctx.Err() != nil, errors.Is(err, jetstream.ErrUnavailable):
		return err
	case delivery.Attempt < maxAttempts:
		d.Logger.WarnContext(ctx, "delta not made, will be tried again", "image", fact.Image, "version", fact.Version.Version, "error", err)
		return &jetstream.RetryAfter{Delay: retryPause, Err: err}
	}
	d.Logger.ErrorContext(ctx, "delta given up; the whole files are there", "image", fact.Image, "version", fact.Version.Version, "error", err)
	return nil
}

// makeAll makes the deltas of one version, from the newest base on. One that fails doesn't keep the others from being made.
func (d *Deltas) makeAll(ctx context.Context, delivery jetstream.Delivery, m events.Manifest) error {
	n, err := d.VersionsOf(ctx, m.Image)
	if err != nil || n == 0 {
		return err
	}
	versions, err := d.Log.Versions(ctx, m.Image)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range plan(m, newestFirst(versions), n) {
		if err := d.make(ctx, delivery, p); err != nil {
			if ctx.Err() != nil {
				return err
			}
			errs = append(errs, fmt.Errorf("%s of %s %s from %s: %w", p.variant, p.image, p.version, p.base.version, err))
		}
	}
	return errors.Join(errs...)
}
