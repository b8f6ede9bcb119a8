package natstest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// Site is an embedded server that listens on loopback, with its log and those who may read it from outside.
type Site struct {
	Server      *jetstream.Server
	Own         *nats.Conn // with all rights
	Log         *jetstream.Log
	Subscribers *jetstream.Subscribers
}

// Listen starts a site, which ends with the test.
func Listen(t testing.TB) *Site {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	server, err := jetstream.StartServer(ctx, jetstream.ServerConfig{StoreDir: t.TempDir(), Listen: "127.0.0.1:0", Log: quiet, NoSync: true})
	if err != nil {
		t.Fatalf("start a NATS server for the test: %v", err)
	}
	t.Cleanup(server.Stop)
	own, err := server.Connect()
	if err != nil {
		t.Fatalf("connect to the NATS server of the test: %v", err)
	}
	t.Cleanup(own.Close)
	log, err := jetstream.Open(ctx, own, jetstream.Config{Source: "imgsrv://test", Log: quiet, Meter: noop.Meter{}})
	if err != nil {
		t.Fatalf("open the event log of the test: %v", err)
	}
	s := &Site{Server: server, Own: own, Log: log, Subscribers: jetstream.NewSubscribers(log, server, quiet)}
	Run(t, s.Subscribers)
	return s
}

// Run runs a directory of subscribers until the test ends.
func Run(t testing.TB, s *jetstream.Subscribers) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("subscribers: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// Add adds a subscriber to some images (none: all), and gives the path of its credentials file.
func (s *Site) Add(t testing.TB, name string, images ...string) string {
	t.Helper()
	return Add(t, s.Subscribers, events.Subscriber{Name: name, Images: images, MaxPending: 1})
}

// Add is as [Site.Add], for any directory and all that a subscriber has.
func Add(t testing.TB, subscribers *jetstream.Subscribers, s events.Subscriber) string {
	t.Helper()
	s.AddedBy, s.AddedAt = "test", time.Now().UTC()
	_, credentials, _, err := subscribers.Add(t.Context(), s)
	if err != nil {
		t.Fatalf("add subscriber %s: %v", s.Name, err)
	}
	path := filepath.Join(t.TempDir(), s.Name+".nk")
	if err := os.WriteFile(path, credentials, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Connect connects a subscriber, until the test ends.
func (s *Site) Connect(t testing.TB, credentials string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := jetstream.Connect(s.Server.URL(), credentials, opts...)
	if err != nil {
		t.Fatalf("connect as a subscriber: %v", err)
	}
	t.Cleanup(nc.Close)
	return nc
}
