// Package natstest gives a test an event log of its own on a real embedded NATS server. Only tests import
// it; it knows no facts.
package natstest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events/jetstream"
)

// startLimit bounds the start of a server on a busy machine.
const startLimit = 30 * time.Second

// Log opens a log on a server of the test's own, in-process only, with its store in a temporary folder
// that nothing syncs. Both end with the test.
func Log(t testing.TB) *jetstream.Log {
	t.Helper()
	log, _ := LogAndConn(t)
	return log
}

// LogAndConn is [Log] with the connection that the log uses, which has all rights: for tests that put
// messages into the stream that no rule would.
func LogAndConn(t testing.TB) (*jetstream.Log, *nats.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	quiet := slog.New(slog.DiscardHandler)
	server, err := jetstream.StartServer(ctx, jetstream.ServerConfig{StoreDir: t.TempDir(), Log: quiet, NoSync: true})
	if err != nil {
		t.Fatalf("start a NATS server for the test: %v", err)
	}
	t.Cleanup(server.Stop)
	nc, err := server.Connect()
	if err != nil {
		t.Fatalf("connect to the NATS server of the test: %v", err)
	}
	t.Cleanup(nc.Close)
	return open(t, nc), nc
}

// Rounds is for a property of many rounds, each with an empty log: what it returns opens one, another stream each time, in place of
// the one before.
func Rounds(t testing.TB) (next func() *jetstream.Log) {
	t.Helper()
	_, nc := LogAndConn(t)
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatalf("open JetStream: %v", err)
	}
	return func() *jetstream.Log {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		if err := js.DeleteStream(ctx, jetstream.StreamName); err != nil {
			t.Fatalf("delete the stream of the round before: %v", err)
		}
		return open(t, nc)
	}
}

func open(t testing.TB, nc *nats.Conn) *jetstream.Log {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	log, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv://test", Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
	if err != nil {
		t.Fatalf("open the event log of the test: %v", err)
	}
	return log
}
