package migrations_test

import (
	"context"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/store/postgres"
)

func open(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Open(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// columns is the shape of a schema: table, column, type, nullability and default, and its indexes.
func columns(t *testing.T, pool *pgxpool.Pool, schema string) []string {
	t.Helper()
	found, err := pool.Query(t.Context(), `
		SELECT concat_ws(' ', table_name, column_name, data_type, collation_name, is_nullable, column_default) FROM information_schema.columns WHERE table_schema = $1
		UNION ALL
		SELECT replace(indexdef, $1 || '.', '') FROM pg_indexes WHERE schemaname = $1
		ORDER BY 1`, schema)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEachProjectionMigratesIntoASchemaOfAnyName(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]fs.FS{"catalog": migrations.Catalog(), "jobs": migrations.Jobs(), "streams": migrations.Streams()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := open(t)
			odd := `Re"build-1 of ` + name
			for _, schema := range []string{name, odd} {
				if err := migrations.Apply(t.Context(), pool, schema, files); err != nil {
					t.Fatal(err)
				}
			}
			shape := columns(t, pool, name)
			var positions int
			for _, column := range shape {
				if strings.HasPrefix(column, "position ") {
					positions++
				}
			}
			if positions != 4 {
				t.Errorf("table position has %d columns, want only_row, sequence, stream, updated_at", positions)
			}
			// The quoted name stands in index definitions; only the columns are compared there.
			if got := len(columns(t, pool, odd)); got != len(shape) {
				t.Errorf("schema %q has %d columns and indexes, %s has %d", odd, got, name, len(shape))
			}
			if leaked := columns(t, pool, "public"); len(leaked) != 0 {
				t.Errorf("something was made outside of the schema: %q", leaked)
			}
		})
	}
}

func TestNodesThatStartAtOnceMigrateOnce(t *testing.T) {
	t.Parallel()
	pool := open(t)
	var nodes errgroup.Group
	for range 6 {
		nodes.Go(func() error { return migrations.Apply(t.Context(), pool, "catalog", migrations.Catalog()) })
	}
	if err := nodes.Wait(); err != nil {
		t.Fatal(err)
	}
	var versions, distinct int
	if err := pool.QueryRow(t.Context(), `SELECT count(*), count(DISTINCT version_id) FROM catalog.goose_db_version`).Scan(&versions, &distinct); err != nil {
		t.Fatal(err)
	}
	if versions != distinct || versions < 2 { // goose's zero, and ours
		t.Errorf("%d migrations were recorded, of %d versions", versions, distinct)
	}
}

func TestANewMigrationKeepsTheRows(t *testing.T) {
	t.Parallel()
	pool := open(t)
	files := fstest.MapFS{"00001_a.sql": {Data: []byte("-- Why: a test.\n-- +goose Up\nCREATE TABLE a (n int);\nINSERT INTO a VALUES (7);\n")}}
	if err := migrations.Apply(t.Context(), pool, "s", files); err != nil {
		t.Fatal(err)
	}
	files["00002_b.sql"] = &fstest.MapFile{Data: []byte("-- Why: a test.\n-- +goose Up\nALTER TABLE a ADD m int NOT NULL DEFAULT 8;\n")}
	if err := migrations.Apply(t.Context(), pool, "s", files); err != nil {
		t.Fatal(err)
	}
	var n, m int
	if err := pool.QueryRow(t.Context(), `SELECT n, m FROM s.a`).Scan(&n, &m); err != nil || n != 7 || m != 8 {
		t.Errorf("the row is %d, %d (%v), want 7, 8", n, m, err)
	}
}

// What the last release left, tables with rows, becomes what a fresh database gets, and keeps the rows.
func TestTheCatalogOfTheLastReleaseMigrates(t *testing.T) {
	t.Parallel()
	pool := open(t)
	first, err := fs.ReadFile(migrations.Catalog(), "00001_catalog.sql")
	if err != nil {
		t.Fatal(err)
	}
	if err := migrations.Apply(t.Context(), pool, "catalog", fstest.MapFS{"00001_catalog.sql": {Data: first}}); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `
		INSERT INTO catalog.position (sequence, stream, updated_at) VALUES (7, 's', now());
		INSERT INTO catalog.formats (image, version, variant, format, digest, size_bytes, media_type) VALUES ('debian', '1', 'v', 'f', 'sha256:0', 1, 't')`); err != nil {
		t.Fatal(err)
	}
	for _, schema := range []string{"catalog", "fresh"} {
		if err := migrations.Apply(t.Context(), pool, schema, migrations.Catalog()); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(columns(t, pool, "fresh"), columns(t, pool, "catalog")); diff != "" {
		t.Errorf("schema (-fresh +migrated):\n%s", diff)
	}
	var position, formats int
	if err := pool.QueryRow(t.Context(), `SELECT sequence, (SELECT count(*) FROM catalog.formats) FROM catalog.position`).Scan(&position, &formats); err != nil || position != 7 || formats != 1 {
		t.Errorf("position %d, %d formats (%v), want 7 and 1", position, formats, err)
	}
}

func TestAFailedMigrationLeavesTheSchemaAsItWas(t *testing.T) {
	t.Parallel()
	pool := open(t)
	if err := migrations.Apply(t.Context(), pool, "jobs", migrations.Jobs()); err != nil {
		t.Fatal(err)
	}
	before := columns(t, pool, "jobs")
	files := fstest.MapFS{"00099_bad.sql": {Data: []byte("-- Why: a test.\n-- +goose Up\nCREATE TABLE half (n int);\nSELECT missing;\n")}}
	for _, entry := range names(t, migrations.Jobs()) {
		data, err := fs.ReadFile(migrations.Jobs(), entry)
		if err != nil {
			t.Fatal(err)
		}
		files[entry] = &fstest.MapFile{Data: data}
	}
	err := migrations.Apply(t.Context(), pool, "jobs", files)
	if err == nil || !strings.Contains(err.Error(), "jobs") {
		t.Fatalf("the migration gives %v, want an error that names the schema", err)
	}
	if diff := cmp.Diff(before, columns(t, pool, "jobs")); diff != "" {
		t.Errorf("schema (-before +after):\n%s", diff)
	}
}

func TestEachMigrationSaysWhyAtItsHeadAndGoesOnlyForward(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]fs.FS{"catalog": migrations.Catalog(), "jobs": migrations.Jobs(), "streams": migrations.Streams()} {
		for _, entry := range names(t, files) {
			data, err := fs.ReadFile(files, entry)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(string(data), "--") || strings.HasPrefix(string(data), "-- +goose") {
				t.Errorf("%s/%s doesn't begin with a comment that says why it is there", name, entry)
			}
			if strings.Contains(string(data), "+goose Down") {
				t.Errorf("%s/%s goes back: a projection is derived again instead", name, entry)
			}
		}
	}
}

func TestWaitingForAnotherNodeEndsWithTheContext(t *testing.T) {
	t.Parallel()
	pool := open(t)
	other, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Release()
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_lock(hashtextextended('imgsrv migrations catalog', 0))`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- migrations.Apply(ctx, pool, "catalog", migrations.Catalog()) }()
	for waiting := false; !waiting; {
		if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database() WHERE l.locktype = 'advisory' AND NOT l.granted)`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("migrated beside another node")
	}
	if _, err := other.Exec(t.Context(), `SELECT pg_advisory_unlock_all()`); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, files fs.FS) []string {
	t.Helper()
	found, err := fs.Glob(files, "*.sql")
	if err != nil || len(found) == 0 {
		t.Fatalf("no migrations (%v)", err)
	}
	return found
}
