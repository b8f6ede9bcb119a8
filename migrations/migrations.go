// Package migrations holds the SQL that makes each projection's tables, and the one way to run it: into a
// schema of any name, so that a start, a test, a rebuild and a comparison all get the same tables. It knows
// no events and no queries.
//
// Migrations only go forward: what a projection holds can be derived again, so there is nothing to save by
// going back. Names in them are unqualified.
package migrations

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// VersionTable is the table of each migrated schema that says which migrations it has had.
const VersionTable = goose.DefaultTablename

//go:embed */*.sql
var files embed.FS

// Catalog is the files for images, versions, formats, attachments, derived files and aliases.
func Catalog() fs.FS { return folder("catalog") }

// Jobs is the files for upload sessions and publication jobs.
func Jobs() fs.FS { return folder("jobs") }

// Streams is the files for the simplestreams documents.
func Streams() fs.FS { return folder("streams") }

func folder(name string) fs.FS {
	sub, err := fs.Sub(files, name)
	if err != nil { // only for a name that is no valid path
		panic(err)
	}
	return sub
}

// Apply brings a schema up to date with files, making it where it is absent. The pool says which database;
// the work is done on connections of its own. Nodes that start at once take turns, each schema for itself.
// An error leaves the schema as the last whole migration left it; where PostgreSQL is away,
// postgres.IsUnavailable says so of it.
func Apply(ctx context.Context, pool *pgxpool.Pool, schema string, files fs.FS) (err error) {
	if had, err := hasAll(ctx, pool, schema, files); had || err != nil {
		return wrap(schema, err)
	}
	cfg := pool.Config().ConnConfig
	cfg.RuntimeParams["search_path"] = pgx.Identifier{schema}.Sanitize()
	// A private server acknowledges before it has synced, since rows can be derived again; a table that a kill took isn't made again before
	// the next start.
	cfg.RuntimeParams["synchronous_commit"] = "on"
	db := stdlib.OpenDB(*cfg)
	defer func() { err = errors.Join(err, wrap(schema, db.Close())) }()

	// The lock belongs to this connection and ends with it. Goose has a locker of its own, but that asks
	// again only every second.
	turn, err := db.Conn(ctx)
	if err != nil {
		return wrap(schema, err)
	}
	defer func() { err = errors.Join(err, wrap(schema, turn.Close())) }()
	if _, err := turn.ExecContext(ctx, `SELECT pg_advisory_lock(hashtextextended('imgsrv migrations ' || $1::text, 0))`, schema); err != nil {
		return wrap(schema, err)
	}
	if _, err := turn.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS `+pgx.Identifier{schema}.Sanitize()); err != nil {
		return wrap(schema, err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithDisableGlobalRegistry(true),
		goose.WithTableName(VersionTable), goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return wrap(schema, err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return wrap(schema, err)
	}
	return nil
}

// hasAll says whether a schema has had all migrations: then there is nothing to take turns for, and a start is the faster for it.
func hasAll(ctx context.Context, pool *pgxpool.Pool, schema string, files fs.FS) (bool, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return false, err
	}
	found, err := pool.Query(ctx, `SELECT version_id FROM `+pgx.Identifier{schema, VersionTable}.Sanitize()+` WHERE is_applied`)
	var versions []int64
	if err == nil {
		versions, err = pgx.CollectRows(found, pgx.RowTo[int64])
	}
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == undefinedTable {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, name := range names {
		version, err := goose.NumericComponent(name)
		if err != nil {
			return false, err
		}
		if !slices.Contains(versions, version) {
			return false, nil
		}
	}
	return true, nil
}

// undefinedTable is PostgreSQL's code for a table, or a schema of it, that isn't there.
const undefinedTable = "42P01"

func wrap(schema string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("migrate schema %s: %w", schema, err)
}
