package docs_test

import (
	"context"
	"fmt"
	"go/ast"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/projections/jobs"
	"github.com/imgsrv/imgsrv/projections/streams"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// The last column is what happens: each fact, its golden file, is applied by every projector, to empty tables, to
// those of a publication and to those of a withdrawn one, and the tables that it changes are the ones that its row names.
func TestTheFactTableNamesTheRowsThatEachFactMoves(t *testing.T) {
	t.Parallel()
	pool, err := postgres.Open(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	publication := []events.Type{"imgsrv.upload.initiated.v1", "imgsrv.job.queued.v1", "imgsrv.version.published.v1", "imgsrv.alias.moved.v2",
		"imgsrv.derived.requested.v1"}
	moved := map[events.Type]map[string]bool{}
	for _, p := range []projections.Projector{catalog.New(), jobs.New(), streams.New()} {
		if err := migrations.Apply(t.Context(), pool, p.Name(), p.Migrations()); err != nil {
			t.Fatal(err)
		}
		for _, typ := range events.Types() {
			if moved[typ] == nil {
				moved[typ] = map[string]bool{}
			}
			for _, before := range [][]events.Type{nil, publication, append(slices.Clone(publication), "imgsrv.version.withdrawn.v1")} {
				before = slices.DeleteFunc(slices.Clone(before), func(b events.Type) bool { return b == typ })
				for _, golden := range goldens(t, typ) {
					for _, table := range changed(t, pool, p, before, typ, golden) {
						moved[typ][p.Name()+"."+table] = true
					}
				}
			}
		}
	}
	for _, row := range factTable(t) {
		tables, projectors := map[string]bool{}, map[string]bool{}
		for table := range moved[row.fact] {
			schema, _, _ := strings.Cut(table, ".")
			projectors["projections/"+schema] = true
		}
		for _, name := range quoted.FindAllStringSubmatch(row.cells[2], -1) {
			tables[name[1]] = true
		}
		if diff := cmp.Diff(moved[row.fact], tables); diff != "" {
			t.Errorf("%s moves rows of other tables (-run +docs/events.md):\n%s", row.fact, diff)
		}
		named := map[string]bool{}
		for _, name := range quoted.FindAllStringSubmatch(row.cells[1], -1) {
			if strings.HasPrefix(name[1], "projections/") {
				named[name[1]] = true
			}
		}
		if diff := cmp.Diff(projectors, named); diff != "" {
			t.Errorf("%s is applied by other projectors (-run +docs/events.md):\n%s", row.fact, diff)
		}
	}
}

// changed are the tables of a projection that a fact, as in a golden file, changes after some others. Nothing of
// it stays.
func changed(t *testing.T, pool *pgxpool.Pool, p projections.Projector, before []events.Type, typ events.Type, golden string) []string {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tx.Rollback(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	}()
	if _, err := tx.Exec(t.Context(), `SELECT set_config('search_path', $1, true)`, p.Name()); err != nil {
		t.Fatal(err)
	}
	var out []string
	had := map[string]string{}
	for n, step := range append(slices.Clone(before), typ) {
		file := goldens(t, step)[0]
		if n == len(before) {
			had, file = contents(t, tx, p.Name()), golden
		}
		event, err := goldenEvent(step, file, n+1)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Apply(t.Context(), tx, []events.Event{event}); err != nil {
			t.Fatalf("%s applies %s: %v", p.Name(), step, err)
		}
	}
	for table, rows := range contents(t, tx, p.Name()) {
		if rows != had[table] {
			out = append(out, table)
		}
	}
	return out
}

func contents(t *testing.T, tx pgx.Tx, schema string) map[string]string {
	t.Helper()
	found, err := tx.Query(t.Context(), `SELECT tablename::text FROM pg_tables WHERE schemaname = $1 AND tablename NOT IN ('position', $2)`, schema, migrations.VersionTable)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, table := range tables {
		var rows string
		statement := `SELECT coalesce(string_agg(row, E'\n' ORDER BY row), '') FROM (SELECT to_jsonb(t)::text AS row FROM ` + pgx.Identifier{table}.Sanitize() + ` t) AS rows`
		if err := tx.QueryRow(t.Context(), statement).Scan(&rows); err != nil {
			t.Fatal(err)
		}
		out[table] = rows
	}
	return out
}

// goldens are the golden files of a type: the first, and those with what was added to it since.
func goldens(t *testing.T, typ events.Type) []string {
	t.Helper()
	name := filepath.Join("..", "events", "testdata", strings.Replace(strings.TrimPrefix(string(typ), "imgsrv."), ".", "_", 1))
	more, err := filepath.Glob(name + ".*.json")
	if err != nil {
		t.Fatal(err)
	}
	more = slices.DeleteFunc(more, func(file string) bool { return strings.HasSuffix(file, ".current.json") })
	return append([]string{name + ".json"}, more...)
}

func goldenEvent(typ events.Type, file string, n int) (events.Event, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return events.Event{}, err
	}
	fact, err := events.Decode(typ, data)
	if err != nil {
		return events.Event{}, err
	}
	at := time.Date(2026, 11, 24, 12, 0, n, 0, time.UTC)
	return events.Event{Meta: events.Meta{Time: at}, Sequence: events.Sequence(n), Subject: fact.Entity().Subject(), Type: typ, Fact: fact, Data: data}, nil
}

// Who is named as a consumer follows the subjects of that kind of entity, and who follows them is named by some
// fact of the kind.
func TestTheFactTableNamesWhoFollowsAKindOfEntity(t *testing.T) {
	t.Parallel()
	following := followers(t)
	named := map[string]map[string]bool{}
	for _, row := range factTable(t) {
		for _, name := range quoted.FindAllStringSubmatch(row.cells[1], -1) {
			folder := strings.TrimSuffix(name[1], "/"+filepath.Base(name[1]))
			if filepath.Ext(name[1]) == "" {
				folder = name[1]
			}
			if !strings.HasPrefix(folder, "handlers/") {
				continue
			}
			add(named, folder, events.KindOf(row.fact))
		}
	}
	if diff := cmp.Diff(following, named); diff != "" {
		t.Errorf("folders and the kinds of entity that they follow (-calls of events.SubjectOfKind +docs/events.md):\n%s", diff)
	}
}

// followers are the kinds of entity by the folder below handlers whose code consumes their subjects.
func followers(t *testing.T) map[string]map[string]bool {
	t.Helper()
	kinds := map[string]string{} // by the name of their constant
	for _, file := range goFiles(t, "events") {
		ast.Inspect(file.File, func(node ast.Node) bool {
			if spec, ok := node.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Kind") && len(spec.Values) == 1 {
				if value, ok := spec.Values[0].(*ast.BasicLit); ok {
					kinds[spec.Names[0].Name] = strings.Trim(value.Value, `"`)
				}
			}
			return true
		})
	}
	if diff := cmp.Diff(kindsOf(events.Types()), slices.Sorted(maps.Values(kinds))); diff != "" {
		t.Fatalf("constants of kinds (-registry +package events):\n%s", diff)
	}
	out := map[string]map[string]bool{}
	for _, file := range goFiles(t, "handlers") {
		if path.Dir(file.path) == "handlers/api" {
			continue // it reads on request: it follows nothing by itself
		}
		ast.Inspect(file.File, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 || selected(call.Fun) != "events.SubjectOfKind" {
				return true
			}
			kind, ok := kinds[strings.TrimPrefix(selected(call.Args[0]), "events.")]
			if !ok {
				t.Errorf("%s follows a kind that this test can't read", file.path)
			}
			add(out, path.Dir(file.path), kind)
			return true
		})
	}
	return out
}

func selected(expression ast.Expr) string {
	selector, ok := expression.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	return fmt.Sprint(selector.X, ".", selector.Sel)
}

func kindsOf(types []events.Type) []string {
	set := map[string]bool{}
	for _, typ := range types {
		set[events.KindOf(typ)] = true
	}
	return slices.Sorted(maps.Keys(set))
}
