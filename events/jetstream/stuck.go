package jetstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/events"
)

const (
	// stuckAttempts is how often a delivery fails before it is called stuck: at the pauses of backoff that is a quarter of an hour.
	stuckAttempts = 15
	// stuckMemory is for how long one is remembered that didn't come again: another node has it, or has dealt with it.
	stuckMemory = 10 * time.Minute
)

// Stuck is an event that a durable consumer of this node can't handle. It is never dropped: it comes again, at the latest each
// minute or so, until this release or the next can.
type Stuck struct {
	Consumer string
	Sequence events.Sequence
	Type     events.Type
	Subject  string
	Attempts int
	Error    string
	Since    time.Time // when this node first failed at it
	Last     time.Time
}

type stuckKey struct {
	consumer string
	sequence events.Sequence
}

// stuckEvents are those of a node, in memory: what is stuck comes again soon after a start.
type stuckEvents struct {
	mu    sync.Mutex
	known map[stuckKey]Stuck
}

// errUndecodable marks an event that this release can't read.
var errUndecodable = errors.New("this release can't read the event")

// note keeps what came of a delivery.
func (s *stuckEvents) note(consumer string, d Delivery, now time.Time, err error) {
	key := stuckKey{consumer, d.Sequence}
	s.mu.Lock()
	defer s.mu.Unlock()
	known, was := s.known[key]
	var later *RetryAfter
	bad := err != nil && (errors.Is(err, errUndecodable) || errors.Is(err, errPanicked) || d.Attempt >= stuckAttempts && !errors.As(err, &later))
	if !bad || errors.Is(err, ErrUnavailable) || errors.Is(err, context.Canceled) {
		if was && err == nil {
			delete(s.known, key)
		}
		return
	}
	if !was {
		known = Stuck{Consumer: consumer, Sequence: d.Sequence, Type: d.Type, Subject: d.Subject, Since: now}
	}
	known.Attempts, known.Error, known.Last = d.Attempt, err.Error(), now
	if s.known == nil {
		s.known = map[stuckKey]Stuck{}
	}
	s.known[key] = known
}

// Stuck lists the events that this node's consumers can't handle now, in the order of consumers and events.
func (l *Log) Stuck() []Stuck {
	s := &l.stuck
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Stuck
	for key, one := range s.known {
		if l.clock().Sub(one.Last) > stuckMemory {
			delete(s.known, key)
			continue
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b Stuck) int {
		return cmp.Or(cmp.Compare(a.Consumer, b.Consumer), cmp.Compare(a.Sequence, b.Sequence))
	})
	return all
}

// errPanicked marks a handler that panicked.
var errPanicked = errors.New("the handler panicked; the log says where")

// guarded turns a handler's panic into an error: one event must not take the node down, again at each delivery.
func (l *Log) guarded(ctx context.Context, consumer string, d Delivery, handle func(context.Context, Delivery) error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			l.log.ErrorContext(ctx, "event handler panicked", "consumer", consumer, "sequence", d.Sequence, "type", d.Type, "panic", cause, "stack", string(debug.Stack()))
			err = fmt.Errorf("handle event %d: %w", d.Sequence, errPanicked)
		}
	}()
	return handle(ctx, d)
}
