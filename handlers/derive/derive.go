// Package derive makes further formats of published versions, as they are asked for by facts: one at a time, after
// the version is visible, and never in the way of a publication. It knows the log and the byte store, and nothing of
// HTTP or Postgres.
//
//	fact                          what follows                                        then
//	derived.requested          -> the file is made, verified, becomes a blob       -> derived.made
//	                              its tool is absent, and it is optional           -> derived.skipped
//	                              it couldn't be made                              -> derived.failed
//	derived.failed, retry at   -> at that time the same again
//
// The last fact of a file is right: a delivery about an earlier one is old. Where the process dies, the fact comes
// again after five seconds; what it left on the disk is removed at the next start.
package derive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/promotion"
	"github.com/imgsrv/imgsrv/internal/convert"
	"github.com/imgsrv/imgsrv/internal/imagefile"
	"github.com/imgsrv/imgsrv/store/blob"
)

const (
	attempts = 3
	// maxDeliveries of one fact: a work that ends the process each time is given up.
	maxDeliveries = 20
)

// Problems of derived files, beside those of package convert.
const (
	codeNoSource     = "no-source"      // the variant has no disk that the format can be made of
	codeNotPublished = "not-published"  // the version isn't there any more
	codeUnknown      = "unknown-format" // a newer release asked for it
	codeEndless      = "never-ended"    // each try ended the process
	codeStorage      = "storage"        // the disk, or another part of the server
)

// Config is what formats are made with.
type Config struct {
	Log       *jetstream.Log
	Store     *blob.Store
	Logger    *slog.Logger
	Meter     metric.Meter
	Converter *convert.Converter
	Workers   int              // formats made at once; 0: 1
	Pause     time.Duration    // after the first failure, which doubles; 0: a minute
	Clock     func() time.Time // nil: time.Now
	// Started, where given, is called before a format is made. It is for tests that stop a node at a chosen place.
	Started func(events.Derived)
}

// Deriver runs the consumer.
type Deriver struct {
	Config
	meters meters
}

// New makes the consumer; Run starts it.
func New(cfg Config) (*Deriver, error) {
	if cfg.Workers == 0 {
		cfg.Workers = 1
	}
	if cfg.Pause == 0 {
		cfg.Pause = time.Minute
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	m, err := newMeters(cfg.Meter)
	return &Deriver{Config: cfg, meters: m}, err
}

// Run makes what is asked for until ctx ends, and returns when the last worker has stopped.
func (d *Deriver) Run(ctx context.Context) error {
	if n, err := d.Store.SweepScratch(); err != nil {
		d.Logger.WarnContext(ctx, "what an earlier process was making stays on the disk until the next start", "error", err)
	} else if n > 0 {
		d.Logger.InfoContext(ctx, "removed what an earlier process was making", "folders", n)
	}
	consumer := jetstream.Consumer{Name: jetstream.ConsumerDerive, Subject: events.SubjectOfKind(events.KindDerived), Workers: d.Workers, Span: spanOf}
	return d.Log.Consume(ctx, consumer, d.handle)
}

// spanOf names what is worth a span in a trace.
func spanOf(e events.Event) string {
	if f, ok := e.Fact.(events.DerivedFact); ok && f.After().Kind == events.DerivedFormat && f.After().Pending() {
		return "derive " + f.After().Format
	}
	return ""
}

func (d *Deriver) handle(ctx context.Context, delivery jetstream.Delivery) error {
	fact, ok := delivery.Fact.(events.DerivedFact)
	if !ok || fact.After().Kind != events.DerivedFormat {
		return nil
	}
	file := fact.After()
	current, err := d.Log.Derived(ctx, file.Image, file.Version, file.Variant, file.Format)
	if err != nil || current.Sequence != delivery.Sequence || !current.State.Pending() {
		return err
	}
	if wait := delivery.Until(file.RetryAt, d.Clock()); wait > 0 {
		return &jetstream.RetryAfter{Delay: wait}
	}
	if delivery.Attempt > maxDeliveries {
		return d.failed(ctx, delivery, file, &convert.Error{Code: codeEndless, Text: fmt.Sprintf("making it was begun %d times and never ended", delivery.Attempt-1)})
	}
	began := time.Now()
	err = d.make(ctx, delivery, file)
	for pause := time.Second; blob.IsAway(err); pause *= 2 { // the storage is full or read-only: that counts no attempt
		d.Logger.WarnContext(ctx, "format waits for the storage", "image", file.Image, "version", file.Version, "format", file.Format, "error", err)
		if err := d.Store.Await(ctx, pause); err != nil {
			return err
		}
		err = d.make(ctx, delivery, file)
	}
	if ctx.Err() != nil || errors.Is(err, jetstream.ErrUnavailable) {
		return err
	}
	if err != nil {
		return d.failed(ctx, delivery, file, err)
	}
	d.meters.done(ctx, file.Format, resultMade, time.Since(began))
	return nil
}

// make makes the file, promotes it, and records it with what comes with it.
func (d *Deriver) make(ctx context.Context, delivery jetstream.Delivery, file events.Derived) (err error) {
	version, err := d.Log.Version(ctx, file.Image, file.Version)
	if err != nil {
		return err
	}
	if version.State.State != events.StatePublished || version.State.Manifest == nil {
		return &convert.Error{Code: codeNotPublished, Text: "there is no such published version"}
	}
	if !convert.Known(file.Format) {
		return &convert.Error{Code: codeUnknown, Text: "this release doesn't know how to make " + file.Format}
	}
	from, driver, ok := sourceOf(version.State.Manifest, file.Variant)
	if !ok {
		return &convert.Error{Code: codeNoSource, Text: "the variant has no qcow2 and no disk.raw to make it of"}
	}
	if d.Started != nil {
		d.Started(file)
	}
	scratch, err := d.Store.NewScratch()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	made, err := d.convert(ctx, scratch, file.Format, from, driver)
	if err != nil {
		return err
	}
	_, err = d.Log.Decide(ctx, causeOf(delivery, "make"), func(ctx context.Context) ([]events.Change, error) {
		return d.record(ctx, scratch, file, from, made)
	})
	return err
}

func (d *Deriver) convert(ctx context.Context, scratch *blob.Scratch, format string, from events.ManifestFormat, driver string) ([]convert.File, error) {
	path, err := d.Store.BlobPath(from.Digest.Hex())
	if err != nil {
		return nil, err
	}
	free, err := d.Store.Free()
	if err != nil {
		return nil, err
	}
	room := free - free/10 // uploads go on meanwhile
	return d.Converter.Make(ctx, format, convert.Source{Path: path, Format: from.Format, Driver: driver}, scratch.Dir(), room)
}

// sourceOf picks the disk of a variant.
func sourceOf(m *events.Manifest, variant string) (from events.ManifestFormat, driver string, ok bool) {
	for _, v := range m.Variants {
		if v.Name() != variant {
			continue
		}
		if from, ok = v.SourceDisk(); ok && from.Disk == nil {
			return from, convert.DriverRaw, true
		}
		return from, convert.DriverQcow2, ok
	}
	return from, "", false
}

// record keeps the bytes of what was made, and decides the facts. What comes with the file, and was there before, stays as it is.
func (d *Deriver) record(ctx context.Context, scratch *blob.Scratch, file events.Derived, from events.ManifestFormat, made []convert.File) ([]events.Change, error) {
	version, err := d.Log.Version(ctx, file.Image, file.Version)
	if err != nil {
		return nil, err
	}
	var changes []events.Change
	kept := map[events.Digest]bool{}
	for _, f := range made {
		current, err := d.Log.Derived(ctx, file.Image, file.Version, file.Variant, f.Format)
		if err != nil {
			return nil, err
		}
		if f.Format == file.Format && !current.State.Pending() {
			return nil, nil // somebody was faster, or doesn't want it any more
		}
		next := events.Derived{Image: file.Image, Version: file.Version, Variant: file.Variant, Format: f.Format, Kind: events.DerivedFormat,
			Digest: events.Digest("sha256:" + f.SHA256), Size: f.Size, MediaType: mediaType(f.Format), MadeAt: d.Clock().UTC(),
			From: &events.DerivedSource{Format: from.Format, Digest: from.Digest},
			How:  &events.DerivedHow{Tool: f.Tool, ToolVersion: f.Version, Arguments: f.Arguments, Verified: f.Verified}}
		recorded, err := events.RecordDerived(next, version, current)
		if err != nil {
			return nil, err
		}
		if len(recorded) == 0 {
			continue
		}
		if !kept[next.Digest] {
			kept[next.Digest] = true
			b := events.Blob{Digest: next.Digest, Size: next.Size, MediaType: next.MediaType}
			promoted, err := promotion.Blob(ctx, d.Log, d.Store, b, func(ctx context.Context, _ events.Blob) error {
				return scratch.Admit(ctx, f.Format, f.SHA256, f.Size)
			})
			if err != nil {
				return nil, err
			}
			changes = append(changes, promoted...)
		}
		changes = append(changes, recorded...)
	}
	return changes, nil
}

func mediaType(format string) string {
	if format == convert.MapFormat {
		return "application/json"
	}
	return imagefile.MediaType(format)
}

// failed records what went wrong. What another try may mend is tried again, a few times.
func (d *Deriver) failed(ctx context.Context, delivery jetstream.Delivery, file events.Derived, cause error) error {
	problem := events.Problem{Code: codeStorage, Detail: cause.Error()}
	var known *convert.Error
	if errors.As(cause, &known) {
		problem.Code = known.Code
	}
	again, most := true, attempts
	switch problem.Code {
	case convert.CodeToolAbsent, convert.CodeTimeout, codeUnknown, codeEndless:
		again = false // somebody has to do something first, and then asks again
	case convert.CodeNoRoom:
		most = file.Attempts + 2 // room may be made at any time
	case codeNoSource, codeNotPublished:
		again, problem.Final = false, true
	}
	var retryAt time.Time
	if again && file.Attempts+1 < most {
		retryAt = d.Clock().UTC().Add(d.Pause << (2 * min(file.Attempts, attempts)))
	}
	// What can't be made here, or of this disk, is no failure where nobody insists. A disk that could be made but wasn't is one.
	skip := file.Optional && (problem.Code == convert.CodeToolAbsent || problem.Code == codeUnknown || problem.Code == codeNoSource)
	result := resultFailed
	if skip {
		result = resultSkipped
	}
	d.Logger.WarnContext(ctx, "format not made", "image", file.Image, "version", file.Version, "variant", file.Variant, "format", file.Format,
		"code", problem.Code, "skipped", skip, "retry_at", retryAt, "error", cause)
	_, err := d.Log.Decide(ctx, causeOf(delivery, "fail"), func(ctx context.Context) ([]events.Change, error) {
		current, err := d.Log.Derived(ctx, file.Image, file.Version, file.Variant, file.Format)
		switch {
		case err != nil || current.Sequence != delivery.Sequence:
			return nil, err
		case skip:
			return events.SkipDerived(current, problem), nil
		}
		return events.FailDerived(current, problem, retryAt), nil
	})
	if err == nil {
		d.meters.done(ctx, file.Format, result, 0)
	}
	return err
}

// causeOf is the cause of what a delivery leads to.
func causeOf(d jetstream.Delivery, key string) jetstream.Cause {
	return jetstream.Cause{Key: key + " " + d.ID, Actor: "imgsrv", Correlation: d.Correlation, Causation: d.ID}
}
