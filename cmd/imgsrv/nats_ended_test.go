//go:build !race

// nats-server's reload of its options races with its own clients, which the detector would take for ours.

package main

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// A NATS server that refuses what a node sends ends its connection for good: the node ends too, rather than to answer 503 until
// somebody looks.
func TestANodeEndsWithAConnectionThatNATSEndsForGood(t *testing.T) {
	t.Parallel()
	options := natsOptions(t)
	ns := startNATS(t, options)
	flags := nodeFlags(t)
	flags.TLSListen, flags.NATSURL = "", ns.ClientURL()
	node := startWith(t, flags, testHooks{}, slog.New(slog.DiscardHandler))
	short := options.Clone()
	short.MaxControlLine = 16
	if err := ns.ReloadOptions(short); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := node.Wait(ctx); err == nil || !strings.Contains(err.Error(), "connection to NATS") {
		t.Fatalf("the node goes on (%v)", err)
	}
}
