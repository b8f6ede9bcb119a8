package projections_test

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
)

// A reader that keeps what it read with an edition, and reads again when that is over, never sees less than the position that it was told.
func TestWhatIsKeptForAnEditionIsNeverBehindThePosition(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	live := run(t, pool, log, catalog.New(), 0)
	eventually(t, "it has an edition", func() (bool, string) { _, ok := live.Edition(); return ok, "" })
	const moves = 200
	var work sync.WaitGroup
	defer work.Wait()
	var last atomic.Uint64 // 0: not all have been appended
	work.Go(func() {
		for i := range moves {
			sequence, err := log.Append(context.Background(), jetstream.Cause{}, events.Change{Fact: events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: fmt.Sprintf("a%d", i), Version: "1"}}})
			if err != nil {
				t.Errorf("append: %v", err)
			}
			if i == moves-1 {
				last.Store(max(1, uint64(sequence)))
			}
		}
	})
	var kept, of uint64 // position that the tables showed, and in which edition
	hits := 0
	deadline := time.Now().Add(patience)
	for last.Load() == 0 || kept < last.Load() {
		if time.Now().After(deadline) {
			t.Fatalf("the tables are at %d, the last event is %d", kept, last.Load())
		}
		position := live.Position()
		edition, ok := live.Edition()
		if !ok {
			t.Fatalf("an active runner has no edition: %+v", live.Status(t.Context()))
		}
		if edition == of {
			hits++
			runtime.Gosched()
		} else {
			if err := pool.QueryRow(t.Context(), `SELECT sequence FROM catalog.position`).Scan(&kept); err != nil {
				t.Fatal(err)
			}
			of = edition
		}
		if events.Sequence(kept) < position {
			t.Fatalf("kept for edition %d: tables of %d, though the position was %d", edition, kept, position)
		}
	}
	if hits == 0 {
		t.Error("no edition lasted for two looks")
	}
}

func TestOnlyTheActiveRunnerHasEditions(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	one := run(t, pool, log, catalog.New(), 0)
	one.until(t, "the first is active", func(s projections.Status) bool { return s.Active })
	eventually(t, "the first has an edition", func() (bool, string) { _, ok := one.Edition(); return ok, "" })
	two := run(t, pool, log, catalog.New(), 0)
	last := record(t, log, publications(t, 1).Batches)
	one.reach(t, last)
	two.reach(t, last)
	if number, ok := two.Edition(); ok {
		t.Errorf("on standby it has edition %d", number)
	}
	one.stop(t)
	if number, ok := one.Edition(); ok {
		t.Errorf("after its end it has edition %d", number)
	}
	eventually(t, "the second has an edition", func() (bool, string) { _, ok := two.Edition(); return ok, "" })
}

// A rebuild changes the tables and not the position, whoever does it.
func TestARebuildBeginsANewEdition(t *testing.T) {
	t.Parallel()
	pool, log := database(t, catalog.New()), natstest.Log(t)
	live := run(t, pool, log, catalog.New(), 0)
	live.reach(t, record(t, log, publications(t, 1).Batches))
	quiet := projections.RebuildConfig{Log: slog.New(slog.DiscardHandler)}
	for what, rebuild := range map[string]func(context.Context) error{
		"here":               projections.NewOperator(pool, log, catalog.New(), live.Runner, quiet).Run,
		"by another process": projections.NewOperator(pool, log, catalog.New(), nil, quiet).Run,
	} {
		before, ok := live.Edition()
		if !ok {
			t.Fatal("no edition before a rebuild " + what)
		}
		if err := rebuild(t.Context()); err != nil {
			t.Fatal(err)
		}
		after, _ := live.Edition()
		if what == "here" && after == before {
			t.Error("the edition lasted beyond a rebuild here")
		}
		eventually(t, "there is a new edition after a rebuild "+what, func() (bool, string) {
			after, ok := live.Edition()
			return ok && after != before, fmt.Sprint(after, ok)
		})
	}
}
