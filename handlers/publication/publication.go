package publication

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/blob"
)

// What a node does without being told otherwise.
const (
	DefaultAttempts    = 10
	DefaultStepTimeout = 2 * time.Hour
)

// Config is what publications are made with.
type Config struct {
	Log    *jetstream.Log
	Store  *blob.Store
	Logger *slog.Logger
	// Workers is how many steps run at once; 0: 16. Most of a step is waiting for a disk.
	Workers int
	// Attempts is how often a step is tried before its job is given up; 0: 10. Pause is the time after the
	// first failure, which doubles up to two minutes; 0: 500 ms.
	Attempts int
	Pause    time.Duration
	// StepTimeout bounds an attempt; 0: two hours. AbandonAfter is how long work that is told to end may take for it; 0: ten seconds.
	StepTimeout  time.Duration
	AbandonAfter time.Duration
	Meter        metric.Meter     // nil: nothing is measured
	Clock        func() time.Time // nil: time.Now
	// StepStarted, where given, is called before a step's work. It is for tests that stop a node at a
	// chosen place.
	StepStarted func(job string, step events.Step)
}

// Publication runs the consumers.
type Publication struct {
	log      *jetstream.Log
	store    *blob.Store
	logger   *slog.Logger
	workers  int
	attempts int
	pause    time.Duration
	now      func() time.Time
	started  func(string, events.Step)
	meters   meters

	stepTimeout  time.Duration
	abandonAfter time.Duration
	// unpacking has a place for each tarball that is read at once: one takes up to 128 MiB of memory, and a processor.
	unpacking chan struct{}
}

// New makes the consumers; Run starts them.
func New(cfg Config) (*Publication, error) {
	p := &Publication{log: cfg.Log, store: cfg.Store, logger: cfg.Logger, workers: cfg.Workers, attempts: cfg.Attempts, pause: cfg.Pause, now: cfg.Clock, started: cfg.StepStarted,
		stepTimeout: cfg.StepTimeout, abandonAfter: cfg.AbandonAfter, unpacking: make(chan struct{}, 2)}
	if p.workers == 0 {
		p.workers = 16
	}
	if p.attempts == 0 {
		p.attempts = DefaultAttempts
	}
	if p.pause == 0 {
		p.pause = 500 * time.Millisecond
	}
	if p.stepTimeout == 0 {
		p.stepTimeout = DefaultStepTimeout
	}
	if p.abandonAfter == 0 {
		p.abandonAfter = 10 * time.Second
	}
	if p.now == nil {
		p.now = time.Now
	}
	var err error
	p.meters, err = newMeters(cfg.Meter)
	return p, err
}

// Run handles facts until ctx ends, and returns when the last worker has stopped.
func (p *Publication) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return p.log.Consume(ctx, jetstream.Consumer{Name: jetstream.ConsumerIntake, Subject: events.SubjectOfKind(events.KindUpload), Workers: 4, Span: spanOfUpload}, p.handleUpload)
	})
	group.Go(func() error {
		return p.log.Consume(ctx, jetstream.Consumer{Name: jetstream.ConsumerPublication, Subject: events.SubjectOfKind(events.KindJob), Workers: p.workers, Span: spanOfJob}, p.handleJob)
	})
	group.Go(func() error {
		p.sweepIngress(ctx)
		return nil
	})
	return group.Wait()
}

// causeOf is the cause of what a delivery leads to.
func causeOf(d jetstream.Delivery, key string) jetstream.Cause {
	return jetstream.Cause{Key: key + " " + d.ID, Actor: "imgsrv", Correlation: d.Correlation, Causation: d.ID}
}

// spanOfUpload and spanOfJob name what is worth a span in a trace.
func spanOfUpload(e events.Event) string {
	if f, ok := e.Fact.(events.UploadFact); ok && f.After().Complete && f.After().State == events.SessionOpen {
		return "hand over"
	}
	return ""
}

func spanOfJob(e events.Event) string {
	switch f := e.Fact.(type) {
	case events.JobStepStarted:
		step, _ := f.Next()
		return "step " + string(step)
	case events.JobSucceeded, events.JobFailed, events.JobCancelled:
		return "clean up"
	}
	return ""
}
