package projections_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/projections/jobs"
)

func TestAPublicationBecomesRows(t *testing.T) {
	t.Parallel()
	pool, log := database(t, both()...), natstest.Log(t)
	head := record(t, log, publications(t, 1).Batches)
	for _, p := range both() {
		run(t, pool, log, p, 0).reach(t, head)
	}
	counts := map[string]int{}
	for _, schema := range []string{catalog.Name, jobs.Name} {
		for table, content := range rows(t, pool, schema) {
			counts[schema+"."+table] = len(content)
		}
	}
	want := map[string]int{"catalog.images": 1, "catalog.versions": 1, "catalog.formats": 2, "catalog.attachments": 1, "catalog.aliases": 1, "catalog.derived": 0, "jobs.uploads": 1, "jobs.jobs": 1}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
}

func TestAnEventIsAppliedWhileTheRunnerFollows(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	h := publications(t, 3)
	r := run(t, pool, log, catalog.New(), 0)
	for _, batch := range h.Batches {
		r.reach(t, record(t, log, [][]events.Change{batch}))
	}
	status := r.Status(t.Context())
	if status.Position != h.Head() || status.LagEvents != 0 || status.LagSeconds != 0 || !status.Active || status.Error != "" {
		t.Errorf("status is %+v, want one that has caught up with %d", status, h.Head())
	}
}

func TestPositionAdvancesOverFactsThatAProjectionIgnores(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	h := publications(t, 1)
	head := record(t, log, h.Batches[:1]) // a session: nothing for the catalog
	run(t, pool, log, catalog.New(), 0).reach(t, head)
	if got := rows(t, pool, catalog.Name)["images"]; len(got) != 0 {
		t.Errorf("an image is visible before its first version: %s", got)
	}
	// Nobody waits for the tables to say so, but they do before long: a restart goes on from there.
	eventually(t, "the position in the tables advances too", func() (bool, string) {
		got, err := query(t.Context(), pool, `SELECT sequence::text FROM catalog.position`)
		return err == nil && got[0] == fmt.Sprint(head), fmt.Sprint(got, err)
	})
}

func TestARestartGoesOnAfterThePosition(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 7, 500} {
		t.Run(fmt.Sprintf("batches of %d", batch), func(t *testing.T) {
			t.Parallel()
			pool, log := database(t, both()...), natstest.Log(t)
			h := publications(t, 6)
			var first events.Sequence
			for i := 0; i < len(h.Batches); i += 9 {
				last := record(t, log, h.Batches[i:min(i+9, len(h.Batches))])
				if first == 0 {
					first = last
				}
				for _, p := range both() {
					r := run(t, pool, log, p, batch)
					r.reach(t, first+(last-first)/2) // it may be cut off anywhere after this
					r.stop(t)
				}
			}
			whole := database(t, both()...)
			for _, p := range both() {
				run(t, pool, log, p, batch).reach(t, h.Head())
				run(t, whole, log, p, 0).reach(t, h.Head())
				if diff := cmp.Diff(rows(t, whole, p.Name()), rows(t, pool, p.Name())); diff != "" {
					t.Errorf("%s with restarts differs from one without (-without +with):\n%s", p.Name(), diff)
				}
			}
		})
	}
}

func TestOfTwoRunnersOneIsActiveAndTheOtherTakesOver(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	h := publications(t, 2)
	one := run(t, pool, log, catalog.New(), 0)
	one.until(t, "the first is active", func(s projections.Status) bool { return s.Active })
	second := &counting{Projector: catalog.New()}
	two := run(t, pool, log, second, 0)
	half := len(h.Batches) / 2
	var last events.Sequence
	for _, batch := range h.Batches[:half] {
		last = record(t, log, [][]events.Change{batch})
		one.reach(t, last)
		two.reach(t, last) // it waits for the other one's work
	}
	if n := second.calls.Load(); n != 0 {
		t.Errorf("the second applied %d batches while the first was active", n)
	}
	if s := two.Status(t.Context()); s.Active || s.Position != last {
		t.Errorf("the second is %+v, want it on standby at %d", s, last)
	}
	one.stop(t)
	two.reach(t, record(t, log, h.Batches[half:]))
	if s := two.Status(t.Context()); !s.Active {
		t.Errorf("the second is %+v, want it active", s)
	}
	if one.Status(t.Context()).Active {
		t.Error("a runner that has ended says that it is active")
	}
}

func TestAPositionThatAnotherNodeMovedIsReadAgain(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	h := publications(t, 2)
	half := len(h.Batches)/2 + 1 // the first version is published
	r := run(t, pool, log, catalog.New(), 0)
	r.reach(t, record(t, log, h.Batches[:half]))
	if len(rows(t, pool, catalog.Name)["versions"]) != 1 {
		t.Fatal("the first half of the history publishes no version")
	}
	// As a node that rebuilds would, if this one had lost its lock to it.
	if _, err := pool.Exec(t.Context(), `TRUNCATE catalog.images, catalog.versions, catalog.formats, catalog.attachments, catalog.aliases, catalog.derived; UPDATE catalog.position SET sequence = 0`); err != nil {
		t.Fatal(err)
	}
	record(t, log, h.Batches[half:])
	eventually(t, "everything is applied again", func() (bool, string) {
		got, err := query(t.Context(), pool, `SELECT sequence::text FROM catalog.position`)
		return err == nil && got[0] == fmt.Sprint(h.Head()), fmt.Sprint(got, err)
	})
	whole := database(t, catalog.New())
	run(t, whole, log, catalog.New(), 0).reach(t, h.Head())
	if diff := cmp.Diff(rows(t, whole, catalog.Name), rows(t, pool, catalog.Name)); diff != "" {
		t.Errorf("tables (-undisturbed +disturbed):\n%s", diff)
	}
}

func TestAnEventThatCannotBeAppliedStopsOnlyItsProjection(t *testing.T) {
	t.Parallel()
	broken := errors.New("no such column")
	for name, fail := range map[string]func(context.Context, pgx.Tx) error{
		"error": func(context.Context, pgx.Tx) error { return broken },
		"SQL error": func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, `SELECT missing FROM images`)
			return err
		},
		"panic": func(context.Context, pgx.Tx) error { panic("nil map") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, log := database(t, both()...), natstest.Log(t)
			h := publications(t, 2)
			poison := h.Head() - 3
			bad := &faulty{Projector: catalog.New(), bad: map[events.Sequence]func(context.Context, pgx.Tx) error{poison: fail}}
			record(t, log, h.Batches)
			stuck, well := run(t, pool, log, bad, 0), run(t, pool, log, jobs.New(), 0)
			well.reach(t, h.Head())
			status := stuck.until(t, "the event is named, twice", func(s projections.Status) bool { return s.ErrorSequence == poison && s.Attempts > 1 })
			if status.Position != poison-1 || status.LagEvents != 4 || status.LagSeconds <= 0 || status.Error == "" || status.ErrorSince.IsZero() {
				t.Errorf("status is %+v, want everything before %d applied and an error", status, poison)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := stuck.WaitFor(ctx, poison); !errors.Is(err, projections.ErrNotYet) {
				t.Errorf("waiting for the event gives %v, want ErrNotYet", err)
			}
			bad.repair()
			stuck.reach(t, h.Head())
			stuck.until(t, "the error is gone", func(s projections.Status) bool { return s.Error == "" && s.ErrorSequence == 0 })
		})
	}
}

func TestANodeOfANewerReleaseGoesOnWhereAnOlderOneIsStuck(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	h := publications(t, 2)
	poison := h.Head() - 3
	older := &faulty{Projector: catalog.New(), bad: map[events.Sequence]func(context.Context, pgx.Tx) error{
		poison: func(context.Context, pgx.Tx) error { return errors.New("not known yet") },
	}}
	record(t, log, h.Batches)
	stuck := run(t, pool, log, older, 0)
	stuck.until(t, "it is stuck", func(s projections.Status) bool { return s.ErrorSequence == poison })
	run(t, pool, log, catalog.New(), 0).reach(t, h.Head())
	stuck.until(t, "its error is overcome by the other node", func(s projections.Status) bool {
		return s.Error == "" && s.Position == h.Head() && s.LagSeconds == 0
	})
}

func TestAnUnknownTypeStopsTheProjectionBeforeIt(t *testing.T) {
	t.Parallel()
	pool := database(t, catalog.New())
	log, nc := natstest.LogAndConn(t)
	h := publications(t, 1)
	head := record(t, log, h.Batches)
	alien := events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: "next", Version: "1"}}
	publishRaw(t, nc, alien.Entity().Subject(), "imgsrv.alias.moved.v9", `{}`)
	r := run(t, pool, log, catalog.New(), 0)
	status := r.until(t, "the event is named", func(s projections.Status) bool { return s.ErrorSequence == head+1 })
	if status.Position != head || !strings.Contains(status.Error, "imgsrv.alias.moved.v9") {
		t.Errorf("status is %+v, want position %d and the unknown type", status, head)
	}
}

func TestWaitForEndsWithItsContext(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	r := run(t, pool, log, catalog.New(), 0)
	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := r.WaitFor(late, 1); !errors.Is(err, projections.ErrNotYet) {
		t.Errorf("after the deadline: %v, want ErrNotYet", err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.WaitFor(gone, 1); !errors.Is(err, context.Canceled) || errors.Is(err, projections.ErrNotYet) {
		t.Errorf("after a cancellation: %v, want context.Canceled", err)
	}
	if err := r.WaitFor(gone, 0); err != nil {
		t.Errorf("what is there needs no waiting: %v", err)
	}
}
