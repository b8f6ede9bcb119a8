package projections_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
)

// figures are the values of all sums and gauges that are about one projection.
func figures(t *testing.T, reader sdkmetric.Reader, projection string) map[string]int64 {
	t.Helper()
	var data metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &data); err != nil {
		t.Fatal(err)
	}
	out := map[string]int64{}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			var points []metricdata.DataPoint[int64]
			switch d := m.Data.(type) {
			case metricdata.Gauge[int64]:
				points = d.DataPoints
			case metricdata.Sum[int64]:
				points = d.DataPoints
			}
			for _, point := range points {
				if value, ok := point.Attributes.Value("projection"); ok && value.AsString() == projection {
					out[m.Name] = point.Value
				}
			}
		}
	}
	return out
}

func TestFiguresAreMeasuredWhileTheRunnerRuns(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	head := record(t, log, publications(t, 1).Batches)
	reader := sdkmetric.NewManualReader()
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	r, err := projections.NewRunner(pool, log, catalog.New(), projections.Config{Log: slog.New(slog.DiscardHandler), Meter: provider.Meter("test")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	waiting, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	if err := r.WaitFor(waiting, head); err != nil {
		t.Fatal(err)
	}
	// The counter moves a moment after the position does.
	eventually(t, "all events are counted", func() (bool, string) {
		got := figures(t, reader, catalog.Name)
		want := map[string]int64{"imgsrv.projections.position": int64(head), "imgsrv.projections.error.sequence": 0, "imgsrv.projections.lag_events": 0, "imgsrv.projections.active": 1, "imgsrv.projections.applied": int64(head)}
		diff := cmp.Diff(want, got)
		return diff == "", diff
	})
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"imgsrv.projections.applied": int64(head)}, figures(t, reader, catalog.Name)); diff != "" {
		t.Errorf("a runner that has ended is still observed (-want +got):\n%s", diff)
	}
}
