package projections

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

// tracedFor is how old an event may be for its application to be part of its trace: those of a projection that begins anew aren't, which
// would be a span for all that ever happened.
const tracedFor = time.Hour

// traced adds a transaction that was committed to the traces of its events: a span for each trace, child of the last of its events here
// and with links to the others, since a transaction has many causes and a span one parent.
func (r *Runner) traced(ctx context.Context, applied []events.Event, started time.Time) {
	if r.tracer == nil {
		return
	}
	type part struct {
		parent trace.SpanContext
		links  []trace.Link
		last   events.Sequence
	}
	parts := map[trace.TraceID]*part{}
	for _, e := range applied {
		if e.TraceParent == "" || e.Fact == nil || started.Sub(e.Time) > tracedFor || !concerns(bulkOf(r.projector), e.Subject) {
			continue
		}
		span := tracecontext.SpanOf(e.TraceParent)
		if !span.IsSampled() {
			continue
		}
		p := parts[span.TraceID()]
		if p == nil {
			p = &part{}
			parts[span.TraceID()] = p
		}
		if p.parent.IsValid() && !p.parent.Equal(span) {
			p.links = append(p.links, trace.Link{SpanContext: p.parent})
		}
		p.parent, p.last = span, e.Sequence
	}
	for _, p := range parts {
		_, span := r.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, p.parent), "apply "+r.Name(), trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(started),
			trace.WithLinks(p.links...), trace.WithAttributes(attribute.String("imgsrv.projection", r.Name()), attribute.Int64("imgsrv.event.sequence", int64(p.last)),
				attribute.Int("imgsrv.transaction.events", len(applied))))
		span.End()
	}
}
