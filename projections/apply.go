package projections

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
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
	err := r.commit(ctx, conn, position, batch)
	if err == nil || !blamesEvents(ctx, conn, err) {
		return err
	}
	if len(batch) > 1 {
		r.log.Warn("a batch failed; applying its events one by one", "first", batch[0].Sequence, "last", batch[len(batch)-1].Sequence, "error", err)
	}
	for i := range batch {
		if len(batch) > 1 { // a batch of one has just been tried
			err = r.commit(ctx, conn, position, batch[i:i+1])
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

// commit applies a batch in one transaction, together with the position, which must still be the given one.
func (r *Runner) commit(ctx context.Context, conn *pgx.Conn, position events.Sequence, batch []events.Event) error {
	started := time.Now()
	last := batch[len(batch)-1].Sequence
	err := r.transact(ctx, conn, func(tx pgx.Tx) error {
		if err := r.guarded(ctx, tx, batch); err != nil {
			return err
		}
		return movePosition(ctx, tx, r.events.Identity(), position, last)
	})
	if err != nil {
		return err
	}
	r.moved(last)
	r.healthy(last)
	r.meters.applied(ctx, len(batch), time.Since(started))
	return nil
}

// guarded turns a panic of the projector into an error: one event must not take the node down, and with it
// everything that doesn't depend on this projection.
func (r *Runner) guarded(ctx context.Context, tx pgx.Tx, batch []events.Event) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("projector panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("projector panicked: %v", p)
		}
	}()
	return r.projector.Apply(ctx, tx, batch)
}

func (r *Runner) transact(ctx context.Context, conn *pgx.Conn, work func(pgx.Tx) error) error {
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
