package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/migrations"
)

// VerifyConfig says how [Verify] works.
type VerifyConfig struct {
	Log   *slog.Logger
	Limit int // most differences that are returned; 0 means 100
	// Progress, optional, is told how far the derivation is.
	Progress func(applied, total events.Sequence)
}

// Verification is what a comparison of the live tables with freshly derived ones found.
type Verification struct {
	Projection string
	Position   events.Sequence // both are of this event
	Rows       int64           // compared
	// Total is how many rows differ; Differences are the first of them, by table and key.
	Total       int64
	Differences []Difference
	Took        time.Duration
}

// Difference is a row that isn't the same. Rows are JSON objects; "" where there is none.
type Difference struct {
	Table   string
	Key     string // JSON array of the primary key's values
	Live    string
	Derived string
}

// ErrOtherStream says that the live tables were not derived from this log; the active Runner derives them anew by itself.
var ErrOtherStream = errors.New("the tables were derived from another event stream, or are ahead of this one")

// Verify derives a projection again, in a schema beside the live one that it removes afterwards, up to the position of the live
// tables, and compares all rows. The live tables may change meanwhile: one moment of them is looked at. ErrRebuilding when
// a rebuild or another comparison runs; an [*EventError] when the log can't be applied up to that position.
func Verify(ctx context.Context, pool *pgxpool.Pool, log *jetstream.Log, p Projector, cfg VerifyConfig) (_ Verification, err error) {
	started := time.Now()
	out := Verification{Projection: p.Name()}
	if cfg.Limit <= 0 {
		cfg.Limit = 100
	}
	fail := func(err error) (Verification, error) {
		return out, fmt.Errorf("verify projection %s: %w", p.Name(), err)
	}
	// Under the lock of rebuilds: the live schema keeps its tables.
	work, err := openBench(ctx, pool, p.Name(), p.Name()+"_verify")
	if err != nil {
		return fail(err)
	}
	defer work.close(ctx)
	live, err := pool.Acquire(ctx)
	if err != nil {
		return fail(fmt.Errorf("connect to PostgreSQL: %w", err))
	}
	defer live.Release()
	tx, err := live.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return fail(fmt.Errorf("begin a transaction: %w", err))
	}
	defer tx.Rollback(context.WithoutCancel(ctx)) //nolint:errcheck // it only read
	tables, err := lockTables(ctx, tx, p.Name())
	if err != nil {
		return fail(err)
	}
	position, stream, err := readPosition(ctx, tx, `SELECT sequence, coalesce(stream, '') FROM `+quoted(p.Name())+`.position`)
	if err != nil {
		return fail(err)
	}
	head, err := log.Head(ctx)
	if err != nil {
		return fail(err)
	}
	if stream != log.Identity() && position > 0 || position > head {
		return fail(ErrOtherStream)
	}
	out.Position = position
	if err := derive(ctx, work, log, p, position, cfg); err != nil {
		return fail(err)
	}
	for _, table := range tables {
		if err := out.compare(ctx, tx, work.conn, p.Name(), table, cfg.Limit); err != nil {
			return fail(fmt.Errorf("compare table %s: %w", table, err))
		}
	}
	if err := work.drop(ctx, work.schema); err != nil {
		return fail(err)
	}
	out.Took = time.Since(started)
	return out, nil
}

// derive makes the schema of a bench what the projection is at a position.
func derive(ctx context.Context, work *bench, log *jetstream.Log, p Projector, position events.Sequence, cfg VerifyConfig) error {
	skipped, err := log.Projection(ctx, p.Name())
	if err != nil {
		return fmt.Errorf("read which events are skipped: %w", err)
	}
	// No mark: what an interrupted one left is of no use.
	if err := work.drop(ctx, work.schema); err != nil {
		return err
	}
	if _, err := work.prepare(ctx, p.Migrations(), "", log.Identity()); err != nil {
		return err
	}
	told := func(at events.Sequence) {
		if cfg.Progress != nil {
			cfg.Progress(at, position)
		}
	}
	d := &derivation{conn: work.conn, events: log, projector: bulkOf(p), log: cfg.Log, skipped: skipped.State, batch: bulkBatch, progress: told}
	_, err = d.fill(ctx, 0, position)
	return err
}

const selectTablesOf = `SELECT tablename::text FROM pg_tables WHERE schemaname = $1 AND tablename NOT IN ('position', $2) ORDER BY tablename`

// lockTables keeps the tables of a schema from being emptied or removed until tx ends, and lists them.
func lockTables(ctx context.Context, tx pgx.Tx, schema string) ([]string, error) {
	rows, err := tx.Query(ctx, selectTablesOf, schema, migrations.VersionTable)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	if len(tables) == 0 {
		return nil, fmt.Errorf("schema %s has no tables", schema)
	}
	names := make([]string, len(tables))
	for i, table := range tables {
		names[i] = pgx.Identifier{schema, table}.Sanitize()
	}
	if _, err := tx.Exec(ctx, `LOCK TABLE `+strings.Join(names, ", ")+` IN ACCESS SHARE MODE`); err != nil {
		return nil, fmt.Errorf("lock the tables: %w", err)
	}
	return tables, nil
}

// selectKey lists a table's key columns: those of its primary key, in the key's order.
const selectKey = `
SELECT a.attname::text
FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (number, place)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
WHERE i.indisprimary AND i.indrelid = $1::text::regclass
ORDER BY k.place`

// compare walks both tables in the order of their keys. The keys are compared as text, by bytes, on both sides the same.
func (v *Verification) compare(ctx context.Context, live pgx.Tx, derived *pgx.Conn, schema, table string, limit int) error {
	found, err := live.Query(ctx, selectKey, pgx.Identifier{schema, table}.Sanitize())
	if err != nil {
		return err
	}
	columns, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for i, column := range columns {
		columns[i] = "t." + pgx.Identifier{column}.Sanitize()
	}
	key := `jsonb_build_array(` + strings.Join(columns, ", ") + `)::text COLLATE "C"`
	if len(columns) == 0 {
		key = `to_jsonb(t)::text COLLATE "C"`
	}
	statement := func(from pgx.Identifier) string {
		return `SELECT ` + key + ` AS key, to_jsonb(t)::text FROM ` + from.Sanitize() + ` t ORDER BY key`
	}
	a, err := openCursor(ctx, live, statement(pgx.Identifier{schema, table}))
	if err != nil {
		return err
	}
	defer a.rows.Close()
	b, err := openCursor(ctx, derived, statement(pgx.Identifier{table}))
	if err != nil {
		return err
	}
	defer b.rows.Close()
	for a.more || b.more {
		v.Rows++
		d := Difference{Table: table}
		switch {
		case a.more && (!b.more || a.key < b.key):
			d.Key, d.Live = a.key, a.row
			a.next()
		case b.more && (!a.more || b.key < a.key):
			d.Key, d.Derived = b.key, b.row
			b.next()
		default:
			d.Key, d.Live, d.Derived = a.key, a.row, b.row
			a.next()
			b.next()
		}
		if d.Live == d.Derived {
			continue
		}
		if v.Total++; len(v.Differences) < limit {
			v.Differences = append(v.Differences, d)
		}
	}
	return errors.Join(a.err, b.err)
}

// cursor reads keys and rows one by one.
type cursor struct {
	rows     pgx.Rows
	key, row string
	more     bool
	err      error
}

func openCursor(ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, statement string) (*cursor, error) {
	rows, err := q.Query(ctx, statement)
	if err != nil {
		return nil, err
	}
	c := &cursor{rows: rows}
	c.next()
	return c, c.err
}

func (c *cursor) next() {
	if c.more = c.rows.Next(); !c.more {
		c.err = c.rows.Err()
		return
	}
	if c.err = c.rows.Scan(&c.key, &c.row); c.err != nil {
		c.more = false
		c.rows.Close()
	}
}
