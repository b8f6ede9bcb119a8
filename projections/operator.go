package projections

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/migrations"
)

// exactRows is up to how many rows a table is counted; of a larger one PostgreSQL's estimate is told.
const exactRows = 100_000

// Operator is what people can do to one projection. It works beside a node that runs, and without one.
type Operator struct {
	*Rebuilder
	runner *Runner // nil where no node runs
}

// NewOperator makes the operator of a projection; runner is nil where none runs.
func NewOperator(pool *pgxpool.Pool, log *jetstream.Log, p Projector, runner *Runner, cfg RebuildConfig) *Operator {
	o := &Operator{Rebuilder: NewRebuilder(pool, log, p, cfg), runner: runner}
	if runner != nil {
		o.swapped = runner.replaced
	}
	return o
}

// Report is how a projection is doing, for people.
type Report struct {
	Status
	ActiveNode string // host/process id, or as PostgreSQL knows its connection; "" for none
	Tables     []TableRows
	Skipped    []events.SkippedEvent
	// Trouble is what kept some of this from being found out; "" for nothing.
	Trouble string
}

// TableRows is how many rows a table has.
type TableRows struct {
	Table     string
	Rows      int64
	Estimated bool
}

// Report asks the database and the log. What doesn't answer is left out, and told as Trouble.
func (o *Operator) Report(ctx context.Context) Report {
	out := Report{}
	var errs [3]error
	if o.runner != nil {
		out.Status = o.runner.Status(ctx)
	} else {
		out.Status, errs[0] = o.stored(ctx)
	}
	errs[1] = o.tables(ctx, &out)
	var current events.Current[events.Projection]
	current, errs[2] = o.events.Projection(ctx, o.Name())
	out.Skipped = current.State.Skipped
	if err := errors.Join(errs[:]...); err != nil {
		out.Trouble = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return out
}

// stored is what can be said without a runner.
func (o *Operator) stored(ctx context.Context) (Status, error) {
	out := Status{Name: o.Name()}
	head, err := o.events.Head(ctx)
	if err != nil {
		return out, err
	}
	position, stream, err := readPosition(ctx, o.pool, `SELECT sequence, coalesce(stream, '') FROM `+quoted(o.Name())+`.position`)
	if err != nil {
		return out, err
	}
	if stream != "" && stream != o.events.Identity() || position > head {
		out.Error, position = ErrOtherStream.Error(), 0
	}
	out.Position, out.Head = position, head
	if out.LagEvents = uint64(head - position); out.LagEvents > 0 {
		if next, ok, _ := o.events.At(ctx, position+1); ok && !next.Time.IsZero() { // also of one that can't be decoded
			out.LagSeconds = max(0, time.Since(next.Time).Seconds())
		}
	}
	return out, nil
}

const (
	selectActive = `
SELECT coalesce(nullif(substr(a.application_name, length($2) + 1), ''), a.client_addr::text, 'process ' || l.pid)
FROM pg_locks l
LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('imgsrv projection ' || $1::text, 0)`

	selectEstimates = `
SELECT c.relname::text, c.reltuples::bigint
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind = 'r' AND c.relname NOT IN ('position', $2)
ORDER BY c.relname`
)

func (o *Operator) tables(ctx context.Context, out *Report) error {
	err := o.pool.QueryRow(ctx, selectActive, o.Name(), defaultAppName+o.Name()+" ").Scan(&out.ActiveNode)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look for the active node: %w", err)
	}
	found, err := o.pool.Query(ctx, selectEstimates, o.Name(), migrations.VersionTable)
	if err != nil {
		return fmt.Errorf("list the tables: %w", err)
	}
	tables, err := pgx.CollectRows(found, func(row pgx.CollectableRow) (t TableRows, err error) {
		return t, row.Scan(&t.Table, &t.Rows)
	})
	if err != nil {
		return fmt.Errorf("list the tables: %w", err)
	}
	for i := range tables {
		if tables[i].Rows > exactRows {
			tables[i].Estimated = true
			continue
		}
		if err := o.pool.QueryRow(ctx, `SELECT count(*) FROM `+pgx.Identifier{o.Name(), tables[i].Table}.Sanitize()).Scan(&tables[i].Rows); err != nil {
			return fmt.Errorf("count table %s: %w", tables[i].Table, err)
		}
	}
	out.Tables = tables
	return nil
}

// Verify is [Verify] of this projection.
func (o *Operator) Verify(ctx context.Context, limit int, progress func(applied, total events.Sequence)) (Verification, error) {
	return Verify(ctx, o.pool, o.events, o.projector, VerifyConfig{Log: o.log, Limit: limit, Progress: progress})
}

// Replay is [Replay] of this projection.
func (o *Operator) Replay(ctx context.Context, from, to events.Sequence, each func(Replayed) error) error {
	return Replay(ctx, o.pool, o.events, o.projector, from, to, VerifyConfig{Log: o.log}, each)
}

// Skip records that the projection leaves an event out, and why. Beside a running node the projection has to stand at that event; the
// refusal is an [*events.Error].
func (o *Operator) Skip(ctx context.Context, sequence events.Sequence, reason, by string) (events.Sequence, error) {
	if o.runner != nil {
		if s := o.runner.Status(ctx); s.ErrorSequence != sequence || sequence == 0 {
			at := "it does not stand at any event"
			if s.ErrorSequence != 0 {
				at = fmt.Sprintf("it stands at event %d", s.ErrorSequence)
			}
			return 0, events.Refuse(events.CodeNotStuck, "projection %s can't skip event %d: %s, and only what can't be applied may be skipped", o.Name(), sequence, at)
		}
	}
	skip := events.SkippedEvent{Sequence: sequence, Reason: reason, By: by, At: time.Now().UTC()}
	if event, ok, err := o.events.At(ctx, sequence); ok {
		skip.EventType = event.Type // said of an event that can't be decoded too
	} else if err != nil {
		return 0, err
	}
	recorded, err := o.events.Decide(ctx, jetstream.Cause{Actor: by}, func(ctx context.Context) ([]events.Change, error) {
		current, err := o.events.Projection(ctx, o.Name())
		if err != nil {
			return nil, err
		}
		head, err := o.events.Head(ctx)
		if err != nil {
			return nil, err
		}
		return events.SkipEvent(current, o.Name(), skip, head)
	})
	if err == nil && o.runner != nil {
		o.runner.Retry()
	}
	return recorded, err
}
