package main

import (
	"errors"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/internal/testtool"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// How the tests of this package start nodes: in this process with startHere, or startWith where they reach into it, and in a process
// of its own, which can be killed, with startChild.

// nodeFlags are those of a node with a database of the test's own, on free ports.
func nodeFlags(t *testing.T) ServerFlags {
	t.Helper()
	return ServerFlags{Listen: "127.0.0.1:0", TLSListen: "127.0.0.1:0", DataDir: t.TempDir(), PostgresURL: pgtest.URL(t), MetricsPath: "/metrics", LogFormat: "text", Verbosity: "error"}
}

// startHere starts a node in this process, until the test ends.
func startHere(t *testing.T, flags ServerFlags) *Node {
	t.Helper()
	return startWith(t, flags, testHooks{}, nil)
}

// startWith does so with hooks and a log; nil for none.
func startWith(t *testing.T, flags ServerFlags, hooks testHooks, log *slog.Logger) *Node {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	node, err := startNode(t.Context(), flags, log, hooks)
	needPostgres(t, err)
	t.Cleanup(func() { node.end(t) })
	return node
}

// needPostgres skips where a start lacks PostgreSQL's programs.
func needPostgres(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, postgres.ErrNoBinaries) {
		testtool.Absent(t, "PostgreSQL's binaries")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// end stops a node, where that hasn't been done.
func (n *Node) end(t *testing.T) {
	t.Helper()
	if err := n.Stop(); err != nil {
		t.Errorf("stop the node: %v", err)
	}
}

// publisher talks to the node with the admin's token.
func (n *Node) publisher(t *testing.T) *publisher {
	return &publisher{t: t, base: n.HTTPURL, token: n.Token}
}

// stranger talks to it without a token.
func (n *Node) stranger(t *testing.T) *publisher { return &publisher{t: t, base: n.HTTPURL} }

// server starts a node and gives the flags with which the client commands find it, and the token in its data folder.
func server(t *testing.T) (flags []string, node *Node) {
	t.Helper()
	serverFlags := nodeFlags(t)
	serverFlags.TLSListen = ""
	node = startHere(t, serverFlags)
	return node.found(serverFlags), node
}

// found are the flags with which client commands find a node that was started with others.
func (n *Node) found(flags ServerFlags) []string {
	return []string{"--server", n.HTTPURL, "--data-dir", flags.DataDir}
}

// with are a command's arguments, and after them the flags.
func with(flags []string, args ...string) []string { return append(args, flags...) }

// openDir is a folder that another user may pass through, as PostgreSQL's does when the tests run as root.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "imgsrv-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // see above
		t.Fatal(err)
	}
	return dir
}

// eventually asks again, as clients poll, until nothing is missing any more. What still is after two minutes fails the test.
func eventually(t *testing.T, missing func() string) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for what := missing(); what != ""; what = missing() {
		if time.Now().After(deadline) {
			t.Fatalf("after two minutes still: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
