package projections

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

const (
	headTimeout = 500 * time.Millisecond // for the log's answer in Status
	pollPause   = 20 * time.Millisecond  // between two looks at the position row in WaitFor
	pollTimeout = 2 * time.Second        // for one look
)

// ErrNotYet says that the projection hadn't applied the wanted event in time. It is on its way, or Status
// says what holds it up.
var ErrNotYet = errors.New("the projection has not applied the event yet")

// state is what a runner knows of its projection.
type state struct {
	position  events.Sequence
	head      events.Sequence // last known
	active    bool
	received  events.Sequence // oldest event that was handed to apply and isn't applied; 0: none
	recorded  time.Time       // when that event was recorded
	behind    time.Time       // since when Status has seen a lag; zero: none
	err       error           // nil when all is well
	errSince  time.Time
	errSeq    events.Sequence // of the event that err is about; 0: none
	errType   events.Type     // of that event
	attempted int             // how often err came in a row
	skipped   events.Projection
}

// Status is how a projection is doing, as this node sees it.
type Status struct {
	Name     string
	Position events.Sequence // last event applied
	Head     events.Sequence // last event of the log; the last known when the log is away
	// LagEvents is Head - Position; LagSeconds the age of the oldest event known not to be applied: 0 when
	// there is none.
	LagEvents  uint64
	LagSeconds float64
	Active     bool // this node does the work; else another one, or, with an Error, maybe none
	// Error is what holds the projection up now; "" when it goes on. ErrorSequence is the event that
	// can't be applied, 0 when it isn't about one; ErrorSince is when it came first.
	Error         string
	ErrorSequence events.Sequence
	ErrorType     events.Type // of that event
	ErrorSince    time.Time
	Attempts      int // how often it was tried with that error
}

// Position is the last event applied, as far as this node knows: exact where it is active, up to a second
// old on standby.
func (r *Runner) Position() events.Sequence {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.position
}

// Edition says in which state the tables are, for who keeps what was read of them: read the edition, then the tables. Until it is another
// one, or not ok, the tables say the same. It is another one before Position is. It's ok only where this node is active: what other nodes do shows too late here.
//
// Where a node has lost its lock and doesn't know yet, as after a cut in the network, an edition may last up to some seconds too long.
func (r *Runner) Edition() (number uint64, ok bool) {
	number = r.edition.Load()
	return number, number != 0
}

// setEdition begins a new edition, or none.
func (r *Runner) setEdition(ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.turnEdition(ok)
}

// turnEdition is setEdition for who holds the mutex.
func (r *Runner) turnEdition(ok bool) {
	if !ok {
		r.edition.Store(0)
		return
	}
	r.last++
	r.edition.Store(r.last)
}

// replaced begins a new edition after a rebuild in this process.
func (r *Runner) replaced() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.edition.Load() != 0 {
		r.turnEdition(true)
	}
}

// Reached is Position for who reads the tables: where another node applies, it asks the database where that one is by now.
func (r *Runner) Reached(ctx context.Context) events.Sequence {
	r.mu.Lock()
	position, active := r.state.position, r.state.active
	r.mu.Unlock()
	if active {
		return position
	}
	return r.poll(ctx)
}

// Status asks the log for its head and no database: it takes at most half a second, usually far less than
// a millisecond. A log that is away shows as Error unless there is a worse one.
func (r *Runner) Status(ctx context.Context) Status {
	ctx, cancel := context.WithTimeout(ctx, headTimeout)
	defer cancel()
	head, headErr := r.events.Head(ctx)
	now := time.Now()

	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.state
	if headErr == nil {
		s.head = head
	}
	// The position may have moved since the head was read, or an error kept it from being read at all.
	out := Status{Name: r.Name(), Position: s.position, Head: max(s.head, s.position), Active: s.active}
	out.LagEvents = uint64(out.Head - out.Position)
	if out.LagEvents == 0 {
		s.behind = time.Time{}
	} else {
		if s.behind.IsZero() {
			s.behind = now
		}
		since := s.behind
		if s.received != 0 && s.recorded.Before(since) {
			since = s.recorded
		}
		out.LagSeconds = max(0, now.Sub(since).Seconds())
	}
	switch {
	case s.err != nil:
		out.Error, out.ErrorSequence, out.ErrorSince, out.Attempts = s.err.Error(), s.errSeq, s.errSince, s.attempted
		out.ErrorType = s.errType
	case headErr != nil:
		out.Error, out.ErrorSince, out.Attempts = headErr.Error(), now, 1
	}
	return out
}

// WaitFor returns once the projection has applied the event with this sequence, on this node or on another
// one. It waits as long as ctx lets it, also while PostgreSQL or the log is away: the error wraps ErrNotYet
// when ctx' deadline passes, and ctx' error when it is cancelled.
func (r *Runner) WaitFor(ctx context.Context, sequence events.Sequence) error {
	for {
		r.mu.Lock()
		position, active, changed := r.state.position, r.state.active, r.changed
		r.mu.Unlock()
		if position >= sequence {
			return nil
		}
		if !active && r.poll(ctx) >= sequence {
			return nil
		}
		timer := time.NewTimer(pollPause)
		select {
		case <-changed:
			timer.Stop()
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			err := ctx.Err()
			if errors.Is(err, context.DeadlineExceeded) {
				err = ErrNotYet
			}
			return fmt.Errorf("wait for event %d in projection %s, which is at %d: %w", sequence, r.Name(), r.Position(), err)
		}
	}
}

// poll asks the database where the projection is, unless another call is doing so. Errors show in Status,
// from Run; whoever waits just goes on waiting.
func (r *Runner) poll(ctx context.Context) events.Sequence {
	select {
	case r.polling <- struct{}{}:
	default:
		return r.Position()
	}
	defer func() { <-r.polling }()
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	table := pgx.Identifier{r.Name(), "position"}.Sanitize()
	position, stream, err := readPosition(ctx, r.pool, `SELECT sequence, coalesce(stream, '') FROM `+table)
	if err != nil || stream != r.events.Identity() { // of another stream: a rebuild is due, its numbers mean nothing
		return r.Position()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.state.active { // else it knows better
		r.move(position)
	}
	return position
}

// moved notes where the projection is.
func (r *Runner) moved(position events.Sequence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.move(position)
}

// move is moved for who holds the mutex.
func (r *Runner) move(position events.Sequence) {
	if r.state.position != position && r.edition.Load() != 0 {
		r.turnEdition(true)
	}
	r.advance(position)
}

// passed is moved for events that change no rows, so that the edition is still the same.
func (r *Runner) passed(position events.Sequence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(position)
}

func (r *Runner) advance(position events.Sequence) {
	s := &r.state
	if position >= s.received {
		s.received = 0
	}
	if s.position == position {
		return
	}
	s.position = position
	close(r.changed)
	r.changed = make(chan struct{})
}

// received notes the oldest event that is about to be applied.
func (r *Runner) received(event events.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.received, r.state.recorded = event.Sequence, event.Time
}

func (r *Runner) setActive(active bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.state.active = active
}

// healthy forgets the last error when it is overcome: one about an event when the position has reached it,
// any other as soon as things work again.
func (r *Runner) healthy(position events.Sequence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state.err == nil || position < r.state.errSeq {
		return
	}
	r.log.Info("projection goes on", "position", r.state.position, "after_attempts", r.state.attempted)
	r.state.err, r.state.errSeq, r.state.errType, r.state.attempted = nil, 0, "", 0
}

// failed notes what ended a term, and logs it when it is news.
func (r *Runner) failed(ctx context.Context, err error) {
	var sequence events.Sequence
	var kind events.Type
	var event *EventError
	if errors.As(err, &event) {
		sequence, kind = event.Sequence, event.Type
	}
	r.meters.failed(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &r.state
	if s.err != nil && s.errSeq == sequence && (sequence != 0 || s.err.Error() == err.Error()) {
		s.err = err
		s.attempted++
		r.log.Debug("projection still can't go on", "error", err, "attempts", s.attempted)
		return
	}
	s.err, s.errSeq, s.errType, s.errSince, s.attempted = err, sequence, kind, time.Now(), 1
	if sequence != 0 {
		r.log.Error("projection stops at an event; trying again", "sequence", sequence, "error", event.Err)
		return
	}
	r.log.Warn("projection can't go on; trying again", "error", err)
}
