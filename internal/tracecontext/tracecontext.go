// Package tracecontext carries the W3C trace context between Go's contexts and the texts that requests, events and the environment
// carry: the header traceparent (https://www.w3.org/TR/trace-context/). tracestate and baggage are left out on purpose: whatever a
// client writes there would be kept in events and sent on to others.
package tracecontext

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Header is the name of the header, and of the attribute of events.
const Header = "traceparent"

// With is a context whose spans go on in the trace of a traceparent. One that can't be read changes nothing.
func With(ctx context.Context, traceparent string) context.Context {
	if traceparent == "" {
		return ctx
	}
	return propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{Header: traceparent})
}

// Of is the traceparent of a context's span, be it recorded here or elsewhere; "" without one.
func Of(ctx context.Context) string {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return ""
	}
	return "00-" + span.TraceID().String() + "-" + span.SpanID().String() + "-" + (span.TraceFlags() & trace.FlagsSampled).String()
}

// SpanOf reads a traceparent; the result is not valid for one that can't be read.
func SpanOf(traceparent string) trace.SpanContext {
	return trace.SpanContextFromContext(With(context.Background(), traceparent))
}

// Start begins a span; end ends it, as failed where err is not nil. With a nil tracer nothing happens: ctx is as it was, and its
// trace, if it has one, goes on past here.
func Start(ctx context.Context, tracer trace.Tracer, name string, kind trace.SpanKind, attributes ...attribute.KeyValue) (_ context.Context, end func(err error)) {
	if tracer == nil {
		return ctx, func(error) {}
	}
	ctx, span := tracer.Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attributes...))
	return ctx, func(err error) {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}
