package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type meters struct {
	appends  metric.Int64Counter
	duration metric.Float64Histogram
	handled  metric.Int64Counter
}

func newMeters(m metric.Meter, l *Log) (meters, error) {
	var out meters
	var errs [6]error
	out.appends, errs[0] = m.Int64Counter("imgsrv.events.appended", metric.WithDescription("Events appended, by result"))
	out.duration, errs[1] = m.Float64Histogram("imgsrv.events.append.duration", metric.WithUnit("s"), metric.WithDescription("Time from the call to the synced acknowledgement"),
		metric.WithExplicitBucketBoundaries(.0002, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5))
	out.handled, errs[2] = m.Int64Counter("imgsrv.events.handled", metric.WithDescription("Deliveries to the durable consumers, by consumer and result"))
	head, err := m.Int64ObservableGauge("imgsrv.events.head", metric.WithDescription("Sequence of the stream's last event"))
	errs[3] = err
	bytes, err := m.Int64ObservableGauge("imgsrv.events.size", metric.WithUnit("By"), metric.WithDescription("Size of the stream"))
	errs[4] = err
	stuck, err := m.Int64ObservableGauge("imgsrv.events.stuck", metric.WithDescription("Events that durable consumers of this node can't handle; they come again until they can"))
	errs[5] = err
	if err := errors.Join(errs[:]...); err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	_, err = m.RegisterCallback(func(ctx context.Context, o metric.Observer) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		info, err := l.stream.Info(ctx)
		if err != nil {
			return fmt.Errorf("read the stream's state: %w", err)
		}
		o.ObserveInt64(head, int64(info.State.LastSeq))
		o.ObserveInt64(bytes, int64(info.State.Bytes))
		return nil
	}, head, bytes)
	if err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	_, err = m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(stuck, int64(len(l.Stuck())))
		return nil
	}, stuck)
	if err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	return out, nil
}

func result(err error) attribute.KeyValue {
	switch {
	case err == nil:
		return attribute.String("result", "ok")
	case errors.Is(err, ErrConflict):
		return attribute.String("result", "conflict")
	}
	return attribute.String("result", "error")
}

func (m *meters) appended(ctx context.Context, n int, took time.Duration, err error) {
	with := metric.WithAttributes(result(err))
	m.appends.Add(ctx, int64(n), with)
	m.duration.Record(ctx, took.Seconds(), with)
}

func (m *meters) consumed(ctx context.Context, consumer string, err error) {
	m.handled.Add(ctx, 1, metric.WithAttributes(attribute.String("consumer", consumer), result(err)))
}
