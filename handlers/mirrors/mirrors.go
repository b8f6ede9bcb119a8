package mirrors

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/targets"
	"github.com/imgsrv/imgsrv/internal/pause"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
	"github.com/imgsrv/imgsrv/store/blob"
)

// Config is what mirrors work with.
type Config struct {
	Log            *jetstream.Log
	Logger         *slog.Logger
	Meter          metric.Meter
	Targets        *targets.Targets
	Store          *blob.Store      // where deltas find their bases, and room to be applied; nil: whole files alone
	Tool           *vcdiff.Tool     // as above
	Credentials    Credentials      // of servers that want some
	Roots          *x509.CertPool   // that servers' certificates come from; nil: the system's
	UserAgent      string           // sent with each request
	BytesPerSecond int64            // of all mirrors of this node together; 0: no limit
	Stall          time.Duration    // a transfer without a byte for so long is begun anew; 0: 30 s
	Pause          time.Duration    // before a request is made again, which doubles; 0: half a second
	Tick           time.Duration    // between looks for runs that are due; 0: 15 s
	Retry          time.Duration    // after a failed run, which doubles up to the mirror's own interval; 0: a minute
	Clock          func() time.Time // nil: time.Now
}

// Manager runs the mirrors there are.
type Manager struct {
	Credentials
	log      *jetstream.Log
	logger   *slog.Logger
	targets  *targets.Targets
	upstream *fetcher
	store    *blob.Store
	tool     *vcdiff.Tool
	handler  http.Handler // of the node's own API; set by Run
	tick     time.Duration
	retry    time.Duration
	now      func() time.Time
	meter    metric.Meter

	savedBytes metric.Int64Counter

	mu    sync.Mutex
	known []events.Mirror // the living ones, as the last look found them; for the meter
}

// parallelMirrors is how many mirrors one node works on at once.
const parallelMirrors = 2

// New makes the manager; Run starts it.
func New(cfg Config) (*Manager, error) {
	m := &Manager{Credentials: cfg.Credentials, log: cfg.Log, logger: cfg.Logger, targets: cfg.Targets, tick: cfg.Tick, retry: cfg.Retry, now: cfg.Clock, meter: cfg.Meter,
		store: cfg.Store, tool: cfg.Tool}
	if m.tick == 0 {
		m.tick = 15 * time.Second
	}
	if m.retry == 0 {
		m.retry = time.Minute
	}
	if m.now == nil {
		m.now = time.Now
	}
	if cfg.Stall == 0 {
		cfg.Stall = 30 * time.Second
	}
	if cfg.Pause == 0 {
		cfg.Pause = 500 * time.Millisecond
	}
	m.upstream = newFetcher(cfg.Targets, cfg.Roots, cfg.UserAgent, cfg.BytesPerSecond, cfg.Stall, cfg.Pause)
	fetched, err := m.meter.Int64Counter("imgsrv.mirrors.fetched", metric.WithUnit("By"), metric.WithDescription("Bytes of files that were fetched from other servers"))
	if err != nil {
		return nil, fmt.Errorf("make meters: %w", err)
	}
	if m.savedBytes, err = m.meter.Int64Counter("imgsrv.mirrors.saved", metric.WithUnit("By"), metric.WithDescription("Bytes of files that were made of deltas and didn't have to come")); err != nil {
		return nil, fmt.Errorf("make meters: %w", err)
	}
	m.upstream.count = func(n int) { fetched.Add(context.Background(), int64(n)) }
	return m, nil
}

// CheckTarget refuses the URL of a new mirror that leads where it may not; the refusal is an [*events.Error].
func (m *Manager) CheckTarget(ctx context.Context, url string) error {
	return m.targets.Check(ctx, url)
}

// Run follows the servers until ctx ends, and returns when the last run has stopped. What is published goes to the handler, the
// node's own API. What goes wrong meanwhile is logged and tried again.
func (m *Manager) Run(ctx context.Context, handler http.Handler) error {
	m.handler = handler
	defer m.upstream.close()
	stopMeter, err := m.observe()
	if err != nil {
		return err
	}
	defer stopMeter()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		consumer := jetstream.Consumer{Name: jetstream.ConsumerMirrors, Subject: events.SubjectOfKind(events.KindMirror), Workers: parallelMirrors, Span: spanOf}
		for {
			err := m.log.Consume(ctx, consumer, m.handle)
			if ctx.Err() != nil {
				return nil
			}
			m.logger.WarnContext(ctx, "mirrors are interrupted, and go on in a moment", "error", err)
			_ = pause.For(ctx, pause.About(time.Second))
		}
	})
	group.Go(func() error {
		ticker := time.NewTicker(m.tick)
		defer ticker.Stop()
		for {
			if err := m.ask(ctx); err != nil && ctx.Err() == nil {
				m.logger.WarnContext(ctx, "couldn't look for mirrors that are due; tried again later", "error", err)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
			}
		}
	})
	return group.Wait()
}

// spanOf names what is worth a span in a trace.
func spanOf(e events.Event) string {
	if f, ok := e.Fact.(events.MirrorFact); ok && f.After().Request != nil {
		return "mirror"
	}
	return ""
}

// handle does the run that a fact wants, unless it has been done.
func (m *Manager) handle(ctx context.Context, d jetstream.Delivery) error {
	fact, ok := d.Fact.(events.MirrorFact)
	if !ok || fact.After().Request == nil {
		return nil
	}
	name := fact.After().Name
	current, err := m.log.Mirror(ctx, name)
	if err != nil {
		return err
	}
	if current.Sequence != d.Sequence {
		return nil // an old fact
	}
	end, err := m.sync(ctx, current.State, d.Sequence)
	if errors.Is(err, errSuperseded) {
		return nil
	}
	if err != nil {
		return err
	}
	result := end.Run
	m.logger.InfoContext(ctx, "a mirror's run has ended", "mirror", name, "matched", result.Matched, "published", result.Published, "present", result.Present,
		"refused", result.Refused, "failed", result.Failed, "unchanged", result.Unchanged, "error", result.Error)
	_, err = m.log.Decide(ctx, d.Cause("synced"), func(ctx context.Context) ([]events.Change, error) {
		current, err := m.log.Mirror(ctx, name)
		return events.CompleteSync(current, end), err
	})
	return err
}

// ask wants a run of each mirror for which it is time.
func (m *Manager) ask(ctx context.Context) error {
	mirrors, err := m.List(ctx)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.known = mirrors
	m.mu.Unlock()
	if err := m.sweep(mirrors, m.now()); err != nil {
		return err
	}
	for _, mirror := range mirrors {
		if !mirror.Due(m.now()) {
			continue
		}
		_, err := m.log.Decide(ctx, jetstream.Cause{Actor: "imgsrv"}, func(ctx context.Context) ([]events.Change, error) {
			current, err := m.log.Mirror(ctx, mirror.Name)
			if err != nil || !current.State.Due(m.now()) {
				return nil, err // another node was faster
			}
			return events.RequestSync(current, mirror.Name, "imgsrv", m.now().UTC())
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// List are the mirrors there are, in the order of their last facts.
func (m *Manager) List(ctx context.Context) ([]events.Mirror, error) {
	latest, err := m.log.Latest(ctx, events.SubjectOfKind(events.KindMirror))
	if err != nil {
		return nil, err
	}
	last := map[string]events.Sequence{} // where one got another fact while we read, both are there
	for _, e := range latest {
		last[e.Fact.Entity().ID] = e.Sequence
	}
	var mirrors []events.Mirror
	for _, e := range latest {
		if f, ok := e.Fact.(events.MirrorFact); ok && last[e.Fact.Entity().ID] == e.Sequence && f.After().Living() {
			mirrors = append(mirrors, f.After())
		}
	}
	return mirrors, nil
}

// observe tells how long ago each mirror had all that it wants, until the returned function is called.
func (m *Manager) observe() (stop func(), err error) {
	lag, err := m.meter.Float64ObservableGauge("imgsrv.mirrors.lag", metric.WithUnit("s"),
		metric.WithDescription("Time since a mirror's last run after which all that matches was here, or since it was added; each node tells the same"))
	if err != nil {
		return nil, fmt.Errorf("make meters: %w", err)
	}
	registration, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, mirror := range m.known {
			o.ObserveFloat64(lag, mirror.Lag(m.now()).Seconds(), metric.WithAttributes(attribute.String("mirror", mirror.Name)))
		}
		return nil
	}, lag)
	if err != nil {
		return nil, fmt.Errorf("make meters: %w", err)
	}
	return func() { _ = registration.Unregister() }, nil // fails for foreign registrations only
}
