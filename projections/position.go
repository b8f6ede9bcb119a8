package projections

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/migrations"
)

// errTakenOver says that the position isn't where this runner left it.
var errTakenOver = errors.New("another node has moved the projection's position")

const (
	selectPosition = `SELECT sequence, coalesce(stream, '') FROM position`
	selectTable    = `SELECT tableoid FROM position`
	insertPosition = `INSERT INTO position (sequence, stream, updated_at) VALUES (0, '', now()) ON CONFLICT DO NOTHING`
	updatePosition = `UPDATE position SET sequence = $1, updated_at = now() WHERE sequence = $2 AND stream = $3`
	resetPosition  = `UPDATE position SET sequence = 0, stream = $1, updated_at = now() WHERE sequence = $2 AND coalesce(stream, '') = $3`
	selectTables   = `SELECT tablename FROM pg_tables WHERE schemaname = current_schema() AND tablename <> 'position' AND tablename <> $1 ORDER BY tablename`
)

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// readPosition reads the position row; a schema that no runner has touched yet stands at 0 of no stream.
func readPosition(ctx context.Context, q querier, statement string) (events.Sequence, string, error) {
	var sequence int64
	var stream string
	err := q.QueryRow(ctx, statement).Scan(&sequence, &stream)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("read the position: %w", err)
	}
	return events.Sequence(sequence), stream, nil
}

// readTable tells the live tables from those that a rebuild puts in their place.
func readTable(ctx context.Context, q querier) (table uint32, err error) {
	if err := q.QueryRow(ctx, selectTable).Scan(&table); err != nil {
		return 0, fmt.Errorf("look which tables are live: %w", err)
	}
	return table, nil
}

func movePosition(ctx context.Context, tx pgx.Tx, stream string, from, to events.Sequence) error {
	tag, err := tx.Exec(ctx, updatePosition, int64(to), int64(from), stream)
	if err != nil {
		return fmt.Errorf("move the position: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return errTakenOver
	}
	return nil
}

// adopt finds out where to go on, once the lock is held. Tables that were derived from another stream, or
// from a part of this one that is gone, are emptied.
func (r *Runner) adopt(ctx context.Context, conn *pgx.Conn) (events.Sequence, error) {
	if _, err := conn.Exec(ctx, insertPosition); err != nil {
		return 0, fmt.Errorf("prepare the position: %w", err)
	}
	position, stream, err := readPosition(ctx, conn, selectPosition)
	if err != nil {
		return 0, err
	}
	// Read after the position: a stream only grows, so its head can't be behind by chance.
	head, err := r.events.Head(ctx)
	if err != nil {
		return 0, err
	}
	own := r.events.Identity()
	why := ""
	switch {
	case stream == own && position <= head:
		r.moved(position)
		return position, nil
	case stream == own:
		why = "the tables are ahead of the event log, which was restored from an older copy"
	case stream != "":
		why = "the tables were derived from another event stream"
	}
	if why != "" {
		r.log.Warn("rebuilding the projection from the first event: "+why, "position", position, "head", head, "stream_of_tables", stream, "stream", own)
	}
	if err := r.reset(ctx, conn, position, stream); err != nil {
		return 0, fmt.Errorf("empty the projection: %w", err)
	}
	r.moved(0)
	return 0, nil
}

// reset empties all tables of the schema and sets the position before the first event of this stream, in
// one transaction.
func (r *Runner) reset(ctx context.Context, conn *pgx.Conn, position events.Sequence, stream string) error {
	return r.transact(ctx, conn, func(tx pgx.Tx) error {
		// First, as in commit: the row is the lock.
		tag, err := tx.Exec(ctx, resetPosition, r.events.Identity(), int64(position), stream)
		if err != nil {
			return fmt.Errorf("reset the position: %w", err)
		}
		if tag.RowsAffected() == 0 {
			return errTakenOver
		}
		rows, err := tx.Query(ctx, selectTables, migrations.VersionTable)
		if err != nil {
			return fmt.Errorf("list the tables: %w", err)
		}
		tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return fmt.Errorf("list the tables: %w", err)
		}
		for i, table := range tables {
			tables[i] = pgx.Identifier{table}.Sanitize()
		}
		if len(tables) > 0 {
			if _, err := tx.Exec(ctx, `TRUNCATE `+strings.Join(tables, ", ")+` RESTART IDENTITY`); err != nil {
				return fmt.Errorf("truncate: %w", err)
			}
		}
		return nil
	})
}
