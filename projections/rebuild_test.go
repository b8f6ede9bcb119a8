package projections_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/projections/jobs"
	"github.com/imgsrv/imgsrv/projections/streams"
)

func all() []projections.Projector {
	return []projections.Projector{catalog.New(), jobs.New(), streams.New()}
}

func rebuilder(pool *pgxpool.Pool, log *jetstream.Log, p projections.Projector, batch int) *projections.Rebuilder {
	return projections.NewRebuilder(pool, log, p, projections.RebuildConfig{Log: slog.New(slog.DiscardHandler), Batch: batch})
}

func verify(t *testing.T, pool *pgxpool.Pool, log *jetstream.Log, p projections.Projector) projections.Verification {
	t.Helper()
	found, err := projections.Verify(t.Context(), pool, log, p, projections.VerifyConfig{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// schemas lists what there is beside the live schemas.
func schemasBeside(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	found, err := query(t.Context(), pool, `SELECT nspname::text FROM pg_namespace WHERE nspname ~ '_(next|old|verify|replay)$' ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestARebuiltProjectionEqualsTheLiveOne(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 7, 0} {
		for _, p := range all() {
			t.Run(fmt.Sprint(p.Name(), " in batches of ", batch), func(t *testing.T) {
				t.Parallel()
				pool, log := database(t, p), natstest.Log(t)
				h := publications(t, 4)
				h.Publish(t, eventstest.Session("alpine", "3.20", "edge"))
				if err := h.RemoveAlias(t, "alpine", "edge"); err != nil {
					t.Fatal(err)
				}
				head := record(t, log, h.Batches)
				live := run(t, pool, log, p, 0)
				live.reach(t, head)
				want := rows(t, pool, p.Name())
				r := rebuilder(pool, log, p, batch)
				if err := r.Run(t.Context()); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, rows(t, pool, p.Name())); diff != "" {
					t.Errorf("tables (-live +rebuilt):\n%s", diff)
				}
				if got := r.Progress(); got.State != projections.RebuildDone || got.Applied != head || got.Total != head {
					t.Errorf("progress %+v, want done at %d", got, head)
				}
				if beside := schemasBeside(t, pool); len(beside) != 0 {
					t.Errorf("left behind: %v", beside)
				}
				// The live runner goes on in the new tables.
				h.Publish(t, eventstest.Session("debian", "99", "latest"))
				more := record(t, log, h.Batches[len(h.Batches)-countAfter(h, head):])
				live.reach(t, more)
				// The table's position follows the runner's a moment later, over facts that don't concern the projection.
				eventually(t, "the tables are those of the publication", func() (bool, string) {
					found := verify(t, pool, log, p)
					return found.Total == 0 && found.Position == more, fmt.Sprintf("%+v", found)
				})
			})
		}
	}
}

// countAfter is how many batches of a history come after a sequence.
func countAfter(h *eventstest.History, sequence events.Sequence) int {
	n, at := 0, events.Sequence(0)
	for _, batch := range h.Batches {
		if at += events.Sequence(len(batch)); at > sequence {
			n++
		}
	}
	return n
}

// Clients read, with the sequence of each write, while the projections are rebuilt over and over.
func TestReadersSeeNoErrorAndNothingStaleWhileATableIsSwapped(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	live := run(t, pool, log, catalog.New(), 0)
	standby := run(t, pool, log, catalog.New(), 0)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	for reader := range 3 {
		work.Go(func() {
			runner := []*running{live, standby}[reader%2]
			for i := 0; ctx.Err() == nil; i++ {
				alias := fmt.Sprintf("r%d-%d", reader, i)
				sequence, err := log.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: alias, Version: "1"}}})
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				waiting, cancel := context.WithTimeout(t.Context(), patience)
				err = runner.WaitFor(waiting, sequence)
				cancel()
				if err != nil {
					t.Errorf("wait for %d: %v", sequence, err)
					return
				}
				var found events.Sequence
				if err := pool.QueryRow(t.Context(), `SELECT a.sequence FROM catalog.aliases a WHERE a.image = 'debian' AND a.alias = $1`, alias).Scan(&found); err != nil || found != sequence {
					t.Errorf("alias %s of event %d: %d, %v", alias, sequence, found, err)
					return
				}
			}
		})
	}
	for range 8 {
		if err := rebuilder(pool, log, catalog.New(), 50).Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	work.Wait()
	head, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	live.reach(t, head)
	if found := verify(t, pool, log, catalog.New()); found.Total != 0 || found.Rows == 0 {
		t.Errorf("%+v", found)
	}
}

// stopping is a projector that stops a rebuild after so many batches.
type stopping struct {
	catalog.Projector
	after int
	stop  func()
}

func (s *stopping) Load(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	if s.after--; s.after < 0 {
		s.stop()
		return ctx.Err()
	}
	return s.Projector.Load(ctx, tx, batch)
}

func TestAStoppedRebuildGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	head := record(t, log, publications(t, 6).Batches)
	run(t, pool, log, catalog.New(), 0).reach(t, head)
	want := rows(t, pool, catalog.Name)
	ctx, stop := context.WithCancel(t.Context())
	r := rebuilder(pool, log, &stopping{after: 3, stop: stop}, 5)
	if err := r.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("the stopped rebuild says %v", err)
	}
	at := r.Progress()
	if at.State != projections.RebuildStopped || at.Applied == 0 || at.Applied >= head {
		t.Fatalf("stopped: %+v", at)
	}
	if diff := cmp.Diff([]string{"catalog_next"}, schemasBeside(t, pool)); diff != "" {
		t.Errorf("schemas (-want +got):\n%s", diff)
	}
	again := rebuilder(pool, log, catalog.New(), 5)
	if err := again.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := again.Progress(); got.ResumedFrom != at.Applied || got.State != projections.RebuildDone {
		t.Errorf("the second run %+v, want it to go on at %d", got, at.Applied)
	}
	if diff := cmp.Diff(want, rows(t, pool, catalog.Name)); diff != "" {
		t.Errorf("tables (-before +after):\n%s", diff)
	}
}

func TestAFailedRebuildNamesTheEventAndLeavesTheLiveTablesAlone(t *testing.T) {
	t.Parallel()
	for _, batch := range []int{1, 0} {
		t.Run(fmt.Sprint("in batches of ", batch), func(t *testing.T) {
			t.Parallel()
			pool, log := database(t, catalog.New()), natstest.Log(t)
			head := record(t, log, publications(t, 3).Batches)
			live := run(t, pool, log, catalog.New(), 0)
			live.reach(t, head)
			want := rows(t, pool, catalog.Name)
			bad := &faulty{Projector: catalog.New(), bad: map[events.Sequence]func(context.Context, pgx.Tx) error{
				head - 5: func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, `SELECT 1/0`); return err },
			}}
			r := rebuilder(pool, log, bad, batch)
			err := r.Run(t.Context())
			var event *projections.EventError
			if !errors.As(err, &event) || event.Sequence != head-5 {
				t.Fatalf("the rebuild says %v, want an error at %d", err, head-5)
			}
			if got := r.Progress(); got.State != projections.RebuildFailed || got.Applied != head-6 || got.Err == nil {
				t.Errorf("progress %+v, want a failure after %d", got, head-6)
			}
			if diff := cmp.Diff(want, rows(t, pool, catalog.Name)); diff != "" {
				t.Errorf("live tables (-before +after):\n%s", diff)
			}
			if s := live.Status(t.Context()); !s.Active || s.Error != "" {
				t.Errorf("the live projection is %+v", s)
			}
			// With the fault repaired the same command goes on.
			bad.repair()
			if err := r.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := r.Progress(); got.ResumedFrom != head-6 {
				t.Errorf("it went on at %d, want %d", got.ResumedFrom, head-6)
			}
		})
	}
}

func TestOfTwoRebuildsOneRuns(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	record(t, log, publications(t, 1).Batches)
	inside, leave := make(chan struct{}), make(chan struct{})
	r := rebuilder(pool, log, &stopping{stop: func() { close(inside); <-leave }}, 0)
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-inside
	if err := rebuilder(pool, log, catalog.New(), 0).Run(t.Context()); !errors.Is(err, projections.ErrRebuilding) {
		t.Errorf("the second rebuild says %v", err)
	}
	if _, err := projections.Verify(t.Context(), pool, log, catalog.New(), projections.VerifyConfig{Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, projections.ErrRebuilding) {
		t.Errorf("a comparison beside the rebuild says %v", err)
	}
	if err := r.Start(t.Context()); !errors.Is(err, projections.ErrRebuilding) {
		t.Errorf("the same rebuilder again says %v", err)
	}
	close(leave)
	r.Stop()
	if s := r.Progress().State; s != projections.RebuildStopped && s != projections.RebuildDone {
		t.Errorf("state %s after Stop", s)
	}
}

func TestVerifyFindsEachKindOfDifference(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	r := run(t, pool, log, catalog.New(), 0)
	r.reach(t, record(t, log, publications(t, 3).Batches))
	if found := verify(t, pool, log, catalog.New()); found.Total != 0 || found.Rows != 1+3+6+3+1 {
		t.Fatalf("untouched tables: %+v", found)
	}
	for _, change := range []string{
		`UPDATE catalog.versions SET published_by = 'somebody' WHERE version = '2'`,
		`DELETE FROM catalog.aliases`,
		`INSERT INTO catalog.images SELECT 'aaa', os, release, description, visibility, flavours, created_at, updated_at, sequence FROM catalog.images`,
	} {
		if _, err := pool.Exec(t.Context(), change); err != nil {
			t.Fatal(err)
		}
	}
	found := verify(t, pool, log, catalog.New())
	var got []string
	for _, d := range found.Differences {
		got = append(got, fmt.Sprint(d.Table, " ", d.Key, " ", d.Live != "", " ", d.Derived != "", " ", strings.Contains(d.Live, "somebody")))
	}
	want := []string{`aliases ["debian", "latest"] false true false`, `images ["aaa"] true false false`, `versions ["debian", "2"] true true true`}
	if diff := cmp.Diff(want, got); diff != "" || found.Total != 3 {
		t.Errorf("differences, %d in all (-want +got):\n%s", found.Total, diff)
	}
	if beside := schemasBeside(t, pool); len(beside) != 0 {
		t.Errorf("left behind: %v", beside)
	}
	// A rebuild puts it right.
	if err := rebuilder(pool, log, catalog.New(), 0).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := verify(t, pool, log, catalog.New()); found.Total != 0 {
		t.Errorf("after a rebuild: %+v", found)
	}
}

func TestReplayTellsWhichRowsEachEventChangesAndChangesNone(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	h := publications(t, 1)
	before := record(t, log, h.Batches)
	if err := h.MoveAlias(t, "debian", "stable", "1"); err != nil {
		t.Fatal(err)
	}
	if err := h.RemoveAlias(t, "debian", "latest"); err != nil {
		t.Fatal(err)
	}
	head := record(t, log, h.Batches[len(h.Batches)-2:])
	run(t, pool, log, catalog.New(), 0).reach(t, head)
	want := rows(t, pool, catalog.Name)
	var got []string
	err := projections.Replay(t.Context(), pool, log, catalog.New(), before, head+100, projections.VerifyConfig{Log: slog.New(slog.DiscardHandler)}, func(e projections.Replayed) error {
		for _, c := range e.Changes {
			got = append(got, fmt.Sprint(e.Sequence-before, " ", e.Type, " ", c.Op, " ", c.Table, " ", strings.Contains(c.Row, "debian")))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// The one in between is version.named, which goes with a move by hand and changes no row.
	told := []string{"0 imgsrv.alias.moved.v2 insert aliases true", "2 imgsrv.alias.moved.v2 insert aliases true", "3 imgsrv.alias.removed.v1 delete aliases true"}
	if diff := cmp.Diff(told, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, rows(t, pool, catalog.Name)); diff != "" {
		t.Errorf("live tables (-before +after):\n%s", diff)
	}
	if beside := schemasBeside(t, pool); len(beside) != 0 {
		t.Errorf("left behind: %v", beside)
	}
}

// Random histories, cut anywhere: live batches of any size, runners that are restarted, and rebuilds in between, in any batches.
func TestRebuildsInBetweenChangeNothing(t *testing.T) {
	t.Parallel()
	type tables struct{ cut, whole *pgxpool.Pool }
	of := map[string]tables{}
	for _, p := range all() {
		of[p.Name()] = tables{database(t, p), database(t, p)}
	}
	next := natstest.Rounds(t)
	rapid.Check(t, func(rt *rapid.T) {
		h := eventstest.Draw(rt, rapid.IntRange(1, 30).Draw(rt, "decisions"))
		if len(h.Batches) == 0 {
			return
		}
		p := rapid.SampledFrom(all()).Draw(rt, "projection")
		log := next() // tables of an earlier round's stream are emptied by the runner
		cut, whole := of[p.Name()].cut, of[p.Name()].whole
		follow := func(pool *pgxpool.Pool, batch int, to events.Sequence) {
			r := run(t, pool, log, p, batch)
			defer r.stop(t)
			r.reach(t, to)
		}
		for done := 0; done < len(h.Batches); {
			n := min(rapid.IntRange(1, 20).Draw(rt, "decisions at once"), len(h.Batches)-done)
			head := record(t, log, h.Batches[done:done+n])
			done += n
			if rapid.Bool().Draw(rt, "rebuild") {
				if err := rebuilder(cut, log, p, rapid.IntRange(1, 30).Draw(rt, "rebuild batch")).Run(t.Context()); err != nil {
					rt.Fatal(err)
				}
			}
			// It may be cut off anywhere after this.
			follow(cut, rapid.IntRange(1, 30).Draw(rt, "batch"), events.Sequence(rapid.Uint64Range(0, uint64(head)).Draw(rt, "cut")))
		}
		follow(cut, 0, h.Head())
		follow(whole, 0, h.Head())
		want := rows(rt, whole, p.Name())
		if diff := cmp.Diff(want, rows(rt, cut, p.Name())); diff != "" {
			rt.Fatalf("%s (-applied at once +cut and rebuilt):\n%s", p.Name(), diff)
		}
		if err := rebuilder(whole, log, p, 0).Run(t.Context()); err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want, rows(rt, whole, p.Name())); diff != "" {
			rt.Fatalf("%s (-applied at once +rebuilt):\n%s", p.Name(), diff)
		}
	})
}

func TestASkippedEventIsMovedOverByTheRunnerAndByRebuilds(t *testing.T) {
	t.Parallel()
	pool, log := database(t, both()...), natstest.Log(t)
	h := publications(t, 2)
	head := record(t, log, h.Batches)
	poison := &faulty{Projector: catalog.New(), bad: map[events.Sequence]func(context.Context, pgx.Tx) error{
		head - 2: func(ctx context.Context, tx pgx.Tx) error { _, err := tx.Exec(ctx, `SELECT 1/0`); return err },
	}}
	r, other := run(t, pool, log, poison, 0), run(t, pool, log, jobs.New(), 0)
	stuck := r.until(t, "it stands at the event", func(s projections.Status) bool { return s.ErrorSequence == head-2 })
	if stuck.Position != head-3 || !strings.Contains(stuck.Remedy(), fmt.Sprintf("imgsrv projections skip catalog %d", head-2)) {
		t.Errorf("status %+v, remedy %q", stuck, stuck.Remedy())
	}
	other.reach(t, head)
	skip(t, log, catalog.Name, head-2)
	r.Retry()
	r.reach(t, head)
	r.until(t, "the error is gone", func(s projections.Status) bool { return s.Error == "" })
	want := rows(t, pool, catalog.Name)
	if err := rebuilder(pool, log, poison, 0).Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, rows(t, pool, catalog.Name)); diff != "" {
		t.Errorf("tables (-live +rebuilt):\n%s", diff)
	}
	if found := verify(t, pool, log, poison); found.Total != 0 {
		t.Errorf("%+v", found)
	}
}

func skip(t *testing.T, log *jetstream.Log, name string, sequence events.Sequence) {
	t.Helper()
	current, err := log.Projection(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	head, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changes, err := events.SkipEvent(current, name, events.SkippedEvent{Sequence: sequence, Reason: "a test", By: "test", At: time.Now()}, head)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.Append(t.Context(), jetstream.Cause{}, changes...); err != nil {
		t.Fatal(err)
	}
}
