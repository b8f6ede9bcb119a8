// Package natstest gives a test an event log of its own on a real embedded NATS server. Only tests import
// it; it knows no facts.
package natstest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
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
	log, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv://test", Log: quiet, Meter: noop.Meter{}})
	if err != nil {
		t.Fatalf("open the event log of the test: %v", err)
	}
	return log, nc
}
