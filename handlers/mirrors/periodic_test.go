package mirrors

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/targets"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// Two nodes look for runs that are due, and one of them does each.
func TestARunComesWhenItIsTimeAndOnce(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	var asked, failing atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if failing.Load() > 0 {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(`{"format": "index:1.0", "index": {}}`))
	}))
	t.Cleanup(server.Close)
	to, err := targets.Parse("--mirror-allow", []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	var offset atomic.Int64 // of the clock
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	clock := func() time.Time { return begin.Add(time.Duration(offset.Load())) }

	ctx, cancel := context.WithCancel(t.Context())
	var nodes sync.WaitGroup
	t.Cleanup(nodes.Wait)
	t.Cleanup(cancel)
	for range 2 {
		m, err := New(Config{Log: log, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Targets: to, Roots: roots, Tick: 5 * time.Millisecond, Pause: time.Millisecond, Clock: clock})
		if err != nil {
			t.Fatal(err)
		}
		nodes.Go(func() {
			if err := m.Run(ctx, http.NotFoundHandler()); err != nil {
				t.Error(err)
			}
		})
	}
	changes, err := events.AddMirror(events.Mirror{Name: "up", URL: server.URL, Keep: 1, EverySeconds: 3600, Lifetime: events.Lifetime{AddedBy: "admin", AddedAt: begin}}, events.Current[events.Mirror]{})
	if err != nil {
		t.Fatal(err)
	}
	sequence, err := log.Append(t.Context(), jetstream.Cause{Actor: "admin"}, changes...)
	if err != nil {
		t.Fatal(err)
	}
	// ended waits for the end of a run after a sequence.
	ended := func(after events.Sequence) events.Current[events.Mirror] {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			current, err := log.Mirror(t.Context(), "up")
			if err != nil {
				t.Fatal(err)
			}
			if current.Sequence > after && current.State.Request == nil {
				return current
			}
			if time.Now().After(deadline) {
				t.Fatal("no run has ended within a minute")
			}
		}
	}
	mirror := ended(sequence)
	if mirror.State.LastRun.Error != "" || asked.Load() != 1 || mirror.State.NextAt.Before(begin.Add(time.Hour)) {
		t.Fatalf("%d requests, %+v", asked.Load(), mirror.State)
	}

	failing.Store(1)
	offset.Store(int64(mirror.State.NextAt.Sub(begin)))
	mirror = ended(mirror.Sequence)
	if by := mirror.Event.Causation; mirror.State.LastRun.Error == "" || asked.Load() != 2 || by == "" {
		t.Fatalf("%d requests, %+v", asked.Load(), mirror.State)
	}
	if wait := mirror.State.NextAt.Sub(clock()); wait > 2*time.Minute {
		t.Errorf("after a failure the next run is due in %s", wait)
	}

	failing.Store(0)
	offset.Store(int64(mirror.State.NextAt.Sub(begin)))
	if mirror = ended(mirror.Sequence); mirror.State.LastRun.Error != "" || mirror.State.Failures != 0 || asked.Load() != 3 {
		t.Errorf("%d requests, %+v", asked.Load(), mirror.State)
	}
}
