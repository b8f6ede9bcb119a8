package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/pause"
)

const (
	defaultBatch   = 500                   // events per transaction
	standbyPause   = time.Second           // between two looks at the lock
	idleCheck      = time.Second           // how long a broken connection may go unnoticed while nothing happens
	passingBy      = 50 * time.Millisecond // how old the position in the tables may be, for events that have no bearing on them
	pingTimeout    = 5 * time.Second       // for a server that hangs
	closeTimeout   = 2 * time.Second       // for a goodbye to the server
	minRetryPause  = 100 * time.Millisecond
	maxRetryPause  = 5 * time.Second
	defaultAppName = "imgsrv projection "
)

// Config says how a [Runner] works.
type Config struct {
	Log    *slog.Logger
	Meter  metric.Meter
	Tracer trace.Tracer // nil: no traces
	Batch  int          // most events in one transaction; 0 means 500
}

// Runner keeps one projection up to date, or stands by while another node does. All its methods may be
// called at once from several goroutines, Run once.
type Runner struct {
	pool      *pgxpool.Pool
	events    *jetstream.Log
	projector Projector
	log       *slog.Logger
	batch     int
	meters    meters
	tracer    trace.Tracer // nil: none

	mu      sync.Mutex
	state   state
	changed chan struct{} // closed, and replaced, whenever the position moves
	edition atomic.Uint64 // see Edition; 0: not active
	last    uint64        // edition, under mu

	wake    chan struct{} // ends the pause before the next attempt
	polling chan struct{} // held by the one call that asks the database for the position
}

// NewRunner makes a runner. The projector's schema must be migrated before Run (migrations.Apply). The pool
// says which database, and answers WaitFor on a node that stands by; the work is done on a connection of the
// runner's own.
func NewRunner(pool *pgxpool.Pool, log *jetstream.Log, p Projector, cfg Config) (*Runner, error) {
	r := &Runner{pool: pool, events: log, projector: p, log: cfg.Log.With("projection", p.Name()), batch: cfg.Batch, tracer: cfg.Tracer,
		changed: make(chan struct{}), wake: make(chan struct{}, 1), polling: make(chan struct{}, 1)}
	if r.batch <= 0 {
		r.batch = defaultBatch
	}
	var err error
	if r.meters, err = newMeters(cfg.Meter, p.Name()); err != nil {
		return nil, err
	}
	return r, nil
}

// Name is the projection's name.
func (r *Runner) Name() string { return r.projector.Name() }

// Run applies events, or stands by, until ctx ends; then it has ended all that it started and returns nil.
// What goes wrong meanwhile is logged, shown by Status, and tried again. An error means that it never began.
func (r *Runner) Run(ctx context.Context) error {
	unregister, err := r.meters.observe(r)
	if err != nil {
		return fmt.Errorf("run projection %s: %w", r.Name(), err)
	}
	defer unregister()
	wait := minRetryPause
	for {
		before := r.Position()
		err := r.term(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errTakenOver) {
			r.log.Info("another node moved the position; reading it again")
			wait = minRetryPause
		} else {
			r.failed(ctx, err)
		}
		if r.Position() != before { // it got somewhere: not the same trouble as last time
			wait = minRetryPause
		}
		timer := time.NewTimer(pause.About(wait))
		select {
		case <-timer.C:
		case <-r.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		wait = min(2*wait, maxRetryPause)
	}
}

// term is one stay in office: from connecting to the first error.
func (r *Runner) term(ctx context.Context) error {
	conn, err := r.connect(ctx)
	if err != nil {
		return err
	}
	defer disconnect(ctx, conn)
	if err := r.stand(ctx, conn); err != nil {
		return err
	}
	r.setActive(true)
	defer r.setActive(false)
	position, err := r.adopt(ctx, conn)
	if err != nil {
		return err
	}
	table, err := readTable(ctx, conn)
	if err != nil {
		return err
	}
	r.setEdition(true)
	defer r.setEdition(false)
	if err := r.learnSkipped(ctx); err != nil {
		return err
	}
	tail, err := r.events.Tail(ctx, position)
	if err != nil {
		return err
	}
	defer tail.Close()
	r.healthy(0)
	r.log.Info("projection is active", "position", position)
	passed, since := position, time.Time{} // events up to here have no bearing on the tables, whose position stands still since then
	for {
		wait := idleCheck
		if passed != position {
			wait = max(passingBy-time.Since(since), 0)
		}
		batch, err := r.next(ctx, conn, table, tail, wait)
		if err != nil {
			return err
		}
		if len(batch) > 0 && r.passes(ctx, batch) {
			if passed == position {
				since = time.Now()
			}
			passed = batch[len(batch)-1].Sequence
			if time.Since(since) < passingBy {
				continue
			}
			batch = nil
		}
		switch {
		case len(batch) > 0:
			r.received(batch[0])
			passed = batch[len(batch)-1].Sequence
			err = r.apply(ctx, conn, position, batch)
		case passed != position:
			err = r.commit(ctx, conn, position, passed, nil)
		}
		if err != nil {
			return err
		}
		position = passed
	}
}

// passes moves on over events that have no bearing on the projection, where there are no others: no rows change, so nobody has to wait
// for a transaction.
func (r *Runner) passes(ctx context.Context, batch []events.Event) bool {
	bulk := bulkOf(r.projector)
	if slices.ContainsFunc(batch, func(e events.Event) bool { return concerns(bulk, e.Subject) || r.skips(e.Sequence) }) {
		return false
	}
	last := batch[len(batch)-1].Sequence
	r.passed(last)
	r.healthy(last)
	r.meters.passed(ctx, len(batch))
	return true
}

// connect opens the connection that holds the lock and runs the transactions.
func (r *Runner) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg := r.pool.Config().ConnConfig
	cfg.RuntimeParams["search_path"] = pgx.Identifier{r.Name()}.Sanitize()
	cfg.RuntimeParams["application_name"] = defaultAppName + r.Name() + " " + nodeName()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	if _, err := conn.Exec(ctx, silenceStatement); err != nil {
		disconnect(ctx, conn)
		return nil, fmt.Errorf("bound the silence of a connection: %w", err)
	}
	return conn, nil
}

// silenceStatement has the server end the connection, and with it free the lock, of a node that hangs: one that works says something
// each second (idleCheck). Servers before 14 don't know the first setting.
const silenceStatement = `SELECT set_config(name, '15s', false) FROM pg_settings WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout')`

func disconnect(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if !conn.IsClosed() {
		// The server frees the lock at the connection's end anyway, but a moment later: too late for a runner
		// that starts right now. Should this fail, so be it.
		_, _ = conn.Exec(ctx, `SELECT pg_advisory_unlock_all()`)
	}
	_ = conn.Close(ctx) // whatever it says, the connection is gone, and with it the lock
}

// lockStatement: advisory locks are of the connection's database, so the name alone tells projections apart.
const lockStatement = `SELECT pg_try_advisory_lock(hashtextextended('imgsrv projection ' || $1::text, 0))`

// stand waits for the lock.
func (r *Runner) stand(ctx context.Context, conn *pgx.Conn) error {
	ticker := time.NewTicker(standbyPause)
	defer ticker.Stop()
	said := false
	for {
		var got bool
		if err := conn.QueryRow(ctx, lockStatement, r.Name()).Scan(&got); err != nil {
			return fmt.Errorf("ask for the projection's lock: %w", err)
		}
		if got {
			return nil
		}
		if !said {
			r.log.Info("projection is on standby: another node is active")
			said = true
		}
		position, _, err := readPosition(ctx, conn, selectPosition)
		if err != nil {
			return err
		}
		r.moved(position)
		r.healthy(position)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// next waits for events, at most so long: then there are none. It looks now and then whether the connection still lives, and leads to
// the same tables: nothing else would notice while nothing happens.
func (r *Runner) next(ctx context.Context, conn *pgx.Conn, table uint32, tail *jetstream.Tail, wait time.Duration) ([]events.Event, error) {
	for {
		waiting, cancel := context.WithTimeout(ctx, wait)
		batch, err := tail.Next(waiting, r.batch)
		cancel()
		var unreadable *jetstream.Undecodable
		switch {
		case err == nil:
			return batch, nil
		case errors.As(err, &unreadable):
			if !concerns(bulkOf(r.projector), unreadable.Event.Subject) || r.skips(unreadable.Event.Sequence) {
				tail.PassOver()
				return []events.Event{unreadable.Event}, nil // it has no Fact
			}
			r.received(unreadable.Event)
			return nil, &EventError{Sequence: unreadable.Event.Sequence, Type: unreadable.Event.Type, Err: unreadable.Err}
		case errors.Is(err, jetstream.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
			return nil, err
		case wait < idleCheck:
			return nil, nil
		}
		ping, cancel := context.WithTimeout(ctx, pingTimeout)
		now, err := readTable(ping, conn)
		cancel()
		if err != nil {
			return nil, fmt.Errorf("lost PostgreSQL while waiting for events: %w", err)
		}
		if now != table { // another process has rebuilt them
			return nil, errTakenOver
		}
	}
}
