package api

import (
	"context"
	"log/slog"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

// traced makes each request, but the probes, a span: named by method and route pattern, and with nothing in it that a client wrote,
// so that no token of a path, query or header is ever sent on. It goes on in the trace that the request's traceparent names, with a nil
// tracer too: the events that the request leads to are then of the client's trace.
func traced(tracer trace.Tracer) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx := r.Context()
			if parent := r.Header.Get(tracecontext.Header); parent != "" {
				ctx = tracecontext.With(ctx, parent)
				r = r.WithContext(ctx)
			}
			if tracer == nil || r.URL.Path == pathHealth || r.URL.Path == pathReady {
				next.ServeHTTP(w, r)
				return
			}
			method := knownMethod(r.Method)
			ctx, span := tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindServer),
				trace.WithAttributes(attribute.String("http.request.method", method), attribute.String("imgsrv.request_id", requestID(ctx))))
			wrapped := wrap(w, r)
			r = r.WithContext(ctx)
			defer func() { // also for a request that panics its way out
				pattern, status := route(r), statusOf(wrapped)
				span.SetName(method + " " + pattern)
				span.SetAttributes(attribute.String("http.route", pattern), attribute.Int("http.response.status_code", status))
				if status >= http.StatusInternalServerError {
					span.SetStatus(codes.Error, http.StatusText(status))
				}
				span.End()
			}()
			next.ServeHTTP(wrapped, r)
		})
	}
}

// traceID is the trace of a request, for its line in the log; nothing where it is of none.
func traceID(ctx context.Context) slog.Attr {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return slog.Attr{}
	}
	return slog.String("trace_id", span.TraceID().String())
}
