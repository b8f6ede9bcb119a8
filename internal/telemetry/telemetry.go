// Package telemetry gives each package its meter, and serves what they measure to Prometheus. It knows
// nothing of what is measured.
package telemetry

import (
	"context"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
)

// Telemetry is one node's meters. Each node has its own, so that tests can run many in one process.
type Telemetry struct {
	provider *sdkmetric.MeterProvider
	registry *prometheus.Registry
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

// Shutdown ends measuring; instruments may still be called and then do nothing.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	if err := t.provider.Shutdown(ctx); err != nil {
		return fmt.Errorf("shut telemetry down: %w", err)
	}
	return nil
}
