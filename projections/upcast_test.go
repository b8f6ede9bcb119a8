package projections_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/projections/jobs"
	"github.com/imgsrv/imgsrv/projections/streams"
)

const (
	movedV1 = events.Type("imgsrv.alias.moved.v1")
	movedV2 = events.Type("imgsrv.alias.moved.v2")
)

// The golden files tell one publication. Told with the old version of a type or with the new one, the tables
// are the same.
func TestGoldenEventsOfOldVersionsGiveTheRowsOfTheNewOnes(t *testing.T) {
	t.Parallel()
	pool := database(t)
	publication := func(moved events.Type) []events.Event {
		var out []events.Event
		for _, typ := range []events.Type{
			"imgsrv.upload.initiated.v1", "imgsrv.version.reserved.v1", "imgsrv.upload.file_completed.v1", "imgsrv.upload.completed.v1", "imgsrv.job.queued.v1",
			"imgsrv.job.step_started.v1", "imgsrv.job.step_completed.v1", "imgsrv.blob.promoted.v1",
			"imgsrv.version.published.v1", "imgsrv.job.succeeded.v1", "imgsrv.image.described.v1", moved,
		} {
			name := strings.Replace(strings.TrimPrefix(string(typ), "imgsrv."), ".", "_", 1) + ".json"
			data, err := os.ReadFile(filepath.Join("..", "events", "testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, stored(t, typ, data, len(out)+1))
		}
		return out
	}
	for _, p := range []projections.Projector{catalog.New(), jobs.New(), streams.New()} {
		old, now := p.Name()+"_old", p.Name()+"_now"
		derive(t, pool, old, p, publication(movedV1))
		derive(t, pool, now, p, publication(movedV2))
		had := rows(t, pool, old)
		if diff := cmp.Diff(had, rows(t, pool, now)); diff != "" {
			t.Errorf("%s (-v1 +v2):\n%s", p.Name(), diff)
		}
		if aliases, ok := had["aliases"]; ok && (len(aliases) != 1 || !strings.Contains(aliases[0], "12.5.0")) {
			t.Errorf("%s: aliases %v, want the one that the golden event moved", p.Name(), aliases)
		}
	}
}

// Any history, with each move of an alias as the release before would have written it, gives the rows it gives today.
func TestHistoriesOfAnOldReleaseGiveTheSameRows(t *testing.T) {
	t.Parallel()
	pool := database(t)
	projectors := []projections.Projector{catalog.New(), streams.New()}
	for _, p := range projectors {
		derive(t, pool, p.Name()+"_old", p, nil)
		derive(t, pool, p.Name()+"_now", p, nil)
	}
	rapid.Check(t, func(t *rapid.T) {
		now := eventstest.Draw(t, rapid.IntRange(1, 40).Draw(t, "decisions")).Events
		old := make([]events.Event, len(now))
		for i, event := range now {
			if old[i] = event; event.Type == movedV2 {
				old[i].Type, old[i].Fact = movedV1, stored(t, movedV1, without(t, event.Data, "previous", "moved_by"), i+1).Fact
			}
		}
		for _, p := range projectors {
			empty(t, pool, p.Name()+"_old", p.Name()+"_now")
			derive(t, pool, p.Name()+"_old", p, old)
			derive(t, pool, p.Name()+"_now", p, now)
			if diff := cmp.Diff(rows(t, pool, p.Name()+"_old"), rows(t, pool, p.Name()+"_now")); diff != "" {
				t.Fatalf("%s (-v1 +v2):\n%s", p.Name(), diff)
			}
		}
	})
}

// stored is an event as a log would read it.
func stored(t eventstest.TB, typ events.Type, data []byte, n int) events.Event {
	t.Helper()
	fact, err := events.Decode(typ, data)
	if err != nil {
		t.Fatalf("%v", err)
	}
	at := time.Date(2026, 11, 24, 12, 0, n, 0, time.UTC)
	return events.Event{Meta: events.Meta{Time: at}, Sequence: events.Sequence(n), Subject: fact.Entity().Subject(), Type: typ, Fact: fact, Data: data}
}

func without(t eventstest.TB, data []byte, properties ...string) []byte {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal(data, &object); err != nil {
		t.Fatalf("%v", err)
	}
	for _, name := range properties {
		if _, ok := object[name]; !ok {
			t.Fatalf("there is no %s in %s", name, data)
		}
		delete(object, name)
	}
	out, err := json.Marshal(object)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// derive brings a history into the tables of a projection under another schema's name.
func derive(t eventstest.TB, pool *pgxpool.Pool, schema string, p projections.Projector, history []events.Event) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := migrations.Apply(ctx, pool, schema, p.Migrations()); err != nil {
		t.Fatalf("migrate: %v", err)
	}
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('search_path', $1, true)`, schema); err != nil {
			return err
		}
		return p.Apply(ctx, tx, history)
	})
	if err != nil {
		t.Fatalf("derive %s: %v", schema, err)
	}
}
