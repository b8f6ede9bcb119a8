// Package scrub looks for rot: it reads blobs again, compares them with their digests, and sees to what is not as it was. It
// knows the log, the byte store, and whom to ask for bytes that are lost; it knows nothing of HTTP, or of PostgreSQL.
//
// A bad blob's file is moved to the quarantine, its damage is recorded (blob.damaged), and from then on each node refuses to
// open the blob. The right bytes come back from another server that has them, from a session that uploads them, from the log
// (metadata that imgsrv has made), or by hand; then that is recorded (blob.repaired).
//
// Bytes first, fact after, also here: cut short between the two, the blob is missing, which reads refuse just as well and the
// next look records. Several nodes may look at one store: a finding is one fact, whoever is first.
package scrub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/blob"
)

// Config is what a Scrubber works with.
type Config struct {
	Log    *jetstream.Log
	Store  *blob.Store
	Logger *slog.Logger
	Meter  metric.Meter
	// Sources, beside the log itself, are asked for the bytes of damaged blobs, in this order.
	Sources []Source
	// Rate is how many bytes a second the background reads; 0: it doesn't read.
	Rate int64
	// StateFile is where the background notes how far it is; "": nowhere, and it begins anew at each start.
	StateFile string
	// Every is the time from one pass of the background to the next at least; 0: an hour. A pass that takes longer is
	// followed by the next at once.
	Every time.Duration
	// RepairEvery is how often sources are asked for what is still damaged, and at each finding; 0: an hour; negative: when Repair
	// is called, and never else.
	RepairEvery time.Duration
	// StrayAge is how old a file is at least that is told as a stray: bytes come first, and the fact after; 0: an hour.
	StrayAge time.Duration
	Clock    func() time.Time // nil: time.Now
}

// Scrubber looks at blobs. Its methods may be called at once from several goroutines.
type Scrubber struct {
	Config
	index    *index
	meters   meters
	suspects chan string
	bad      chan struct{} // told of new findings
	repairs  sync.Mutex    // held by the one that asks sources
	// naming is when a finding is told with the versions that name it: to find them costs a pass over their events, too much for
	// each of the thousands of blobs that a dying disk loses.
	naming rate.Sometimes

	mu    sync.Mutex
	asked map[string]bool // the suspects on their way
	state state
}

const (
	piece       = 1 << 20 // most bytes that the store reads at once
	maxSuspects = 256     // more are left to the next pass
	// suspectRate is how fast blobs are read that a download has met with trouble.
	suspectRate = 64 << 20
	// The first findings of a process are logged with the versions that they concern, and then one now and then; fsck names them all.
	namedFindings = 5
	namedEvery    = time.Minute
)

// New makes a Scrubber. From then on the store opens no damaged blob: until Run has learned which those are, it asks the log about each
// one that it is to open.
func New(cfg Config) (*Scrubber, error) {
	if cfg.Every == 0 {
		cfg.Every = time.Hour
	}
	if cfg.RepairEvery == 0 {
		cfg.RepairEvery = time.Hour
	}
	if cfg.StrayAge == 0 {
		cfg.StrayAge = time.Hour
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	s := &Scrubber{Config: cfg, suspects: make(chan string, maxSuspects), bad: make(chan struct{}, 1), asked: map[string]bool{}, naming: rate.Sometimes{First: namedFindings, Interval: namedEvery}}
	s.Sources = append([]Source{&fromLog{s}}, cfg.Sources...)
	s.index = newIndex(cfg.Log, cfg.Store)
	s.state = s.loadState()
	var err error
	s.meters, err = newMeters(cfg.Meter, s)
	return s, err
}

// CatchUp learns which blobs there are and which of them are damaged, for who doesn't Run.
func (s *Scrubber) CatchUp(ctx context.Context) error {
	if err := s.index.follower.CatchUp(ctx); err != nil {
		return fmt.Errorf("read which blobs are damaged: %w", err)
	}
	return nil
}

// Run learns what there is and keeps up with the log, reads blobs in the background, looks at suspects, and asks for lost bytes, until ctx ends.
func (s *Scrubber) Run(ctx context.Context) error {
	defer s.meters.stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.index.follower.Run(ctx) })
	work := func(work func(context.Context)) {
		group.Go(func() error {
			if s.index.wait(ctx) == nil {
				work(ctx)
			}
			return nil
		})
	}
	work(s.lookAtSuspects)
	if s.RepairEvery > 0 {
		work(s.repairNowAndThen)
	}
	if s.Rate > 0 {
		work(s.passes)
	}
	return group.Wait()
}

// Suspect asks for a look at a blob, by its hex digits, that somebody couldn't read. It doesn't wait.
func (s *Scrubber) Suspect(sha256hex string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked[sha256hex] {
		return
	}
	select {
	case s.suspects <- sha256hex:
		s.asked[sha256hex] = true
	default:
	}
}

func (s *Scrubber) lookAtSuspects(ctx context.Context) {
	pace := paced(suspectRate)
	for {
		select {
		case <-ctx.Done():
			return
		case hexed := <-s.suspects:
			s.mu.Lock()
			delete(s.asked, hexed)
			s.mu.Unlock()
			size, known := s.index.size(hexed)
			if !known {
				continue
			}
			if _, err := s.check(ctx, events.Blob{Digest: digestOf(hexed), Size: size}, pace); err != nil && ctx.Err() == nil {
				s.meters.failed(ctx)
				s.Logger.WarnContext(ctx, "a blob that couldn't be read couldn't be checked either", "digest", digestOf(hexed), "error", err)
			}
		}
	}
}

func (s *Scrubber) repairNowAndThen(ctx context.Context) {
	ticker := time.NewTicker(s.RepairEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-s.bad:
		}
		if _, err := s.Repair(ctx); err != nil && ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "damaged blobs couldn't be asked for; tried again later", "error", err)
		}
	}
}

// Damaged are the blobs that are damaged and not repaired yet, by digest.
func (s *Scrubber) Damaged() []events.Blob { return s.index.damagedBlobs() }

// Status is how the store is doing, as far as this node knows.
type Status struct {
	Damaged  int       // blobs
	Rate     int64     // bytes a second; 0: nothing is read in the background
	LastPass time.Time // when this node's last pass over all blobs ended; zero: none has yet
	Position string    // hex digits of the blob that the pass under way has come to; "" between passes
}

// Status tells how the store is doing.
func (s *Scrubber) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Status{Damaged: s.index.damagedCount(), Rate: s.Rate, LastPass: s.state.LastEnded, Position: s.state.After}
}

// paced is a function that lets so many bytes pass in a second; 0: any number.
func paced(bytesPerSecond int64) func(context.Context, int) error {
	if bytesPerSecond <= 0 {
		return func(ctx context.Context, _ int) error { return ctx.Err() }
	}
	limiter := rate.NewLimiter(rate.Limit(bytesPerSecond), piece)
	return func(ctx context.Context, n int) error {
		if err := limiter.WaitN(ctx, n); err != nil {
			return errors.Join(err, ctx.Err())
		}
		return nil
	}
}

func digestOf(hexed string) events.Digest { return events.Digest("sha256:" + hexed) }
