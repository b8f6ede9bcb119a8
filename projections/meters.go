package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type meters struct {
	meter    metric.Meter
	with     metric.MeasurementOption
	events   metric.Int64Counter
	errors   metric.Int64Counter
	duration metric.Float64Histogram
	position metric.Int64ObservableGauge
	lag      metric.Int64ObservableGauge
	lagTime  metric.Float64ObservableGauge
	active   metric.Int64ObservableGauge
	skipped  metric.Int64Counter
	stuck    metric.Int64ObservableGauge
}

func newMeters(m metric.Meter, projection string) (meters, error) {
	out := meters{meter: m, with: metric.WithAttributeSet(attribute.NewSet(attribute.String("projection", projection)))}
	var errs [9]error
	out.events, errs[0] = m.Int64Counter("imgsrv.projections.applied", metric.WithDescription("Events applied by this node"))
	out.errors, errs[1] = m.Int64Counter("imgsrv.projections.errors", metric.WithDescription("Times that the projection could not go on"))
	out.duration, errs[2] = m.Float64Histogram("imgsrv.projections.batch.duration", metric.WithUnit("s"), metric.WithDescription("Time for one transaction, commit included"),
		metric.WithExplicitBucketBoundaries(.0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5))
	out.position, errs[3] = m.Int64ObservableGauge("imgsrv.projections.position", metric.WithDescription("Sequence of the last event applied"))
	out.lag, errs[4] = m.Int64ObservableGauge("imgsrv.projections.lag_events", metric.WithDescription("Events of the log that are not applied yet"))
	out.lagTime, errs[5] = m.Float64ObservableGauge("imgsrv.projections.lag", metric.WithUnit("s"), metric.WithDescription("Age of the oldest event known not to be applied"))
	out.active, errs[6] = m.Int64ObservableGauge("imgsrv.projections.active", metric.WithDescription("1 where this node does the work"))
	out.skipped, errs[7] = m.Int64Counter("imgsrv.projections.skipped", metric.WithDescription("Events that this node moved over because an operator said so"))
	out.stuck, errs[8] = m.Int64ObservableGauge("imgsrv.projections.error.sequence", metric.WithDescription("Sequence of the event that can't be applied; 0 when there is none"))
	if err := errors.Join(errs[:]...); err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	return out, nil
}

// observe reports a runner's state to the meters until the returned function is called.
func (m *meters) observe(r *Runner) (unregister func(), err error) {
	registration, err := m.meter.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		status := r.Status(ctx)
		o.ObserveInt64(m.position, int64(status.Position), m.with)
		o.ObserveInt64(m.lag, int64(status.LagEvents), m.with)
		o.ObserveFloat64(m.lagTime, status.LagSeconds, m.with)
		active := int64(0)
		if status.Active {
			active = 1
		}
		o.ObserveInt64(m.active, active, m.with)
		o.ObserveInt64(m.stuck, int64(status.ErrorSequence), m.with)
		return nil
	}, m.position, m.lag, m.lagTime, m.active, m.stuck)
	if err != nil {
		return nil, fmt.Errorf("observe the projection: %w", err)
	}
	return func() {
		if err := registration.Unregister(); err != nil {
			r.log.Debug("meters not unregistered", "error", err)
		}
	}, nil
}

func (m *meters) applied(ctx context.Context, n int, took time.Duration) {
	m.events.Add(ctx, int64(n), m.with)
	m.duration.Record(ctx, took.Seconds(), m.with)
}

// passed counts events that take no transaction.
func (m *meters) passed(ctx context.Context, n int) { m.events.Add(ctx, int64(n), m.with) }

func (m *meters) failed(ctx context.Context) { m.errors.Add(ctx, 1, m.with) }
