// Package garbage removes the bytes that nothing needs any more: blobs that no version, derived file, session or job names,
// the rest of uploads that were abandoned, and the ingress of jobs that have ended. What is needed it reads from the log
// alone. It knows the log and the byte store, and nothing of HTTP or PostgreSQL.
//
// # Why it removes nothing that somebody is about to need
//
// docs/garbage.md has the proof. In short: the mark is a picture of the log as of one sequence, and a blob is given up
// with an expectation of its last fact in that picture. Whoever begins to need a blob later has a fact of it first, so
// that one of the two meets a conflict.
//
// # States of a blob, and who moves them
//
//	present    -> collecting  nobody needs it (append, expecting the state of the mark)   here
//	collecting -> collected   its file is in the trash (append, expecting collecting)     here
//	collecting -> present     the file couldn't be moved                                  here
//	any        -> present     somebody needs it                                           publication, derive, deltas
//
// A crash leaves the file in the store, in the trash, or nowhere; the blob's fact says which of it is meant, and Recover,
// at each start and before each run, makes it so. Several nodes may run it: where they meet, one of two appends meets a
// conflict and leaves the blob to the other.
package garbage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/store/blob"
)

const (
	// LeastGrace is the least time that bytes stay after the last need of them: clients keep the simplestreams index for an hour.
	LeastGrace = time.Hour
	// DefaultKeepWithdrawn is how long withdrawn versions can be restored.
	DefaultKeepWithdrawn = 7 * 24 * time.Hour
	// jobGrace is how long the bytes of a failed job wait for a retry; handlers/publication keeps its ingress as long.
	jobGrace = 24 * time.Hour
	// firstLook is the latest that a node looks for garbage after its start.
	firstLook = time.Hour

	byItself = "imgsrv"
)

// ErrRunning says that another collection runs on the same storage.
var ErrRunning = errors.New("another collection of garbage runs on this storage")

// Config is what a collector needs.
type Config struct {
	Log           *jetstream.Log
	Store         *blob.Store
	Logger        *slog.Logger
	Meter         metric.Meter
	Every         time.Duration    // between two collections by itself; 0: none
	Grace         time.Duration    // see Request; 0: LeastGrace
	KeepWithdrawn time.Duration    // see Request; 0: DefaultKeepWithdrawn
	Clock         func() time.Time // nil: time.Now

	// ShortGrace, for tests, lets a grace be shorter than LeastGrace, and 0 be 0.
	ShortGrace bool
	// Reached, where given, is called at each place at which a test may want to end the process.
	Reached func(place string, digest events.Digest)
}

// Request says what to collect.
type Request struct {
	DryRun bool
	// Grace is how long bytes stay after the last need of them; 0: as the server is set, at least LeastGrace.
	Grace time.Duration
	// KeepWithdrawn is how long withdrawn versions can be restored, at least Grace; 0: as the server is set.
	KeepWithdrawn time.Duration
}

// Collector collects garbage.
type Collector struct {
	Config
	meters *meters
}

// New makes a collector; Run lets it work by itself.
func New(cfg Config) (*Collector, error) {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Grace == 0 && !cfg.ShortGrace {
		cfg.Grace = LeastGrace
	}
	if cfg.KeepWithdrawn == 0 && !cfg.ShortGrace {
		cfg.KeepWithdrawn = DefaultKeepWithdrawn
	}
	if cfg.Reached == nil {
		cfg.Reached = func(string, events.Digest) {}
	}
	m, err := newMeters(cfg.Meter)
	if err != nil {
		return nil, err
	}
	c := &Collector{Config: cfg, meters: m}
	_, err = c.fill(Request{})
	return c, err
}

// Check refuses a request whose times are too short.
func (c *Collector) Check(r Request) error {
	_, err := c.fill(r)
	return err
}

// fill puts the server's settings where a request says nothing, and refuses what is too short.
func (c *Collector) fill(r Request) (Request, error) {
	if r.Grace == 0 {
		r.Grace = c.Grace
	}
	if r.KeepWithdrawn == 0 {
		r.KeepWithdrawn = c.KeepWithdrawn
	}
	switch {
	case r.Grace < LeastGrace && !c.ShortGrace:
		return r, &events.Error{Code: events.CodeInvalid, Text: "grace is at least an hour: so long clients keep the list of images",
			Fields: []events.FieldError{{Field: "grace", Value: r.Grace.String(), Text: "at least 1h"}}}
	case r.KeepWithdrawn < r.Grace:
		return r, &events.Error{Code: events.CodeInvalid, Text: "withdrawn versions are kept for at least the grace time",
			Fields: []events.FieldError{{Field: "keep_withdrawn", Value: r.KeepWithdrawn.String(), Text: "at least grace, " + r.Grace.String()}}}
	}
	return r, nil
}

// Run recovers what an ended process left, and then collects now and then, until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	if err := c.Recover(ctx); err != nil && !errors.Is(err, ErrRunning) && ctx.Err() == nil {
		c.Logger.WarnContext(ctx, "an interrupted collection of garbage is not mended; tried again with the next one", "error", err)
	}
	if c.Every <= 0 {
		<-ctx.Done()
		return nil
	}
	timer := time.NewTimer(min(c.Every, firstLook))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		_, err := c.Collect(ctx, Request{}, func(operations.Progress) {})
		switch {
		case errors.Is(err, ErrRunning):
			c.Logger.DebugContext(ctx, "garbage is being collected by another already")
		case err != nil && ctx.Err() == nil:
			c.Logger.WarnContext(ctx, "garbage not collected; tried again later", "in", c.Every, "error", err)
		}
		timer.Reset(c.Every)
	}
}

// Collect collects what is garbage at this moment, or, as a dry run, says what would be. The result is good beside an
// error too. [ErrRunning] where another does it.
func (c *Collector) Collect(ctx context.Context, request Request, report func(operations.Progress)) (result Result, err error) {
	request, err = c.fill(request)
	if err != nil {
		return result, err
	}
	began := time.Now()
	result = Result{DryRun: request.DryRun, Grace: request.Grace.String(), KeepWithdrawn: request.KeepWithdrawn.String(), Items: []Item{}}
	unlock, err := c.lock()
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	run := &run{Collector: c, request: request, now: c.Clock().UTC(), report: report, result: &result}
	err = run.all(ctx)
	if request.DryRun {
		return result, err
	}
	c.meters.done(ctx, result, time.Since(began), c.Clock(), err)
	if err == nil {
		c.Logger.InfoContext(ctx, "garbage collected", "blobs", result.Blobs, "bytes", result.Bytes, "versions", result.Versions, "derived", result.Derived,
			"sessions", result.Sessions, "ingress", result.Ingress, "kept", result.Kept, "took", time.Since(began))
	}
	return result, err
}

func (c *Collector) lock() (unlock func() error, err error) {
	unlock, err = c.Store.LockTrash()
	if errors.Is(err, blob.ErrBusy) {
		return nil, ErrRunning
	}
	return unlock, err
}

// Result is what was collected, or would be.
type Result struct {
	DryRun        bool   `json:"dry_run"`
	Grace         string `json:"grace" example:"1h0m0s"`
	KeepWithdrawn string `json:"keep_withdrawn" example:"168h0m0s"`
	Bytes         int64  `json:"bytes" doc:"That the file system got back"`
	Blobs         int    `json:"blobs"`
	Versions      int    `json:"versions" doc:"Withdrawn ones that can't be restored any more"`
	Derived       int    `json:"derived" doc:"Derived files taken out of their versions"`
	Sessions      int    `json:"sessions" doc:"Abandoned uploads"`
	Ingress       int    `json:"ingress" doc:"Folders of jobs that have ended"`
	Kept          int    `json:"kept" doc:"Blobs that somebody began to need meanwhile"`
	Marked        int    `json:"marked" doc:"Blobs that are needed"`
	Events        int64  `json:"events" doc:"That were read"`
	Items         []Item `json:"items" nullable:"false" doc:"At most 10,000 of them"`
	More          int    `json:"more,omitempty" doc:"Items that are not listed"`
}

// Kinds of items.
const (
	ItemVersion = "version"
	ItemDerived = "derived"
	ItemBlob    = "blob"
	ItemUpload  = "upload"
	ItemIngress = "ingress"
)

// Item is one thing that goes.
type Item struct {
	Kind   string `json:"kind" enum:"version,derived,blob,upload,ingress"`
	Name   string `json:"name" example:"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
	Bytes  int64  `json:"bytes" doc:"Of a version or derived file 0: its blobs are items of their own"`
	Reason string `json:"reason" example:"nothing names it since 2026-11-24T12:00:00Z"`
}

const maxItems = 10_000

func (r *Result) add(item Item) {
	switch item.Kind {
	case ItemVersion:
		r.Versions++
	case ItemDerived:
		r.Derived++
	case ItemBlob:
		r.Blobs++
	case ItemUpload:
		r.Sessions++
	case ItemIngress:
		r.Ingress++
	}
	r.Bytes += item.Bytes
	if len(r.Items) == maxItems {
		r.More++
		return
	}
	r.Items = append(r.Items, item)
}

// run is one collection.
type run struct {
	*Collector
	request Request
	now     time.Time
	report  func(operations.Progress)
	result  *Result
	failed  failures
}

func (r *run) all(ctx context.Context) error {
	if !r.request.DryRun {
		if err := r.emptyTrash(ctx, &r.failed); err != nil {
			return fmt.Errorf("empty the trash: %w", err)
		}
	}
	m, err := r.mark(ctx)
	if err != nil {
		return fmt.Errorf("look what is needed: %w", err)
	}
	r.result.Marked = len(m.needed)
	if err := r.sweep(ctx, m); err != nil {
		return fmt.Errorf("remove blobs: %w", err)
	}
	if err := r.uploads(ctx); err != nil {
		return fmt.Errorf("remove abandoned uploads: %w", err)
	}
	if err := r.ingress(ctx); err != nil {
		return fmt.Errorf("remove the ingress of ended jobs: %w", err)
	}
	return errors.Join(r.failed...)
}
