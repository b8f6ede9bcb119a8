package webhooks

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type meters struct {
	meter       metric.Meter
	attempts    metric.Int64Counter
	retrying    metric.Int64UpDownCounter
	deadLetters metric.Int64ObservableGauge
}

func newMeters(m metric.Meter) (meters, error) {
	out := meters{meter: m}
	var errs [3]error
	out.attempts, errs[0] = m.Int64Counter("imgsrv.webhooks.deliveries", metric.WithDescription("Attempts to deliver an event to a webhook, by result: delivered, failed, dead"))
	out.retrying, errs[1] = m.Int64UpDownCounter("imgsrv.webhooks.retrying", metric.WithDescription("Webhooks at whose head an event waits on this node for its next attempt"))
	out.deadLetters, errs[2] = m.Int64ObservableGauge("imgsrv.webhooks.dead_letters", metric.WithDescription("Events that were given up and not delivered since; each node tells the same"))
	if err := errors.Join(errs[:]...); err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	return out, nil
}

// observe tells the number of dead letters until the returned function is called.
func (m *meters) observe(count func() int) (unregister func(), err error) {
	registration, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(m.deadLetters, int64(count()))
		return nil
	}, m.deadLetters)
	if err != nil {
		return nil, fmt.Errorf("make meters: %w", err)
	}
	return func() { _ = registration.Unregister() }, nil // fails for foreign registrations only
}

func (m *meters) attempted(ctx context.Context, result string) {
	m.attempts.Add(ctx, 1, metric.WithAttributes(attribute.String("result", result)))
}
