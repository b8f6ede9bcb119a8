package projections_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
)

// publishRaw puts a message into the stream that no rule would.
func publishRaw(t *testing.T, nc *nats.Conn, subject, eventType, data string) {
	t.Helper()
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	msg := nats.NewMsg(subject)
	msg.Header = nats.Header{"ce-type": {eventType}, "ce-time": {"2026-01-01T00:00:00Z"}, "ce-id": {"raw"}}
	msg.Data = []byte(data)
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
}

func TestPostgresGoesAwayAndComesBack(t *testing.T) {
	t.Parallel()
	direct, log := database(t, catalog.New()), natstest.Log(t)
	pool, network := behindGate(t, direct)
	h := publications(t, 2)
	half := len(h.Batches) / 2
	r := run(t, pool, log, catalog.New(), 0)
	r.reach(t, record(t, log, h.Batches[:half]))
	r.until(t, "it is active", func(s projections.Status) bool { return s.Active })

	network.close(t)
	r.until(t, "it notices, though nothing happens", func(s projections.Status) bool { return s.Error != "" && !s.Active })
	head := record(t, log, h.Batches[half:])
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.WaitFor(ctx, head); !errors.Is(err, projections.ErrNotYet) {
		t.Errorf("waiting without a database gives %v, want ErrNotYet", err)
	}
	if s := r.Status(t.Context()); s.LagEvents == 0 || s.ErrorSequence != 0 {
		t.Errorf("status is %+v, want a lag and no event to blame", s)
	}
	waited := make(chan error, 1)
	waiting, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() { waited <- r.WaitFor(waiting, head) }()

	network.open()
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	r.until(t, "the error is gone", func(s projections.Status) bool { return s.Error == "" && s.Active })
}

func TestALostConnectionLosesNoEventAndDoublesNone(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	h := publications(t, 8)
	r := run(t, pool, log, catalog.New(), 3)
	for i, batch := range h.Batches {
		record(t, log, [][]events.Change{batch})
		if i%25 == 10 {
			r.until(t, "it is active", func(s projections.Status) bool { return s.Active })
			if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'imgsrv projection catalog %' AND datname = current_database()`); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.reach(t, h.Head())
	whole := database(t, catalog.New())
	run(t, whole, log, catalog.New(), 0).reach(t, h.Head())
	if diff := cmp.Diff(rows(t, whole, catalog.Name), rows(t, pool, catalog.Name)); diff != "" {
		t.Errorf("tables (-undisturbed +disturbed):\n%s", diff)
	}
}

func TestTablesOfAnotherStreamAreRebuilt(t *testing.T) {
	t.Parallel()
	pool := database(t, catalog.New())
	before := natstest.Log(t)
	old := run(t, pool, before, catalog.New(), 0)
	old.reach(t, record(t, before, publications(t, 3).Batches))
	old.stop(t)

	after := natstest.Log(t)
	h := eventstest.New()
	h.Publish(t, eventstest.Session("alpine", "3"))
	head := record(t, after, h.Batches)
	r := run(t, pool, after, catalog.New(), 0)
	r.until(t, "it has caught up with the new stream", func(s projections.Status) bool { return s.Active && s.Position == head })

	whole := database(t, catalog.New())
	run(t, whole, after, catalog.New(), 0).reach(t, head)
	if diff := cmp.Diff(rows(t, whole, catalog.Name), rows(t, pool, catalog.Name)); diff != "" {
		t.Errorf("tables (-of the new stream alone +after the old one):\n%s", diff)
	}
}

func TestTablesAheadOfTheStreamAreRebuilt(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	head := record(t, log, publications(t, 1).Batches)
	first := run(t, pool, log, catalog.New(), 0)
	first.reach(t, head)
	first.stop(t)
	want := rows(t, pool, catalog.Name)
	// What a restored log looks like: the tables know events that it doesn't have.
	for _, change := range []string{
		`UPDATE catalog.position SET sequence = sequence + 100`,
		`INSERT INTO catalog.aliases (image, alias, version, moved_at, sequence) VALUES ('debian', 'lost', '1', now(), 1000)`,
	} {
		if _, err := pool.Exec(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	r := run(t, pool, log, catalog.New(), 0)
	r.until(t, "it has caught up with the stream", func(s projections.Status) bool { return s.Active && s.Position == head })
	if diff := cmp.Diff(want, rows(t, pool, catalog.Name)); diff != "" {
		t.Errorf("tables (-before +after):\n%s", diff)
	}
}

func TestAMissingSchemaIsShownAndUsedOnceItIsThere(t *testing.T) {
	t.Parallel()
	pool, log := database(t), natstest.Log(t)
	head := record(t, log, publications(t, 1).Batches)
	r := run(t, pool, log, catalog.New(), 0)
	r.until(t, "the trouble shows", func(s projections.Status) bool { return s.Error != "" })
	migrate(t, pool, catalog.New())
	r.reach(t, head)
}

func TestALostLogIsShownAndDoesNotKeepTheRunnerFromEnding(t *testing.T) {
	t.Parallel()
	pool := database(t, catalog.New())
	log, nc := natstest.LogAndConn(t)
	r := run(t, pool, log, catalog.New(), 0)
	r.reach(t, record(t, log, publications(t, 1).Batches))
	nc.Close()
	r.until(t, "the lock is given up", func(s projections.Status) bool { return s.Error != "" && !s.Active && s.Attempts > 1 })
	r.stop(t)
}

func TestARunnerThatStandsByEndsWhenItIsTold(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	one := run(t, pool, log, catalog.New(), 0)
	one.until(t, "the first is active", func(s projections.Status) bool { return s.Active })
	two := run(t, pool, log, catalog.New(), 0)
	two.stop(t)
	if s := one.Status(t.Context()); !s.Active {
		t.Errorf("the first is %+v, want it undisturbed", s)
	}
}
