package webhooks

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// Results of an attempt, for the meters.
const (
	resultDelivered = "delivered"
	resultFailed    = "failed"
	resultDead      = "dead"
)

// pauses lie between the attempts: eleven attempts over not quite a day.
func pauses() []time.Duration {
	return []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 10 * time.Minute, 30 * time.Minute,
		time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 8 * time.Hour}
}

// jitter keeps the retries of many webhooks apart.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}

// takeTurn handles the event at the head of a webhook: it returns nil when the event was delivered or given up.
// Waiting happens here, with the event in hand, so that an operator's request can end it.
func (m *Manager) takeTurn(ctx context.Context, w *worker, d jetstream.Delivery) error {
	if !w.hook.Wants(d.Type, d.Fact) {
		return nil
	}
	for {
		current, err := m.log.Delivery(ctx, w.hook.ID, d.Sequence)
		if err != nil {
			return err
		}
		if !current.State.InTurn() {
			return nil
		}
		if wait := current.State.RetryAt.Sub(m.now()); wait > 0 {
			if err := m.wait(ctx, w, wait); err != nil {
				return err
			}
			continue
		}
		secret, err := m.keys.secret(w.hook)
		if err != nil {
			return err
		}
		attempt := m.sender.send(ctx, w.hook, secret, d.Event)
		if attempt.Error != "" && ctx.Err() != nil {
			return ctx.Err() // our end, not the receiver's fault
		}
		if done, err := m.record(ctx, w, d.Event, current.State, attempt); done || err != nil {
			return err
		}
	}
}

// wait ends after a time, or when an operator has asked for the next attempt.
func (m *Manager) wait(ctx context.Context, w *worker, wait time.Duration) error {
	m.meters.retrying.Add(ctx, 1)
	defer m.meters.retrying.Add(context.WithoutCancel(ctx), -1)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-w.poke:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// record appends what came of an attempt in turn; done says that the event's turn is over.
func (m *Manager) record(ctx context.Context, w *worker, e events.Event, before events.Delivery, attempt events.DeliveryAttempt) (done bool, err error) {
	result, retryAt := resultDelivered, time.Time{}
	switch {
	case attempt.Error == "":
		done = true
	case before.Attempts < len(m.pauses):
		result, retryAt = resultFailed, m.now().Add(jitter(m.pauses[before.Attempts])).UTC()
	default:
		result, done = resultDead, true
	}
	if attempt.Error != "" {
		m.logger.WarnContext(ctx, "webhook not delivered", "webhook", w.hook.ID, "sequence", e.Sequence, "type", e.Type, "attempt", before.Attempts+1, "retry_at", retryAt, "error", attempt.Error)
	}
	m.meters.attempted(ctx, result)
	// An operator's request may come in between; what came of the attempt stays true.
	_, err = m.log.Decide(ctx, causeOf(e, e.ID, before), func(ctx context.Context) ([]events.Change, error) {
		current, err := m.log.Delivery(ctx, w.hook.ID, e.Sequence)
		switch {
		case err != nil || !current.State.InTurn():
			return nil, err
		case attempt.Error == "":
			return events.CompleteDelivery(current, w.hook.ID, e, attempt), nil
		}
		return events.FailDelivery(current, w.hook.ID, e, attempt, retryAt), nil
	})
	return done, err
}

// redeliver handles a request for an event out of turn.
func (m *Manager) redeliver(ctx context.Context, d jetstream.Delivery) error {
	requested, ok := d.Fact.(events.DeliveryRequested)
	if !ok || requested.State != events.DeliveryRedelivery {
		return nil
	}
	current, err := m.log.Delivery(ctx, requested.Webhook, requested.Sequence)
	if err != nil || current.Sequence != d.Sequence {
		return err
	}
	hook, err := m.log.Webhook(ctx, requested.Webhook)
	if err != nil || hook.State.Removed {
		return err
	}
	secret, err := m.keys.secret(hook.State)
	if err != nil {
		return &jetstream.RetryAfter{Delay: time.Minute, Err: err} // another node may have the key
	}
	event, ok, err := m.log.At(ctx, requested.Sequence)
	var unreadable *jetstream.Undecodable
	if err != nil && !errors.As(err, &unreadable) {
		return err // an event that this release can't read can still be sent
	}
	if !ok {
		return fmt.Errorf("event %d is not in the log", requested.Sequence)
	}
	attempt := m.sender.send(ctx, hook.State, secret, event)
	if attempt.Error != "" && ctx.Err() != nil {
		return ctx.Err()
	}
	result := resultDelivered
	if attempt.Error != "" {
		result = resultDead
		m.logger.WarnContext(ctx, "redelivery failed", "webhook", hook.State.ID, "sequence", event.Sequence, "type", event.Type, "error", attempt.Error)
	}
	m.meters.attempted(ctx, result)
	_, err = m.log.Decide(ctx, causeOf(event, d.ID, current.State), func(ctx context.Context) ([]events.Change, error) {
		current, err := m.log.Delivery(ctx, requested.Webhook, requested.Sequence)
		if err != nil || current.Sequence != d.Sequence {
			return nil, err
		}
		return events.EndRedelivery(current, hook.State.ID, event, attempt), nil
	})
	return err
}

// causeOf makes a fact appended again after a lost acknowledgement the same event.
func causeOf(e events.Event, causation string, d events.Delivery) jetstream.Cause {
	return jetstream.Cause{Key: fmt.Sprintf("delivery attempt %d", d.Attempts+1), Actor: "imgsrv", Correlation: e.Correlation, Causation: causation}
}
