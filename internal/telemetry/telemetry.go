// Package telemetry gives each package its meter and its tracer, serves what they measure to Prometheus, and sends the traces to where
// the environment says. It knows nothing of what is measured or traced.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
)

// Telemetry is one node's meters and tracers. Each node has its own, so that tests can run many in one process.
type Telemetry struct {
	provider *sdkmetric.MeterProvider
	registry *prometheus.Registry
	traces   *sdktrace.TracerProvider // nil: none
}

// New makes the meters of a node, with the Go runtime's and the process's own figures among them.
func New() (*Telemetry, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry), otelprom.WithoutScopeInfo())
	if err != nil {
		return nil, fmt.Errorf("prometheus exporter: %w", err)
	}
	return &Telemetry{provider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter)), registry: registry}, nil
}

// Meter is the meter of a package; scope is its import path.
func (t *Telemetry) Meter(scope string) metric.Meter { return t.provider.Meter(scope) }

// Handler serves the figures in Prometheus's text format.
func (t *Telemetry) Handler() http.Handler {
	return promhttp.HandlerFor(t.registry, promhttp.HandlerOpts{})
}

// Shutdown ends measuring and tracing, and sends the spans that are left; instruments may still be called and then do nothing.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	err := t.provider.Shutdown(ctx)
	if t.traces != nil {
		ctx, cancel := context.WithTimeout(ctx, flushPatience)
		defer cancel()
		err = errors.Join(err, t.traces.Shutdown(ctx))
	}
	if err != nil {
		return fmt.Errorf("shut telemetry down: %w", err)
	}
	return nil
}
