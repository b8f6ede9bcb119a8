package garbage

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type meters struct {
	runs     metric.Int64Counter
	bytes    metric.Int64Counter
	items    metric.Int64Counter
	duration metric.Float64Histogram
	last     atomic.Int64 // seconds since 1970; 0: none yet
}

func newMeters(m metric.Meter) (*meters, error) {
	out := &meters{}
	var errs [5]error
	out.runs, errs[0] = m.Int64Counter("imgsrv.gc.runs", metric.WithDescription("Collections of garbage by result: succeeded, failed"))
	out.bytes, errs[1] = m.Int64Counter("imgsrv.gc.freed", metric.WithUnit("By"), metric.WithDescription("Bytes that the collection of garbage gave back"))
	out.items, errs[2] = m.Int64Counter("imgsrv.gc.items", metric.WithDescription("What was collected by kind: blob, version, derived, upload, ingress; kept: blobs that were needed again meanwhile"))
	out.duration, errs[3] = m.Float64Histogram("imgsrv.gc.duration", metric.WithUnit("s"), metric.WithDescription("How long a collection of garbage took"),
		metric.WithExplicitBucketBoundaries(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600))
	_, errs[4] = m.Int64ObservableGauge("imgsrv.gc.last_success.timestamp", metric.WithUnit("s"), metric.WithDescription("When the last collection of garbage on this node succeeded, seconds since 1970"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			if at := out.last.Load(); at != 0 {
				o.Observe(at)
			}
			return nil
		}))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make meters: %w", err)
	}
	return out, nil
}

// done counts a collection, also what one that broke off had done.
func (m *meters) done(ctx context.Context, r Result, took time.Duration, now time.Time, err error) {
	result := "succeeded"
	if err != nil {
		result = "failed"
	} else {
		m.last.Store(now.Unix())
		m.duration.Record(ctx, took.Seconds())
	}
	m.runs.Add(ctx, 1, metric.WithAttributes(attribute.String("result", result)))
	m.bytes.Add(ctx, r.Bytes)
	for kind, n := range map[string]int{ItemBlob: r.Blobs, ItemVersion: r.Versions, ItemDerived: r.Derived, ItemUpload: r.Sessions, ItemIngress: r.Ingress, "kept": r.Kept} {
		m.items.Add(ctx, int64(n), metric.WithAttributes(attribute.String("kind", kind)))
	}
}
