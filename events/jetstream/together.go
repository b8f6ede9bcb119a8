package jetstream

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/imgsrv/imgsrv/events"
)

// The server stores one message, or one atomic batch, after the other, and syncs each. A batch costs as many syncs as half a dozen
// messages, whatever is in it, since it is staged on disk first. So what many want to append while one append is under way goes as one
// batch: it costs what one of them would.
const (
	// worthABatch is how many single messages are better sent as one.
	worthABatch = 8
	// togetherMessages and togetherBytes bound what is sent as one; a single append may be larger.
	togetherMessages = 500 // half of what the server takes
	togetherBytes    = 8 << 20
)

// queue has the appends that wait for their turn. Who has it stores for all that wait, which find that done when theirs comes.
type queue struct {
	turn    chan struct{} // one place
	mu      sync.Mutex
	waiting []*waiter
}

// waiter is an append that waits.
type waiter struct {
	msgs []*nats.Msg
	done chan struct{} // closed when the rest is set
	// alone says that it was not stored with others, and has to be by itself.
	alone    bool
	sequence events.Sequence // of its last message
	err      error
}

func newQueue() queue { return queue{turn: make(chan struct{}, 1)} }

// publish stores the messages of one append, all or none, and answers with the sequence of the last one.
func (q *queue) publish(ctx context.Context, l *Log, msgs []*nats.Msg) (events.Sequence, error) {
	w := &waiter{msgs: msgs, done: make(chan struct{})}
	q.mu.Lock()
	q.waiting = append(q.waiting, w)
	q.mu.Unlock()
	// Many that wait their turn are no outage of the log: the time to append begins with the turn.
	queued := time.NewTimer(queueTimeout)
	defer queued.Stop()
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
		for !w.isDone() {
			q.store(context.WithoutCancel(ctx), l) // the others wait for it too
		}
	case <-w.done:
	case <-queued.C:
		q.withdraw(w)
		return 0, context.DeadlineExceeded
	case <-ctx.Done():
		q.withdraw(w)
		return 0, ctx.Err()
	}
	if w.alone {
		return l.publishAlone(ctx, msgs)
	}
	return w.sequence, w.err
}

func (w *waiter) isDone() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// withdraw takes an append out that nobody has taken up.
func (q *queue) withdraw(w *waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(other *waiter) bool { return other == w })
}

// take empties the queue as far as its contents go together: first those for one batch, then those that can only go after it, since
// they are about what it is about. What is too much stays.
func (q *queue) take() (together, after []*waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	subjects := map[string]bool{}
	messages, bytes, n := 0, 0, 0
	for _, w := range q.waiting {
		size := 0
		for _, msg := range w.msgs {
			size += msg.Size()
		}
		if n > 0 && (messages+len(w.msgs) > togetherMessages || bytes+size > togetherBytes) {
			break
		}
		n, messages, bytes = n+1, messages+len(w.msgs), bytes+size
		if slices.ContainsFunc(w.msgs, func(msg *nats.Msg) bool { return subjects[msg.Subject] }) {
			after = append(after, w)
			continue
		}
		for _, msg := range w.msgs {
			subjects[msg.Subject] = true
		}
		together = append(together, w)
	}
	q.waiting = slices.Delete(q.waiting, 0, n)
	return together, after
}

// store stores what waits.
func (q *queue) store(ctx context.Context, l *Log) {
	together, after := q.take()
	if worthwhile(together) {
		l.publishTogether(ctx, together)
	} else {
		together, after = nil, append(together, after...)
	}
	for _, w := range after {
		w.alone = true
	}
	for _, w := range append(together, after...) {
		close(w.done)
	}
}

// worthwhile says whether one batch is less work than the appends one by one.
func worthwhile(waiters []*waiter) bool {
	batches := 0
	for _, w := range waiters {
		if len(w.msgs) > 1 {
			batches++
		}
	}
	return len(waiters) > 1 && batches > 0 || len(waiters) >= worthABatch
}

// publishTogether stores the messages of several appends as one batch. Where the server refuses it, as for a conflict of one of them,
// nothing is stored, and each has to go alone.
func (l *Log) publishTogether(ctx context.Context, waiters []*waiter) {
	var msgs []*nats.Msg
	for _, w := range waiters {
		for _, msg := range w.msgs {
			// A copy, since the batch puts headers of its own on it.
			msgs = append(msgs, &nats.Msg{Subject: msg.Subject, Header: maps.Clone(msg.Header), Data: msg.Data})
		}
	}
	last, err := l.publishBatch(ctx, msgs)
	alone := apiCode(err) != 0 || errors.Is(err, nats.ErrMaxPayload)
	first := last - events.Sequence(len(msgs)) + 1
	for _, w := range waiters {
		w.alone, w.err = alone, err
		w.sequence = first + events.Sequence(len(w.msgs)) - 1
		first += events.Sequence(len(w.msgs))
	}
}
