package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// swapDistance is how many events a rebuild may be behind the live tables when it takes their place: it applies them while the
// live tables stand still, which keeps readers with Imgsrv-Min-Sequence waiting.
const swapDistance = 1000

// RebuildConfig says how a [Rebuilder] works.
type RebuildConfig struct {
	Log     *slog.Logger
	Version string // of the program: a half-filled schema of another one is begun anew
	Batch   int    // most events in one transaction; 0 means 20,000
}

// Rebuilder derives a projection's tables anew beside the live ones, and swaps them. It may work while a [Runner] is
// active, here or on another node, or while none is. All methods may be called at once from several goroutines.
type Rebuilder struct {
	pool      *pgxpool.Pool
	events    *jetstream.Log
	projector Bulk
	cfg       RebuildConfig
	log       *slog.Logger
	swapped   func() // called when the new tables are live; nil: nobody wants to know

	mu       sync.Mutex
	progress RebuildProgress
	begin    events.Sequence    // where the current run went on
	cancel   context.CancelFunc // of the run in the background; nil without
	done     chan struct{}
}

// RebuildState says what a rebuild is at.
type RebuildState string

// The states of a rebuild, as the node that does it sees them.
const (
	RebuildIdle     RebuildState = "idle"     // none since the start, here
	RebuildFilling  RebuildState = "filling"  // deriving
	RebuildSwapping RebuildState = "swapping" // about to take the live tables' place
	RebuildDone     RebuildState = "done"
	RebuildStopped  RebuildState = "stopped" // the next one goes on where it stands
	RebuildFailed   RebuildState = "failed"
)

// RebuildProgress is how far a rebuild is.
type RebuildProgress struct {
	State       RebuildState
	Applied     events.Sequence // last event in the new tables
	Total       events.Sequence // the log's head, when it was looked at last
	PerSecond   float64         // events of the log, since this run began
	Left        time.Duration   // at that rate; 0 when unknown
	ResumedFrom events.Sequence // where an earlier run had been stopped; 0: from the first event
	StartedAt   time.Time
	EndedAt     time.Time // zero while it runs
	Err         error     // of RebuildFailed; about an event it is an *EventError
}

// NewRebuilder makes a rebuilder of one projection.
func NewRebuilder(pool *pgxpool.Pool, log *jetstream.Log, p Projector, cfg RebuildConfig) *Rebuilder {
	if cfg.Batch <= 0 {
		cfg.Batch = bulkBatch
	}
	return &Rebuilder{pool: pool, events: log, projector: bulkOf(p), cfg: cfg, log: cfg.Log.With("projection", p.Name()),
		progress: RebuildProgress{State: RebuildIdle}}
}

// Name is the projection's name.
func (b *Rebuilder) Name() string { return b.projector.Name() }

// Next is the name of the schema that is being filled.
func (b *Rebuilder) next() string { return b.Name() + "_next" }

// Progress is how far the last rebuild of this Rebuilder is.
func (b *Rebuilder) Progress() RebuildProgress {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.progress
	end := out.EndedAt
	if end.IsZero() {
		end = time.Now()
	}
	if took := end.Sub(out.StartedAt).Seconds(); !out.StartedAt.IsZero() && took > 0 && out.Applied > b.begin {
		out.PerSecond = float64(out.Applied-b.begin) / took
		if out.EndedAt.IsZero() && out.Total > out.Applied {
			out.Left = time.Duration(float64(out.Total-out.Applied) / out.PerSecond * float64(time.Second))
		}
	}
	return out
}

// Start begins a rebuild in the background; ErrRebuilding when one runs. Stop ends it. ctx is for the start alone.
func (b *Rebuilder) Start(ctx context.Context) error {
	work, err := b.open(ctx)
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	b.mu.Lock()
	b.cancel, b.done = cancel, done
	b.mu.Unlock()
	go func() {
		defer close(done)
		defer cancel()
		b.run(running, work) //nolint:errcheck // kept in the progress
	}()
	return nil
}

// Stop ends a rebuild that Start began and waits for its end. What is filled stays, for the next one. Without one it does nothing.
func (b *Rebuilder) Stop() {
	b.mu.Lock()
	cancel, done := b.cancel, b.done
	b.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// Run rebuilds and returns when the new tables are live. A cancelled ctx stops it: what is filled stays, and the next run goes on
// there. Any other error leaves the live tables alone too; about an event it is an [*EventError]. ErrRebuilding when one runs.
func (b *Rebuilder) Run(ctx context.Context) error {
	work, err := b.open(ctx)
	if err != nil {
		return err
	}
	return b.run(ctx, work)
}

func (b *Rebuilder) open(ctx context.Context) (*bench, error) {
	work, err := openBench(ctx, b.pool, b.Name(), b.next())
	if err != nil {
		return nil, fmt.Errorf("rebuild projection %s: %w", b.Name(), err)
	}
	b.mu.Lock()
	b.progress, b.begin = RebuildProgress{State: RebuildFilling, StartedAt: time.Now()}, 0
	b.mu.Unlock()
	return work, nil
}

func (b *Rebuilder) run(ctx context.Context, work *bench) error {
	err := b.rebuild(ctx, work)
	// Before the end shows: whoever sees it may begin the next one.
	work.close(ctx)
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &b.progress
	p.EndedAt = time.Now()
	switch {
	case err == nil:
		p.State = RebuildDone
		b.log.Info("projection rebuilt", "position", p.Applied, "took", p.EndedAt.Sub(p.StartedAt))
		return nil
	case ctx.Err() != nil:
		p.State = RebuildStopped
		b.log.Info("rebuild stopped; the next one goes on there", "position", p.Applied)
	default:
		p.State, p.Err = RebuildFailed, err
		b.log.Error("rebuild failed; the live tables stay as they are", "position", p.Applied, "error", err)
	}
	return fmt.Errorf("rebuild projection %s: %w", b.Name(), err)
}

func (b *Rebuilder) applied(position events.Sequence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.progress.Applied = position
}

func (b *Rebuilder) rebuild(ctx context.Context, work *bench) error {
	skipped, err := b.events.Projection(ctx, b.Name())
	if err != nil {
		return fmt.Errorf("read which events are skipped: %w", err)
	}
	mark, err := markOf(b.events.Identity(), b.cfg.Version, b.projector.Migrations(), skipped.State)
	if err != nil {
		return err
	}
	position, err := work.prepare(ctx, b.projector.Migrations(), mark, b.events.Identity())
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.begin, b.progress.Applied, b.progress.ResumedFrom = position, position, position
	b.mu.Unlock()
	d := &derivation{conn: work.conn, events: b.events, projector: b.projector, log: b.log, skipped: skipped.State, batch: b.cfg.Batch, progress: b.applied}
	for {
		if position, err = b.catchUp(ctx, d, position); err != nil {
			return err
		}
		if _, err := work.conn.Exec(ctx, `ANALYZE`); err != nil { // else the first queries are planned for empty tables
			return fmt.Errorf("analyze the new tables: %w", err)
		}
		b.mu.Lock()
		b.progress.State = RebuildSwapping
		b.mu.Unlock()
		swapped, err := b.swap(ctx, work, d, position)
		if err != nil {
			return fmt.Errorf("put the new tables in place of the live ones: %w", err)
		}
		if swapped {
			break
		}
	}
	if err := work.drop(ctx, b.Name()+"_old"); err != nil {
		b.log.Warn("the tables from before the rebuild are still there; the next rebuild removes them", "error", err)
	}
	return nil
}

// catchUp fills until little is missing.
func (b *Rebuilder) catchUp(ctx context.Context, d *derivation, position events.Sequence) (events.Sequence, error) {
	for {
		head, err := b.events.Head(ctx)
		if err != nil {
			return position, err
		}
		b.mu.Lock()
		b.progress.Total, b.progress.State = max(head, position), RebuildFilling
		b.mu.Unlock()
		missing := head - min(position, head)
		if position, err = d.fill(ctx, position, head); err != nil || missing <= swapDistance {
			return position, err
		}
	}
}

const (
	lockLive   = `SELECT sequence, coalesce(stream, '') FROM %s.position FOR UPDATE`
	retireLive = `UPDATE %s.position SET stream = 'replaced by a rebuild'`
	ensureLive = `INSERT INTO %s.position (sequence, stream, updated_at) VALUES (0, '', now()) ON CONFLICT DO NOTHING`
)

// swap puts the new tables in place of the live ones, in one transaction. The lock on the live position keeps the active
// Runner, wherever it is, from committing meanwhile; afterwards its position isn't there any more, so that it reads where it
// is and goes on in the new tables. The new position is never behind the old one: false when too much is missing for that.
//
// Readers name tables by schema. PostgreSQL plans a prepared statement anew when a schema was renamed
// (src/backend/utils/cache/plancache.c, PlanCacheSysCallback), so that each statement reads either the old tables, as
// they were at the swap, or the new ones.
func (b *Rebuilder) swap(ctx context.Context, work *bench, d *derivation, position events.Sequence) (bool, error) {
	live, old := quoted(b.Name()), b.Name()+"_old"
	if err := work.drop(ctx, old); err != nil {
		return false, err
	}
	if _, err := work.conn.Exec(ctx, fmt.Sprintf(ensureLive, live)); err != nil {
		return false, fmt.Errorf("look for the live position: %w", err)
	}
	err := transact(ctx, work.conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL synchronous_commit = on; SET LOCAL lock_timeout = '30s'`); err != nil {
			return err
		}
		at, stream, err := readPosition(ctx, tx, fmt.Sprintf(lockLive, live))
		if err != nil {
			return err
		}
		head, err := b.events.Head(ctx) // after the position: see adopt
		if err != nil {
			return err
		}
		// Live tables of another stream, or ahead of this one, are about to be emptied anyway; what they say is of no use.
		if stream == b.events.Identity() && at > position && at <= head {
			if at-position > swapDistance {
				return errBehind
			}
			if err := b.bridge(ctx, tx, d, position, at); err != nil {
				return err
			}
			position = at
		}
		for _, statement := range []string{
			fmt.Sprintf(retireLive, live),
			`ALTER SCHEMA ` + live + ` RENAME TO ` + quoted(old),
			`ALTER SCHEMA ` + quoted(b.next()) + ` RENAME TO ` + live,
		} {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errBehind) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if b.swapped != nil {
		b.swapped()
	}
	b.applied(position)
	return true, nil
}

// errBehind says that the new tables are too far behind the live ones for a swap.
var errBehind = errors.New("the new tables are behind the live ones")

// bridge applies the last few events in the transaction of the swap.
func (b *Rebuilder) bridge(ctx context.Context, tx pgx.Tx, d *derivation, from, to events.Sequence) error {
	if err := movePosition(ctx, tx, b.events.Identity(), from, to); err != nil {
		return err
	}
	reading, stop := context.WithTimeout(ctx, bridgeTimeout)
	defer stop()
	chunks := make(chan chunk, swapDistance)
	if err := d.read(reading, from, to, chunks); err != nil {
		return err
	}
	close(chunks)
	decoded := make(chan chunk, swapDistance)
	if err := d.decode(ctx, chunks, decoded); err != nil {
		return err
	}
	close(decoded)
	for c := range decoded {
		if len(c.events) > 0 {
			if err := guarded(ctx, b.log, func(ctx context.Context) error { return b.projector.Apply(ctx, tx, c.events) }); err != nil {
				return err
			}
		}
		if c.bad != nil {
			return c.bad
		}
	}
	return nil
}

// bridgeTimeout bounds how long the live tables stand still for the sake of events that the log doesn't deliver.
const bridgeTimeout = 5 * time.Second
