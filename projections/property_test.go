package projections_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
)

// However a history is cut into transactions, some of which are undone and begun again, or applied twice,
// the tables are those of the whole history applied at once.
func TestTablesDependOnTheHistoryAlone(t *testing.T) {
	t.Parallel()
	pool := database(t)
	for _, p := range both() {
		for _, schema := range []string{p.Name() + "_whole", p.Name() + "_cut"} {
			if err := migrations.Apply(t.Context(), pool, schema, p.Migrations()); err != nil {
				t.Fatal(err)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		history := eventstest.Draw(t, rapid.IntRange(1, 40).Draw(t, "decisions")).Events
		for _, p := range both() {
			whole, cut := p.Name()+"_whole", p.Name()+"_cut"
			empty(t, pool, whole, cut)
			applyTo(t, pool, whole, p, history, true)
			for rest := history; len(rest) > 0; {
				n := rapid.IntRange(1, len(rest)).Draw(t, "batch")
				switch rapid.SampledFrom([]string{"", "", "undone", "twice"}).Draw(t, "accident") {
				case "undone":
					applyTo(t, pool, cut, p, rest[:n], false)
				case "twice":
					applyTo(t, pool, cut, p, rest[:n], true)
				}
				applyTo(t, pool, cut, p, rest[:n], true)
				rest = rest[n:]
			}
			if diff := cmp.Diff(rows(t, pool, whole), rows(t, pool, cut)); diff != "" {
				t.Fatalf("%s (-whole +cut):\n%s", p.Name(), diff)
			}
			compareWithHistory(t, pool, p.Name(), whole, history)
		}
	})
}

// compareWithHistory checks keys and states against what folding the facts gives, which needs no SQL.
func compareWithHistory(t *rapid.T, pool *pgxpool.Pool, projection, schema string, history []events.Event) {
	t.Helper()
	want := map[string]string{}
	for _, event := range history {
		switch fact := event.Fact.(type) {
		case events.ImageDescribed:
			want["image "+fact.Name] = string(fact.Visibility) + " " + fact.Description
		case events.VersionPublished:
			want["version "+fact.Image+" "+fact.Version.Version] = fact.Manifest.JobID
			for _, v := range fact.Manifest.Variants {
				for _, f := range v.Formats {
					want[fmt.Sprintf("format %s %s %s %s", fact.Image, fact.Version.Version, v.Name(), f.Format)] = string(f.Digest)
				}
			}
			for _, a := range fact.Manifest.Attachments {
				want[fmt.Sprintf("attachment %s %s %s", fact.Image, fact.Version.Version, a.Name)] = string(a.Digest)
			}
		case events.ImageVisibilityChanged:
			want["image "+fact.Name] = string(fact.Visibility) + " " + fact.Description
		case events.VersionWithdrawn:
			want["withdrawn "+fact.Image+" "+fact.Version.Version] = fact.Withdrawal.By + ": " + fact.Withdrawal.Reason
		case events.VersionRestored:
			delete(want, "withdrawn "+fact.Image+" "+fact.Version.Version)
		case events.AliasMoved:
			want["alias "+fact.Image+" "+fact.Alias.Alias] = fact.Version
		case events.AliasRemoved:
			delete(want, "alias "+fact.Image+" "+fact.Alias.Alias)
		}
	}
	statements := []string{
		`SELECT 'image ' || name, visibility || ' ' || description FROM images`,
		`SELECT 'version ' || image || ' ' || version, job_id FROM versions`,
		`SELECT 'withdrawn ' || image || ' ' || version, withdrawn_by || ': ' || withdrawn_reason FROM versions WHERE withdrawn_at IS NOT NULL`,
		`SELECT 'format ' || image || ' ' || version || ' ' || variant || ' ' || format, digest FROM formats`,
		`SELECT 'attachment ' || image || ' ' || version || ' ' || name, digest FROM attachments`,
		`SELECT 'alias ' || image || ' ' || alias, version FROM aliases`,
	}
	if projection == "jobs" {
		want = map[string]string{}
		for _, event := range history {
			switch fact := event.Fact.(type) {
			case events.UploadFact:
				want["upload "+fact.After().ID] = string(fact.After().State)
			case events.JobFact:
				want["job "+fact.After().ID] = string(fact.After().State)
			}
		}
		statements = []string{`SELECT 'upload ' || id, state FROM uploads`, `SELECT 'job ' || id, state FROM jobs`}
	}
	got := map[string]string{}
	inSchema(t, pool, schema, func(ctx context.Context, tx pgx.Tx) error {
		for _, statement := range statements {
			found, err := tx.Query(ctx, statement)
			if err != nil {
				return err
			}
			var key, value string
			if _, err := pgx.ForEachRow(found, []any{&key, &value}, func() error { got[key] = value; return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%s (-history +rows):\n%s", projection, diff)
	}
}

var errUndo = errors.New("undone on purpose")

func applyTo(t *rapid.T, pool *pgxpool.Pool, schema string, p projections.Projector, batch []events.Event, commit bool) {
	t.Helper()
	inSchema(t, pool, schema, func(ctx context.Context, tx pgx.Tx) error {
		if err := p.Apply(ctx, tx, batch); err != nil || commit {
			return err
		}
		return errUndo
	})
}

func empty(t *rapid.T, pool *pgxpool.Pool, schemas ...string) {
	t.Helper()
	for _, schema := range schemas {
		inSchema(t, pool, schema, func(ctx context.Context, tx pgx.Tx) error {
			for table := range rows(t, pool, schema) {
				// Not TRUNCATE: that makes new files each time.
				if _, err := tx.Exec(ctx, `DELETE FROM `+pgx.Identifier{table}.Sanitize()); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func inSchema(t *rapid.T, pool *pgxpool.Pool, schema string, work func(context.Context, pgx.Tx) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('search_path', $1, true)`, schema); err != nil {
			return err
		}
		return work(ctx, tx)
	})
	if err != nil && !errors.Is(err, errUndo) {
		t.Fatalf("schema %s: %v", schema, err)
	}
}
