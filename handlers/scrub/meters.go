package scrub

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

type meters struct {
	bytes, blobs, finds, repairs, errors metric.Int64Counter
	stop                                 func()
}

func newMeters(m metric.Meter, s *Scrubber) (meters, error) {
	var out meters
	var errs [8]error
	out.bytes, errs[0] = m.Int64Counter("imgsrv.scrub.bytes", metric.WithUnit("By"), metric.WithDescription("Bytes of blobs that were read and compared with their digests"))
	out.blobs, errs[1] = m.Int64Counter("imgsrv.scrub.blobs", metric.WithDescription("Blobs that were compared with their digests"))
	out.finds, errs[2] = m.Int64Counter("imgsrv.scrub.found", metric.WithDescription("Damaged blobs that this node has found, by reason: digest, size, missing, unreadable"))
	out.repairs, errs[3] = m.Int64Counter("imgsrv.scrub.repaired", metric.WithDescription("Damaged blobs that this node has repaired"))
	out.errors, errs[4] = m.Int64Counter("imgsrv.scrub.errors", metric.WithDescription("Blobs that couldn't be looked at, because the storage or the event log didn't answer"))
	damaged, err := m.Int64ObservableGauge("imgsrv.blobs.damaged", metric.WithDescription("Blobs whose bytes are lost and not repaired yet; each node tells the same"))
	errs[5] = err
	lastPass, err := m.Float64ObservableGauge("imgsrv.scrub.last_pass.timestamp", metric.WithUnit("s"), metric.WithDescription("When this node's last pass over all blobs ended, in seconds since 1970; 0: none has yet"))
	errs[6] = err
	if err := errors.Join(errs[:]...); err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	for _, counter := range []metric.Int64Counter{out.bytes, out.blobs, out.repairs, out.errors} {
		counter.Add(context.Background(), 0) // there from the start: an alert on something that isn't there never fires
	}
	registration, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		status := s.Status()
		o.ObserveInt64(damaged, int64(status.Damaged))
		ended := 0.0
		if !status.LastPass.IsZero() {
			ended = float64(status.LastPass.UnixMilli()) / 1000
		}
		o.ObserveFloat64(lastPass, ended)
		return nil
	}, damaged, lastPass)
	if err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	out.stop = func() { _ = registration.Unregister() } // fails for foreign registrations only
	return out, nil
}

func (m *meters) read(ctx context.Context, n int64) {
	m.bytes.Add(ctx, n)
	m.blobs.Add(ctx, 1)
}

func (m *meters) found(ctx context.Context, reason string) {
	m.finds.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
}

func (m *meters) repaired(ctx context.Context) { m.repairs.Add(ctx, 1) }

func (m *meters) failed(ctx context.Context) { m.errors.Add(ctx, 1) }
