package jetstream_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// A follower gets each event of its subjects once, in order, whether it read them or heard of them.
func TestAFollowerGetsEachEventOnceInOrder(t *testing.T) {
	t.Parallel()
	quiet := slog.New(slog.DiscardHandler)
	store := filepath.Join(t.TempDir(), "nats")
	start := func() *jetstream.Server {
		t.Helper()
		server, err := jetstream.StartServer(t.Context(), jetstream.ServerConfig{StoreDir: store, Log: quiet, NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		return server
	}
	server := start()
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	open := func(nc *nats.Conn) *jetstream.Log {
		t.Helper()
		log, err := jetstream.Open(t.Context(), nc, jetstream.Config{Source: "test", Log: quiet, Meter: noop.Meter{}})
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	log := open(nc)
	add := func(log *jetstream.Log, name string) events.Sequence {
		t.Helper()
		sequence, err := log.Append(t.Context(), jetstream.Cause{Actor: "test"}, events.Change{Fact: events.PrincipalCreated{Principal: events.Principal{Name: name}}})
		if err != nil {
			t.Fatal(err)
		}
		return sequence
	}
	var mu sync.Mutex
	var seen []string
	follower := log.Follow(func(_ context.Context, e events.Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, e.Fact.Entity().ID)
	}, events.SubjectOfKind(events.KindPrincipal))
	add(log, "a")
	if _, err := log.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: events.TokenIssued{Token: events.Token{ID: "no principal"}}}); err != nil {
		t.Fatal(err)
	}
	add(log, "b")
	if err := follower.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- follower.Run(ctx) }()
	if err := follower.Wait(t.Context(), add(log, "c")); err != nil {
		t.Fatal(err)
	}
	canceled, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := follower.Wait(canceled, 1000); err == nil {
		t.Error("what hasn't happened is applied")
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	add(log, "d")
	nc.Close()
	server.Stop()

	server = start()
	t.Cleanup(server.Stop)
	if nc, err = server.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	log = open(nc)
	again := log.Follow(func(_ context.Context, e events.Event) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, e.Fact.Entity().ID)
	}, events.SubjectOfKind(events.KindPrincipal))
	// Without CatchUp, Run reads from the first event too.
	ctx, stop = context.WithCancel(t.Context())
	go func() { ended <- again.Run(ctx) }()
	if err := again.Wait(t.Context(), add(log, "e")); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if want := []string{"a", "b", "c", "a", "b", "c", "d", "e"}; !slices.Equal(seen, want) {
		t.Errorf("seen %v, want %v", seen, want)
	}
}
