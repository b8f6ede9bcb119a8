package projections_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/projections/jobs"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// patience bounds every wait for something that must come: long, for a busy machine, and never waited out.
const patience = 30 * time.Second

// database makes a database with the migrated schemas of the given projectors.
func database(t *testing.T, projectors ...projections.Projector) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	migrate(t, pool, projectors...)
	return pool
}

func migrate(t *testing.T, pool *pgxpool.Pool, projectors ...projections.Projector) {
	t.Helper()
	for _, p := range projectors {
		if err := migrations.Apply(t.Context(), pool, p.Name(), p.Migrations()); err != nil {
			t.Fatal(err)
		}
	}
}

type running struct {
	*projections.Runner
	cancel context.CancelFunc
	done   chan error
}

// run starts a runner that ends with the test, or with stop.
func run(t *testing.T, pool *pgxpool.Pool, log *jetstream.Log, p projections.Projector, batch int) *running {
	t.Helper()
	r, err := projections.NewRunner(pool, log, p, projections.Config{Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Batch: batch})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out := &running{Runner: r, cancel: cancel, done: make(chan error, 1)}
	go func() { out.done <- r.Run(ctx) }()
	t.Cleanup(func() { out.stop(t) })
	return out
}

// stop ends the runner and waits for it. A second call does nothing.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.cancel()
	if err, ok := <-r.done; ok {
		if err != nil {
			t.Errorf("runner: %v", err)
		}
		close(r.done)
	}
}

// reach waits until the projection has applied an event.
func (r *running) reach(t *testing.T, sequence events.Sequence) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := r.WaitFor(ctx, sequence); err != nil {
		t.Fatalf("%v (status %+v)", err, r.Status(t.Context()))
	}
}

// until waits for a status.
func (r *running) until(t *testing.T, what string, want func(projections.Status) bool) projections.Status {
	t.Helper()
	var status projections.Status
	eventually(t, what, func() (bool, string) {
		status = r.Status(t.Context())
		return want(status), fmt.Sprintf("%+v", status)
	})
	return status
}

func eventually(t *testing.T, what string, ok func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		done, last := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still waiting until %s; last seen: %s", what, last)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// record appends what a history holds from the given batch on.
func record(t *testing.T, log *jetstream.Log, batches [][]events.Change) events.Sequence {
	t.Helper()
	var last events.Sequence
	for _, batch := range batches {
		var err error
		if last, err = log.Append(t.Context(), jetstream.Cause{Actor: "test"}, batch...); err != nil {
			t.Fatal(err)
		}
	}
	return last
}

// rows is the content of a schema's tables, row by row and sorted, without goose's and the position.
func rows(t eventstest.TB, pool *pgxpool.Pool, schema string) map[string][]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tables, err := query(ctx, pool, `SELECT tablename::text FROM pg_tables WHERE schemaname = $1 AND tablename NOT IN ('position', $2)`, schema, migrations.VersionTable)
	if err != nil {
		t.Fatalf("list tables: %v", err)
	}
	out := map[string][]string{}
	for _, table := range tables {
		out[table], err = query(ctx, pool, `SELECT to_jsonb(t)::text AS row FROM `+pgx.Identifier{schema, table}.Sanitize()+` t ORDER BY row`)
		if err != nil {
			t.Fatalf("read table %s: %v", table, err)
		}
	}
	return out
}

func query(ctx context.Context, pool *pgxpool.Pool, statement string, args ...any) ([]string, error) {
	found, err := pool.Query(ctx, statement, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, pgx.RowTo[string])
}

// publications is a history of n published versions with an alias that follows them.
func publications(t *testing.T, n int) *eventstest.History {
	t.Helper()
	h := eventstest.New()
	for i := range n {
		session := eventstest.Session("debian", fmt.Sprint(i+1), "latest")
		session.Attachments = []events.UploadFile{{Format: "sbom.spdx.json", Size: 300, State: events.FilePending}}
		h.Publish(t, session)
	}
	return h
}

// faulty is a projector that can't apply some events while it is told so.
type faulty struct {
	projections.Projector
	mu  sync.Mutex
	bad map[events.Sequence]func(context.Context, pgx.Tx) error
}

func (f *faulty) Apply(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	if err := f.Projector.Apply(ctx, tx, batch); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, event := range batch {
		if fail := f.bad[event.Sequence]; fail != nil {
			return fail(ctx, tx)
		}
	}
	return nil
}

// counting is a projector that counts its batches.
type counting struct {
	projections.Projector
	calls atomic.Int64
}

func (c *counting) Apply(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	c.calls.Add(1)
	return c.Projector.Apply(ctx, tx, batch)
}

func (f *faulty) repair() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bad = nil
}

// gate is the network between a pool and its server. While it is shut, connections break and none is made.
type gate struct {
	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]bool
}

// behindGate makes a pool whose connections, and those made after its configuration, go through a gate.
func behindGate(t *testing.T, pool *pgxpool.Pool) (*pgxpool.Pool, *gate) {
	t.Helper()
	g := &gate{conns: map[net.Conn]bool{}}
	cfg := pool.Config()
	dial := cfg.ConnConfig.DialFunc
	cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.shut {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		conn, err := dial(ctx, network, addr)
		if err == nil {
			g.conns[conn] = true
		}
		return conn, err
	}
	out, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(out.Close)
	return out, g
}

func (g *gate) close(t *testing.T) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
	for conn := range g.conns {
		if err := conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	}
	clear(g.conns)
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
}

func both() []projections.Projector { return []projections.Projector{catalog.New(), jobs.New()} }
