package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/faults"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// EventError says at which event a projection stands still, and why.
type EventError struct {
	Sequence events.Sequence
	Type     events.Type
	Err      error
}

func (e *EventError) Error() string {
	return fmt.Sprintf("apply event %d (%s): %v", e.Sequence, e.Type, e.Err)
}

func (e *EventError) Unwrap() error { return e.Err }

// apply brings a batch into the tables, which are at position. When that fails for a reason that lies in an event, the batch is
// applied one by one up to that event, and the error is an [*EventError].
func (r *Runner) apply(ctx context.Context, conn *pgx.Conn, position events.Sequence, batch []events.Event) error {
	err := r.commit(ctx, conn, position, batch[len(batch)-1].Sequence, batch)
	if err == nil || !blamesEvents(ctx, conn, err) {
		return err
	}
	if len(batch) > 1 {
		r.log.Warn("a batch failed; applying its events one by one", "first", batch[0].Sequence, "last", batch[len(batch)-1].Sequence, "error", err)
	}
	for i := range batch {
		if len(batch) > 1 { // a batch of one has just been tried
			err = r.commit(ctx, conn, position, batch[i].Sequence, batch[i:i+1])
		}
		if err != nil && blamesEvents(ctx, conn, err) {
			return &EventError{Sequence: batch[i].Sequence, Type: batch[i].Type, Err: err}
		}
		if err != nil {
			return err
		}
		position = batch[i].Sequence
	}
	return nil
}

// blamesEvents tells an event that can't be applied from a database that can't apply anything now.
func blamesEvents(ctx context.Context, conn *pgx.Conn, err error) bool {
	return ctx.Err() == nil && !errors.Is(err, errTakenOver) && !postgres.IsUnavailable(err) && !conn.IsClosed()
}

// commit applies a batch in one transaction, together with the position, which must still be the given one and goes to last.
// Events that the projection skips are counted and left out.
//
// The position is moved first: its row is the lock that a rebuild takes to swap the schemas, so that all of a transaction's
// rows are in the schema whose position it moves.
func (r *Runner) commit(ctx context.Context, conn *pgx.Conn, position, last events.Sequence, batch []events.Event) error {
	started := time.Now()
	applied := r.withoutSkipped(ctx, batch)
	faults.Point("before transaction", r.Name())
	err := r.transact(ctx, conn, func(tx pgx.Tx) error {
		if err := movePosition(ctx, tx, r.events.Identity(), position, last); err != nil {
			return err
		}
		if len(applied) == 0 {
			return nil
		}
		err := guarded(ctx, r.log, func(ctx context.Context) error { return r.projector.Apply(ctx, tx, applied) })
		faults.Point("before commit", r.Name())
		return err
	})
	faults.Point("after commit", r.Name())
	if err != nil {
		return err
	}
	r.moved(last)
	r.healthy(last)
	r.meters.applied(ctx, len(applied), time.Since(started))
	r.traced(ctx, applied, started)
	return nil
}

// guarded turns a panic of the projector into an error: one event must not take the node down, and with it
// everything that doesn't depend on this projection.
func guarded(ctx context.Context, log *slog.Logger, apply func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("projector panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("projector panicked: %v", p)
		}
	}()
	return apply(ctx)
}

func (r *Runner) transact(ctx context.Context, conn *pgx.Conn, work func(pgx.Tx) error) error {
	return transact(ctx, conn, work)
}

// transact runs work in a transaction, which is undone when work fails.
func transact(ctx context.Context, conn *pgx.Conn, work func(pgx.Tx) error) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	if err := work(tx); err != nil {
		rollback, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return errors.Join(err, tx.Rollback(rollback)) // a failed rollback closes the connection: the server undoes it
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
