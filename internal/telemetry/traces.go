package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// flushPatience bounds how long the last spans are waited for at the end.
const flushPatience = 5 * time.Second

// TraceTo starts the tracing that OpenTelemetry's standard variables ask for, as getenv gives them: with none of them there is none,
// and nothing is started. Spans go out by OTLP over HTTP (http/protobuf); its variables (endpoint, headers, certificates, timeout,
// compression), those of the sampler, of the batches and of the resource are read by OpenTelemetry's own code. What can't be sent is
// logged, at most once a minute, and lost.
func (t *Telemetry) TraceTo(ctx context.Context, getenv func(string) string, version string, log *slog.Logger) error {
	on, why := tracesWanted(getenv)
	if why != "" {
		log.WarnContext(ctx, "no traces are sent", "reason", why)
	}
	if !on {
		return nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return fmt.Errorf("make the exporter of traces: %w", err)
	}
	described, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "imgsrv"), attribute.String("service.version", version)),
		resource.WithTelemetrySDK(), resource.WithHost(), resource.WithFromEnv()) // the last one counts
	if err != nil {
		log.WarnContext(ctx, "the traces' resource isn't described as asked for", "error", err)
	}
	t.traces = sdktrace.NewTracerProvider(sdktrace.WithBatcher(&quietExporter{SpanExporter: exporter, log: log}), sdktrace.WithResource(described))
	return nil
}

// tracesWanted says whether traces are to be sent, and if they were asked for in a way that isn't there, why not.
func tracesWanted(getenv func(string) string) (on bool, why string) {
	exporter := strings.TrimSpace(getenv("OTEL_TRACES_EXPORTER"))
	endpoint := getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != ""
	switch {
	case strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true"), exporter == "none", exporter == "" && !endpoint:
		return false, ""
	case exporter != "" && exporter != "otlp":
		return false, fmt.Sprintf("OTEL_TRACES_EXPORTER is %q, and imgsrv knows otlp and none", exporter)
	}
	protocol := getenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
	if protocol == "" {
		protocol = getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	if protocol != "" && protocol != "http/protobuf" {
		return false, fmt.Sprintf("the protocol of OTLP is to be %q, and imgsrv knows http/protobuf (port 4318)", protocol)
	}
	return true, ""
}

// Tracer makes the spans of a package; scope is its import path. nil where there are no traces.
func (t *Telemetry) Tracer(scope string) trace.Tracer {
	if t.traces == nil {
		return nil
	}
	return t.traces.Tracer(scope)
}

// quietExporter logs what can't be sent, in place of OpenTelemetry's own global handler.
type quietExporter struct {
	sdktrace.SpanExporter
	log *slog.Logger

	mu   sync.Mutex
	said time.Time
}

// ExportSpans never fails: there is nobody to tell but the log.
func (e *quietExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := e.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Since(e.said) > time.Minute {
		e.said = time.Now()
		e.log.WarnContext(ctx, "traces can't be sent, and are lost", "spans", len(spans), "error", err)
	}
	return nil
}
