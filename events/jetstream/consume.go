package jetstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

// ackWait is how long a delivery may stay silent before another worker gets it: short, since it is what
// a crash costs. Long work says that it is in progress.
const ackWait = 5 * time.Second

// Consumer names a durable consumer.
type Consumer struct {
	Name    string // durable; see the constants
	Subject string // filter
	Workers int    // deliveries handled at once
}

// Delivery is one event as a durable consumer gets it.
type Delivery struct {
	events.Event
	Attempt int // from 1: how often it was delivered
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
// unacknowledged, is logged, and comes again: a newer release will know it.
func (l *Log) Consume(ctx context.Context, c Consumer, handle func(context.Context, Delivery) error) error {
	consumer, err := l.stream.CreateOrUpdateConsumer(ctx, natsjs.ConsumerConfig{
		Durable: c.Name, FilterSubject: c.Subject, AckPolicy: natsjs.AckExplicitPolicy, AckWait: ackWait,
		DeliverPolicy: natsjs.DeliverAllPolicy, MaxDeliver: -1, MaxAckPending: 10_000,
	})
	if err != nil {
		return fmt.Errorf("make consumer %s: %w", c.Name, unavailable(err))
	}
	// One message is fetched ahead, so that none waits here for a worker past its ackWait.
	messages, err := consumer.Messages(natsjs.PullMaxMessages(1))
	if err != nil {
		return fmt.Errorf("read consumer %s: %w", c.Name, unavailable(err))
	}
	stopped := context.AfterFunc(ctx, messages.Stop)
	defer stopped()
	var workers sync.WaitGroup
	defer workers.Wait()
	slots := make(chan struct{}, c.Workers)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		msg, err := messages.Next()
		if err != nil {
			<-slots
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, natsjs.ErrMsgIteratorClosed) {
				return fmt.Errorf("read consumer %s: %w", c.Name, unavailable(err))
			}
			l.log.Warn("consumer is waiting for the event log", "consumer", c.Name, "error", err)
			if sleep(ctx, time.Second) != nil {
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
		err = &RetryAfter{Delay: time.Minute, Err: err}
	} else {
		err = l.inProgress(ctx, msg, func(ctx context.Context) error { return handle(ctx, delivery) })
	}
	l.meters.consumed(ctx, c.Name, err)
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
	if err != nil {
		l.log.Debug("acknowledgement lost; the event comes again", "consumer", c.Name, "sequence", delivery.Sequence, "error", err)
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
	return time.Duration(float64(min(d, time.Minute)) * (0.75 + rand.Float64()/2))
}
