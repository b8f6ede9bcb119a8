package webhooks

import (
	"context"
	"crypto/x509"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/targets"
	"github.com/imgsrv/imgsrv/internal/pause"
)

// Config is what webhooks are sent with.
type Config struct {
	Log     *jetstream.Log
	Logger  *slog.Logger
	Meter   metric.Meter
	Tracer  trace.Tracer // nil: no traces
	Keys    *Keys
	Targets *targets.Targets
	// Pauses between the attempts of one delivery; nil: eleven attempts over not quite a day. One attempt more
	// than pauses is made.
	Pauses  []time.Duration
	Timeout time.Duration    // of one attempt; 0: 15 s
	Roots   *x509.CertPool   // that receivers' certificates come from; nil: the system's
	Clock   func() time.Time // nil: time.Now
}

// Manager runs a consumer for each webhook there is.
type Manager struct {
	log     *jetstream.Log
	logger  *slog.Logger
	meters  meters
	keys    *Keys
	sender  *sender
	targets *targets.Targets
	pauses  []time.Duration
	now     func() time.Time

	// Of the goroutine that follows the facts.
	workers map[string]*worker // by id

	mu   sync.Mutex
	dead map[events.Entity]struct{} // dead letters, for the meter
}

// worker is one webhook's consumer at work.
type worker struct {
	hook   events.Webhook
	from   events.Sequence
	poke   chan struct{} // an operator wants the next attempt now
	cancel context.CancelFunc
	done   chan struct{}
}

// restartPause is between attempts to reach a log that doesn't answer.
const restartPause = time.Second

// New makes the manager; Run starts it.
func New(cfg Config) (*Manager, error) {
	m := &Manager{log: cfg.Log, logger: cfg.Logger, keys: cfg.Keys, targets: cfg.Targets, pauses: cfg.Pauses, now: cfg.Clock,
		workers: map[string]*worker{}, dead: map[events.Entity]struct{}{}}
	if m.pauses == nil {
		m.pauses = pauses()
	}
	if m.now == nil {
		m.now = time.Now
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = sendTimeout
	}
	m.sender = newSender(cfg.Targets, cfg.Roots, cfg.Timeout, m.now, cfg.Tracer)
	var err error
	m.meters, err = newMeters(cfg.Meter)
	return m, err
}

// consumerName is data: another name would deliver everything again.
func consumerName(id string) string { return "webhook-" + id }

// Run sends events until ctx ends, and returns when the last worker has stopped. What goes wrong meanwhile is
// logged and tried again. An error means that it never began.
func (m *Manager) Run(ctx context.Context) error {
	unregister, err := m.meters.observe(m.deadLetters)
	if err != nil {
		return err
	}
	defer unregister()
	defer m.sender.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		m.insist(ctx, "webhook redeliveries", func(ctx context.Context) error {
			consumer := jetstream.Consumer{Name: jetstream.ConsumerRedelivery, Subject: events.SubjectOfKind(events.KindDelivery), Workers: 4}
			return m.log.Consume(ctx, consumer, m.redeliver)
		})
		return nil
	})
	group.Go(func() error {
		err := m.log.FollowLatest(m.heed, events.SubjectOfKind(events.KindWebhook), events.SubjectOfKind(events.KindDelivery)).Run(ctx)
		for _, w := range m.workers {
			<-w.done
		}
		return err
	})
	return group.Wait()
}

// insist runs something until ctx ends, again and again where it ends by itself.
func (m *Manager) insist(ctx context.Context, what string, run func(context.Context) error) {
	for {
		err := run(ctx)
		if ctx.Err() != nil {
			return
		}
		m.logger.WarnContext(ctx, "interrupted, goes on in a moment", "part", what, "error", err)
		if pause.For(ctx, pause.About(restartPause)) != nil {
			return
		}
	}
}

// heed keeps a worker for each webhook, by the last facts and by those that come.
func (m *Manager) heed(ctx context.Context, e events.Event) {
	switch f := e.Fact.(type) {
	case nil:
		m.logger.ErrorContext(ctx, "a webhook's fact can't be read: a newer release wrote it; this node goes on as before it", "sequence", e.Sequence, "subject", e.Subject)
	case events.WebhookFact:
		hook := f.After()
		if hook.Removed {
			m.end(ctx, hook.ID)
		} else if m.workers[hook.ID] == nil {
			m.begin(ctx, hook, e.Sequence)
		}
	case events.DeliveryFact:
		d := f.After()
		m.mu.Lock()
		if d.GivenUp() {
			m.dead[d.Entity()] = struct{}{}
		} else {
			delete(m.dead, d.Entity())
		}
		m.mu.Unlock()
		if w := m.workers[d.Webhook]; w != nil && d.State == events.DeliveryRetrying {
			select {
			case w.poke <- struct{}{}: // it looks for itself whether there is something to do
			default:
			}
		}
	}
}

func (m *Manager) begin(ctx context.Context, hook events.Webhook, added events.Sequence) {
	if _, err := m.keys.secret(hook); err != nil {
		m.logger.ErrorContext(ctx, "webhook can't be served here", "webhook", hook.ID, "error", err)
		return
	}
	w := &worker{hook: hook, from: hook.From, poke: make(chan struct{}, 1), done: make(chan struct{})}
	if w.from == 0 {
		w.from = added + 1
	}
	ctx, w.cancel = context.WithCancel(ctx)
	m.workers[hook.ID] = w
	consumer := jetstream.Consumer{Name: consumerName(hook.ID), Subjects: hook.Subjects(), From: w.from, InOrder: true, Workers: 1}
	go func() {
		defer close(w.done)
		m.insist(ctx, "webhook "+hook.ID, func(ctx context.Context) error {
			return m.log.Consume(ctx, consumer, func(ctx context.Context, d jetstream.Delivery) error { return m.takeTurn(ctx, w, d) })
		})
	}()
}

// end stops a webhook's worker and removes its consumer. Each node does so, since one that hadn't heard of the
// removal yet may just have made the consumer again.
func (m *Manager) end(ctx context.Context, id string) {
	if w := m.workers[id]; w != nil {
		w.cancel()
		<-w.done
		delete(m.workers, id)
	}
	if err := m.log.RemoveConsumer(ctx, consumerName(id)); err != nil {
		m.logger.WarnContext(ctx, "the consumer of a removed webhook stays until the next start", "webhook", id, "error", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.dead, func(e events.Entity, _ struct{}) bool { return strings.HasPrefix(e.ID, id+"/") })
}

func (m *Manager) deadLetters() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.dead)
}

// ParseTargets reads what --webhook-allow names.
func ParseTargets(allow []string) (*targets.Targets, error) {
	return targets.Parse("--webhook-allow", allow)
}

// CheckTarget refuses the URL of a new webhook that leads where it may not; the refusal is an [*events.Error].
func (m *Manager) CheckTarget(ctx context.Context, url string) error {
	return m.targets.Check(ctx, url)
}

// KeyID names the key that new webhooks' secrets are derived from, which is made where there is none.
func (m *Manager) KeyID() (string, error) { return m.keys.ID() }

// Secret is a webhook's secret; the error is errOtherKey where this node can't know it.
func (m *Manager) Secret(w events.Webhook) (string, error) { return m.keys.Secret(w) }
