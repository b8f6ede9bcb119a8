package publication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
)

// Results of an attempt, for the meters.
const (
	resultSucceeded = "succeeded"
	resultRetried   = "retried" // will be tried again
	resultFailed    = "failed"  // the job was given up
	resultRefused   = "refused" // for its content
	resultStopped   = "stopped" // cancelled, or taken over
)

type meters struct {
	duration  metric.Float64Histogram
	ended     metric.Int64Counter
	abandoned metric.Int64Counter
}

func newMeters(m metric.Meter) (meters, error) {
	if m == nil {
		m = noop.Meter{}
	}
	var out meters
	var errs [3]error
	out.duration, errs[0] = m.Float64Histogram("imgsrv.jobs.step.duration", metric.WithUnit("s"),
		metric.WithDescription("Attempts at steps of publications and how long they took, by step and result: succeeded, retried, failed, refused, stopped"),
		metric.WithExplicitBucketBoundaries(.001, .005, .025, .1, .5, 1, 5, 15, 60, 300, 900, 3600))
	out.ended, errs[1] = m.Int64Counter("imgsrv.jobs.ended", metric.WithDescription("Publication jobs that this node has brought to their end, by state: succeeded, failed, refused"))
	out.abandoned, errs[2] = m.Int64Counter("imgsrv.jobs.steps.abandoned", metric.WithDescription("Steps that went on when they should have ended, as one whose file system hangs"))
	if err := errors.Join(errs[:]...); err != nil {
		return out, fmt.Errorf("make meters: %w", err)
	}
	for _, state := range []string{resultSucceeded, resultFailed, resultRefused} {
		out.ended.Add(context.Background(), 0, metric.WithAttributes(attribute.String("state", state))) // so that the first one is an increase
	}
	out.abandoned.Add(context.Background(), 0)
	return out, nil
}

func (m *meters) attempted(ctx context.Context, step events.Step, result string, took time.Duration) {
	m.duration.Record(ctx, took.Seconds(), metric.WithAttributes(attribute.String("step", string(step)), attribute.String("result", result)))
	if result == resultFailed || result == resultRefused || result == resultSucceeded && step == events.StepPublish {
		m.ended.Add(ctx, 1, metric.WithAttributes(attribute.String("state", result)))
	}
}
