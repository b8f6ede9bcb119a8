package projections

import (
	"context"
	"errors"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// bulkBatch is how many events of the log go into one transaction of a derivation. Larger ones save nothing that could be
// measured, and take memory: some kilobytes an event.
const bulkBatch = 20_000

// derivation fills a schema that nobody reads, from the log.
type derivation struct {
	conn      *pgx.Conn // whose search_path is the schema
	events    *jetstream.Log
	projector Bulk
	log       *slog.Logger
	skipped   events.Projection
	batch     int
	progress  func(events.Sequence) // told after each transaction
}

// chunk is a part of the log on its way to the tables. It covers all events up to last.
type chunk struct {
	last   events.Sequence
	raws   []jetstream.Raw
	events []events.Event
	bad    *EventError // what comes after events and can't be decoded
}

// fill applies the events after from up to to, which must be there, and moves the position of the schema to to. It
// reads, decodes and writes at the same time. Position says how far it came; an error about an event is an [*EventError].
func (d *derivation) fill(ctx context.Context, from, to events.Sequence) (position events.Sequence, err error) {
	position = from
	if from >= to {
		return position, nil
	}
	work, ctx := errgroup.WithContext(ctx)
	read, decoded := make(chan chunk, 1), make(chan chunk, 1)
	work.Go(func() error {
		defer close(read)
		return d.read(ctx, from, to, read)
	})
	work.Go(func() error {
		defer close(decoded)
		return d.decode(ctx, read, decoded)
	})
	work.Go(func() error {
		for c := range decoded {
			if err := d.write(ctx, &position, c); err != nil {
				return err
			}
		}
		return nil
	})
	err = work.Wait()
	return position, err
}

func (d *derivation) read(ctx context.Context, from, to events.Sequence, out chan<- chunk) error {
	// Unfiltered: the server looks for the next event of several subjects much more slowly than it delivers all (nats-server
	// 2.15, msgBlock.firstMatchingMulti), and dropping what isn't of interest here costs next to nothing.
	tail, err := d.events.Tail(ctx, from)
	if err != nil {
		return err
	}
	defer tail.Close()
	for whole := tail.Pending() == 0; ; {
		c := chunk{last: to}
		for !whole && len(c.raws) < d.batch {
			had := len(c.raws)
			if c.raws, err = tail.NextRaw(ctx, c.raws, d.batch); err != nil {
				return err
			}
			for i := had; i < len(c.raws) && !whole; i++ {
				// The last event that concerns the projection may lie before to, and then none follows.
				whole = c.raws[i].Sequence >= to || c.raws[i].Pending == 0
				if c.raws[i].Sequence > to {
					c.raws = c.raws[:i]
				} else if whole {
					c.raws = c.raws[:i+1]
				}
			}
		}
		if !whole {
			c.last = c.raws[len(c.raws)-1].Sequence
		}
		select {
		case out <- c:
		case <-ctx.Done():
			return ctx.Err()
		}
		if whole {
			return nil
		}
	}
}

func (d *derivation) decode(ctx context.Context, in <-chan chunk, out chan<- chunk) error {
	known := map[events.Type]bool{}
	for _, t := range events.Types() {
		known[t] = true
	}
	for c := range in {
		d.decodeChunk(&c, known)
		c.raws = nil
		select {
		case out <- c:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// decodeChunk decodes what is needed of a chunk, up to the first event that can't be.
func (d *derivation) decodeChunk(c *chunk, known map[events.Type]bool) {
	last := map[string]events.Sequence{}
	if d.projector.LastOnly() {
		for _, raw := range c.raws { // those of other subjects don't matter here
			if !d.skipped.Skips(raw.Sequence) {
				last[raw.Subject] = raw.Sequence
			}
		}
	}
	c.events = c.events[:0]
	for i, raw := range c.raws {
		if d.skipped.Skips(raw.Sequence) || !concerns(d.projector, raw.Subject) {
			continue
		}
		if later, ok := last[raw.Subject]; ok && later != raw.Sequence && known[raw.Type()] {
			continue
		}
		event, err := raw.Decode()
		if err == nil {
			c.events = append(c.events, event)
			continue
		}
		// Those before it once more: among them are some that only later ones had made unnecessary.
		c.raws = c.raws[:i]
		bad := &EventError{Sequence: raw.Sequence, Type: raw.Type(), Err: err}
		d.decodeChunk(c, known)
		if c.bad == nil {
			c.bad, c.last = bad, raw.Sequence-1
		}
		return
	}
}

func (d *derivation) write(ctx context.Context, position *events.Sequence, c chunk) error {
	if c.last > *position {
		if err := d.apply(ctx, position, c.last, c.events); err != nil {
			return err
		}
	}
	if c.bad != nil {
		return c.bad
	}
	return nil
}

// apply brings events into the tables and moves the position to last. Where an event is to blame for a failure it is looked
// for by halves, so that what comes before it is done and the error names it.
func (d *derivation) apply(ctx context.Context, position *events.Sequence, last events.Sequence, batch []events.Event) error {
	err := transact(ctx, d.conn, func(tx pgx.Tx) error {
		if err := movePosition(ctx, tx, d.events.Identity(), *position, last); err != nil {
			return err
		}
		if len(batch) == 0 {
			return nil
		}
		return guarded(ctx, d.log, func(ctx context.Context) error { return d.projector.Load(ctx, tx, batch) })
	})
	switch {
	case err == nil:
		*position = last
		d.progress(last)
		return nil
	case len(batch) == 0 || !blamesEvents(ctx, d.conn, err):
		return err
	case len(batch) == 1:
		if before := batch[0].Sequence - 1; before > *position {
			if err := d.apply(ctx, position, before, nil); err != nil {
				return err
			}
		}
		return &EventError{Sequence: batch[0].Sequence, Type: batch[0].Type, Err: err}
	}
	half := len(batch) / 2
	if err := d.apply(ctx, position, batch[half].Sequence-1, batch[:half]); err != nil {
		return err
	}
	return d.apply(ctx, position, last, batch[half:])
}

// ErrRebuilding says that a rebuild or a comparison of the projection runs already, on this node or another one.
var ErrRebuilding = errors.New("a rebuild or a comparison of this projection is running")
