package derive

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/imgsrv/imgsrv/internal/convert"
)

// Results of a work, for the meters.
const (
	resultMade    = "made"
	resultFailed  = "failed"
	resultSkipped = "skipped"
)

type meters struct {
	formats  metric.Int64Counter
	duration metric.Float64Histogram
}

func newMeters(m metric.Meter) (meters, error) {
	var out meters
	var errs [2]error
	out.formats, errs[0] = m.Int64Counter("imgsrv.derive.formats", metric.WithDescription("Works on a further format of a published version, by format and result: made, failed, skipped"))
	out.duration, errs[1] = m.Float64Histogram("imgsrv.derive.duration", metric.WithUnit("s"), metric.WithDescription("How long it took to make and verify a further format, by format"),
		metric.WithExplicitBucketBoundaries(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600))
	if err := errors.Join(errs[:]...); err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	return out, nil
}

// done counts a work. Formats of a newer release have one name between them.
func (m *meters) done(ctx context.Context, format, result string, took time.Duration) {
	if !convert.Known(format) {
		format = "other"
	}
	m.formats.Add(ctx, 1, metric.WithAttributes(attribute.String("format", format), attribute.String("result", result)))
	if result == resultMade {
		m.duration.Record(ctx, took.Seconds(), metric.WithAttributes(attribute.String("format", format)))
	}
}
