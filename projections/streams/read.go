package streams

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
)

// Revision names a state of the live tables; equal ones are the same rows. It says nothing of which is newer.
type Revision struct {
	table  uint32 // object that holds the position: another one after a rebuild
	file   uint32 // where the versions are: another one after the tables were emptied
	stream string
	change int64 // transaction that changed a row last
}

// grewFrom says whether the rows of r are those of an earlier revision and what later facts have changed.
func (r Revision) grewFrom(earlier Revision) bool {
	return r.table == earlier.table && r.file == earlier.file && r.stream == earlier.stream
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

const selectRevision = `
SELECT tableoid, coalesce(pg_relation_filenode('` + Name + `.versions'), 0), coalesce(stream, ''), revision, sequence
FROM ` + Name + `.position`

// ReadRevision asks which state the live tables are in. It costs the database as good as nothing.
func ReadRevision(ctx context.Context, pool *pgxpool.Pool) (Revision, error) {
	revision, _, err := readRevision(ctx, pool)
	return revision, err
}

func readRevision(ctx context.Context, q querier) (r Revision, position events.Sequence, err error) {
	err = q.QueryRow(ctx, selectRevision).Scan(&r.table, &r.file, &r.stream, &r.change, &position)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) { // no row: no runner has been here yet
		return r, 0, fmt.Errorf("read the revision of the simplestreams tables: %w", err)
	}
	return r, position, nil
}

// ReadTables reads the live tables, private images included. Where earlier ones are given, it reads what later facts have changed,
// and takes the rest from them.
func ReadTables(ctx context.Context, pool *pgxpool.Pool, earlier *Tables) (*Tables, error) {
	for {
		tables, whole, err := readTables(ctx, pool, earlier)
		if err != nil {
			return nil, fmt.Errorf("read the simplestreams tables: %w", err)
		}
		if whole {
			return tables, nil
		}
	}
}

// readTables reads in one snapshot. It isn't whole if a rebuild put other tables in place meanwhile, or the tables were emptied:
// the snapshot doesn't show their rows, but names already lead to them.
func readTables(ctx context.Context, pool *pgxpool.Pool, earlier *Tables) (tables *Tables, whole bool, err error) {
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, pool, options, func(tx pgx.Tx) error {
		revision, position, err := readRevision(ctx, tx)
		if err != nil {
			return err
		}
		base := earlier
		if base == nil || !revision.grewFrom(base.Revision) || position < base.position {
			base = &Tables{}
		}
		changed, err := loadRows(ctx, tx, base.position)
		if err != nil {
			return err
		}
		after, _, err := readRevision(ctx, tx)
		if err != nil {
			return err
		}
		tables, whole = base.with(changed), after == revision
		tables.Revision, tables.position = revision, position
		return nil
	})
	return tables, whole, err
}
