package backup_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/imgsrv/imgsrv/handlers/backup"
)

// lastSuccess is the gauge of a process; 0 where it says nothing.
func lastSuccess(t *testing.T, reader sdkmetric.Reader) (at int64) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if gauge, ok := m.Data.(metricdata.Gauge[int64]); ok && m.Name == "imgsrv.backup.last_success.timestamp" && len(gauge.DataPoints) > 0 {
				at = gauge.DataPoints[0].Value
			}
		}
	}
	return at
}

// When the last backup was made is told by the process that made it, and by the next one.
func TestTheLastBackupIsMeasuredAlsoAfterARestart(t *testing.T) {
	t.Parallel()
	s, file := newServer(t), filepath.Join(t.TempDir(), "backup.json")
	s.publish("1", "content")
	start := func() (*backup.Meters, sdkmetric.Reader) {
		reader := sdkmetric.NewManualReader()
		meters, err := backup.NewMeters(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test"), file, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return meters, reader
	}
	meters, reader := start()
	made := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	cfg := backup.Config{Log: s.Log, Blobs: s.Store, Logger: slog.New(slog.DiscardHandler), Meters: meters, Clock: func() time.Time { return made }}
	place := t.TempDir()
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := backup.Make(ended, cfg, backup.Request{Place: place}, func(backup.Progress) {}); err == nil || lastSuccess(t, reader) != 0 {
		t.Fatalf("a backup that was broken off: %v, measured %d", err, lastSuccess(t, reader))
	}
	if _, err := backup.Make(t.Context(), cfg, backup.Request{Place: place}, func(backup.Progress) {}); err != nil {
		t.Fatal(err)
	}
	_, after := start()
	for what, reader := range map[string]sdkmetric.Reader{"at once": reader, "after a restart": after} {
		if got := lastSuccess(t, reader); got != made.Unix() {
			t.Errorf("%s: %d, want %d", what, got, made.Unix())
		}
	}
}
