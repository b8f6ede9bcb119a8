package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/faults"
	"github.com/imgsrv/imgsrv/internal/pause"
	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

// ackWait is how long a delivery may stay silent before another worker gets it: short, since it is what
// a crash costs. Long work says that it is in progress.
const ackWait = 5 * time.Second

// Consumer names a durable consumer.
type Consumer struct {
	Name    string // durable; see the constants
	Subject string // filter
	Workers int    // deliveries handled at once

	// Subjects filter instead of Subject, where there are several. From is the first event that a new consumer
	// gets (0: the stream's first); one that exists goes on where it was. InOrder holds back all that follows an
	// event until it is acknowledged, also while it waits to be tried again; Workers is then 1.
	Subjects []string
	From     events.Sequence
	InOrder  bool
	// Span names what is done about an event, for traces; "", or no function: it is nothing to speak of.
	Span   func(events.Event) string
	Forget time.Duration // the server forgets a consumer that nobody reads for so long; 0: never
}

// config is the consumer as the server keeps it.
func (c Consumer) config() natsjs.ConsumerConfig {
	cfg := natsjs.ConsumerConfig{
		Durable: c.Name, FilterSubject: c.Subject, AckPolicy: natsjs.AckExplicitPolicy, AckWait: ackWait,
		DeliverPolicy: natsjs.DeliverAllPolicy, MaxDeliver: -1, MaxAckPending: 10_000,
		InactiveThreshold: c.Forget,
	}
	if len(c.Subjects) > 0 {
		cfg.FilterSubject, cfg.FilterSubjects = "", c.Subjects
	}
	if c.From > 1 {
		cfg.DeliverPolicy, cfg.OptStartSeq = natsjs.DeliverByStartSequencePolicy, uint64(c.From)
	}
	if c.InOrder {
		cfg.MaxAckPending = 1
	}
	return cfg
}

// ensure makes the durable consumer, or brings one that exists up to date. Where it began is not among the
// things that can be changed. The consumer of a subscriber is used as it is. It asks nothing of the stream itself,
// which subscribers may not.
func (l *Log) ensure(ctx context.Context, c Consumer) (natsjs.Consumer, error) {
	cfg := c.config()
	existing, err := l.js.Consumer(ctx, StreamName, c.Name)
	switch {
	case err == nil && existing.CachedInfo().Config.Metadata[subscriberKey] != "":
		return existing, nil // a subscriber's, whose filter is its permission
	case err == nil:
		old := existing.CachedInfo().Config
		cfg.DeliverPolicy, cfg.OptStartSeq, cfg.OptStartTime = old.DeliverPolicy, old.OptStartSeq, old.OptStartTime
	case !errors.Is(err, natsjs.ErrConsumerNotFound):
		return nil, fmt.Errorf("look for consumer %s: %w", c.Name, unavailable(err))
	}
	consumer, err := makeConsumer(ctx, l.js.CreateOrUpdateConsumer, cfg)
	if err != nil {
		return nil, fmt.Errorf("make consumer %s: %w", c.Name, unavailable(err))
	}
	return consumer, nil
}

// makeConsumer makes a durable consumer of the stream, by one of nats.go's two functions for that. Where one of the same name was just
// removed nats-server (2.15) fails with code 10012: it gives the name free before it has removed the files.
func makeConsumer(ctx context.Context, by func(context.Context, string, natsjs.ConsumerConfig) (natsjs.Consumer, error), cfg natsjs.ConsumerConfig) (natsjs.Consumer, error) {
	for attempt := 1; ; attempt++ {
		consumer, err := by(ctx, StreamName, cfg)
		if apiCode(err) != natsjs.JSErrCodeConsumerCreate || attempt == 8 || pause.For(ctx, time.Duration(attempt)*50*time.Millisecond) != nil {
			return consumer, err
		}
	}
}

// RemoveConsumer ends a durable consumer and forgets its position. One that isn't there is no error.
func (l *Log) RemoveConsumer(ctx context.Context, name string) error {
	err := l.stream.DeleteConsumer(ctx, name)
	if err != nil && !errors.Is(err, natsjs.ErrConsumerNotFound) {
		return fmt.Errorf("remove consumer %s: %w", name, unavailable(err))
	}
	return nil
}

// Delivery is one event as a durable consumer gets it.
type Delivery struct {
	events.Event
	Attempt int // from 1: how often it was delivered
}

// Until is how long a delivery has to wait for a time that its event gave, seen from now; 0 or less: no longer. Where the clock
// was set back, so that the event lies in the future, it waits once for as long as was meant, and not until the clock has
// caught up.
func (d Delivery) Until(at, now time.Time) time.Duration {
	if now.Before(d.Time) {
		if d.Attempt > 1 {
			return 0
		}
		return at.Sub(d.Time)
	}
	return at.Sub(now)
}

// Cause is that of what a consumer appends because of the delivery; the key says what, in one word or two.
func (d Delivery) Cause(key string) Cause {
	return Cause{Key: key + " " + d.ID, Actor: "imgsrv", Correlation: d.Correlation, Causation: d.ID}
}

// RetryAfter is an error that says when the event should come again.
type RetryAfter struct {
	Delay time.Duration
	Err   error // why; nil when waiting is all that is wrong
}

func (r *RetryAfter) Error() string {
	if r.Err == nil {
		return fmt.Sprintf("again in %s", r.Delay)
	}
	return fmt.Sprintf("again in %s: %v", r.Delay, r.Err)
}

func (r *RetryAfter) Unwrap() error { return r.Err }

// Consume hands each event to handle, at least once, until ctx ends; then it waits for the workers and
// returns nil. An event is acknowledged when handle returns nil; it comes again after the delay of a
// [RetryAfter], and after a growing delay for any other error. An event that can't be decoded stays
// unacknowledged, is logged, and comes again: a newer release will know it. A handler that panics is one with an error. What goes on
// failing is told by Stuck.
func (l *Log) Consume(ctx context.Context, c Consumer, handle func(context.Context, Delivery) error) error {
	consumer, err := l.ensure(ctx, c)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	if c.InOrder {
		c.Workers = 1
	}
	slots := make(chan struct{}, c.Workers)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		msg, err := l.fetch(ctx, consumer)
		if msg == nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if err == nil {
				continue
			}
			// A pull request to a consumer that was removed meanwhile is answered by nobody.
			if _, gone := l.js.Consumer(ctx, StreamName, c.Name); errors.Is(gone, natsjs.ErrConsumerNotFound) {
				return fmt.Errorf("read consumer %s: somebody removed it: %w", c.Name, unavailable(err))
			}
			l.log.Warn("consumer is waiting for the event log", "consumer", c.Name, "error", err)
			if pause.For(ctx, time.Second) != nil {
				return nil
			}
			continue
		}
		workers.Go(func() {
			defer func() { <-slots }()
			l.deliver(ctx, c, msg, handle)
		})
	}
}

// fetchWait bounds one pull request; an idle consumer then asks again.
const fetchWait = 5 * time.Second

// fetch asks for one message, when there is a worker for it: none waits here past its ackWait. nats.go's
// message iterator would do the same, but with a buffer of one it sometimes forgets to ask, and sleeps
// until a missed heartbeat wakes it. Without a message and without an error there was none.
func (l *Log) fetch(ctx context.Context, consumer natsjs.Consumer) (natsjs.Msg, error) {
	waiting, cancel := context.WithTimeout(ctx, fetchWait)
	defer cancel()
	asked := time.Now()
	msg, err := consumer.Next(natsjs.FetchContext(waiting))
	if err == nil {
		return msg, nil
	}
	// The end of the wait has several names; one that comes early is trouble.
	if (errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)) && time.Since(asked) >= fetchWait/2 {
		return nil, l.alive(ctx, consumer)
	}
	return nil, err
}

// alive tells an idle consumer from one that is gone.
func (l *Log) alive(ctx context.Context, consumer natsjs.Consumer) error {
	_, err := consumer.Info(ctx)
	return err
}

func (l *Log) deliver(ctx context.Context, c Consumer, msg natsjs.Msg, handle func(context.Context, Delivery) error) {
	meta, err := msg.Metadata()
	if err != nil {
		l.log.Error("delivery without metadata", "consumer", c.Name, "error", err)
		return
	}
	delivery := Delivery{Attempt: int(meta.NumDelivered)}
	delivery.Event, err = decode(msg.Headers(), msg.Data(), msg.Subject(), meta.Sequence.Stream)
	if err != nil {
		l.log.Error("event can't be read; it is kept and tried again", "consumer", c.Name, "sequence", meta.Sequence.Stream, "error", err)
		err = &RetryAfter{Delay: time.Minute, Err: fmt.Errorf("%w: %w", errUndecodable, err)}
	} else {
		err = l.inProgress(ctx, msg, func(ctx context.Context) error {
			ctx, end := l.startHandling(ctx, c, delivery)
			err := l.guarded(ctx, c.Name, delivery, handle)
			end(err)
			return err
		})
	}
	l.meters.consumed(ctx, c.Name, err)
	if faults.On {
		faults.Point("before ack", c.Name+" "+string(delivery.Type))
	}
	l.stuck.note(c.Name, delivery, l.clock(), err)
	var later *RetryAfter
	switch {
	case err == nil:
		err = msg.DoubleAck(context.WithoutCancel(ctx))
	case ctx.Err() != nil:
		err = msg.Nak() // shutting down: the next node, or the next start, gets it at once
	case errors.As(err, &later):
		err = msg.NakWithDelay(later.Delay)
	default:
		delay := backoff(delivery.Attempt)
		l.log.Warn("event not handled, will be tried again", "consumer", c.Name, "sequence", delivery.Sequence, "type", delivery.Type, "in", delay, "error", err)
		err = msg.NakWithDelay(delay)
	}
	if faults.On {
		faults.Point("after ack", c.Name+" "+string(delivery.Type))
	}
	if err != nil {
		l.log.Debug("acknowledgement lost; the event comes again", "consumer", c.Name, "sequence", delivery.Sequence, "error", err)
	}
}

// startHandling goes on in the trace of the event, with a span where there is something to do.
func (l *Log) startHandling(ctx context.Context, c Consumer, d Delivery) (context.Context, func(error)) {
	ctx = tracecontext.With(ctx, d.TraceParent)
	if l.tracer == nil || c.Span == nil {
		return ctx, func(error) {}
	}
	name := c.Span(d.Event)
	if name == "" {
		return ctx, func(error) {}
	}
	ctx, ended := tracecontext.Start(ctx, l.tracer, name, trace.SpanKindConsumer, attribute.String("imgsrv.consumer", c.Name), attribute.String("imgsrv.event.type", string(d.Type)),
		attribute.Int64("imgsrv.event.sequence", int64(d.Sequence)), attribute.String("imgsrv.event.subject", d.Subject), attribute.Int("imgsrv.attempt", d.Attempt))
	return ctx, func(err error) {
		var later *RetryAfter
		if errors.As(err, &later) && later.Err == nil {
			err = nil // it only waits
		}
		ended(err)
	}
}

// inProgress tells the server, while work runs, that the delivery is alive.
func (l *Log) inProgress(ctx context.Context, msg natsjs.Msg, work func(context.Context) error) error {
	done := make(chan struct{})
	var beat sync.WaitGroup
	beat.Go(func() {
		ticker := time.NewTicker(ackWait / 3)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				if err := msg.InProgress(); err != nil {
					l.log.Debug("heartbeat lost", "error", err)
				}
			}
		}
	})
	defer beat.Wait()
	defer close(done)
	return work(ctx)
}

// backoff grows from a fraction of a second to a minute, with jitter.
func backoff(attempt int) time.Duration {
	d := 200 * time.Millisecond << min(attempt-1, 8)
	return pause.About(min(d, time.Minute))
}
