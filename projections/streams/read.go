package streams

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Revision names a state of the live tables; equal ones are the same rows. It says nothing of which is newer.
type Revision struct {
	table  uint32 // object that holds the position: another one after a rebuild
	stream string
	change int64 // transaction that changed a row last
}

// Tables is all that documents are made of, at one moment.
type Tables struct {
	Revision Revision
	Products []Product
	Aliases  []Alias
	Images   []Image
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const selectRevision = `SELECT tableoid, coalesce(stream, ''), revision FROM ` + Name + `.position`

// ReadRevision asks which state the live tables are in. It costs the database as good as nothing.
func ReadRevision(ctx context.Context, pool *pgxpool.Pool) (Revision, error) {
	return readRevision(ctx, pool)
}

func readRevision(ctx context.Context, q querier) (Revision, error) {
	var r Revision
	err := q.QueryRow(ctx, selectRevision).Scan(&r.table, &r.stream, &r.change)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) { // no row: no runner has been here yet
		return r, fmt.Errorf("read the revision of the simplestreams tables: %w", err)
	}
	return r, nil
}

// ReadTables reads the live tables, private images included.
func ReadTables(ctx context.Context, pool *pgxpool.Pool) (Tables, error) {
	for {
		tables, whole, err := readTables(ctx, pool)
		if err != nil {
			return Tables{}, fmt.Errorf("read the simplestreams tables: %w", err)
		}
		if whole {
			return tables, nil
		}
	}
}

// readTables reads in one snapshot. It isn't whole if a rebuild put other tables in place meanwhile: the snapshot doesn't show
// their rows, but names already lead to them.
func readTables(ctx context.Context, pool *pgxpool.Pool) (tables Tables, whole bool, err error) {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, pool, options, func(tx pgx.Tx) error {
		var err error
		if tables.Revision, err = readRevision(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL search_path = `+Name); err != nil {
			return err
		}
		var errs [4]error
		tables.Products, errs[0] = loadProducts(ctx, tx)
		tables.Aliases, errs[1] = loadAliases(ctx, tx)
		tables.Images, errs[2] = loadImages(ctx, tx)
		after, err := readRevision(ctx, tx)
		errs[3], whole = err, after == tables.Revision
		return errors.Join(errs[:]...)
	})
	return tables, whole, err
}
