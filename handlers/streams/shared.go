package streams

import (
	"context"
	"sync"
)

// shared puts a question once for all who have it at the same time: each gets an answer to a question that was put after its call had
// begun, so that nobody is told less than what is true by then, and a crowd costs no more than a few.
type shared[T any] struct {
	ask  func(context.Context) (T, error)
	turn chan struct{} // holds the right to ask

	mu   sync.Mutex
	next *asked[T] // not put yet; nil: nobody waits for one
}

type asked[T any] struct {
	done   chan struct{}
	answer T
	err    error
}

func newShared[T any](ask func(context.Context) (T, error)) *shared[T] {
	return &shared[T]{ask: ask, turn: make(chan struct{}, 1)}
}

// get gives the answer, or fails where ctx ends before there is one. The first of a crowd asks for all of it, with its own deadline.
func (s *shared[T]) get(ctx context.Context) (T, error) {
	s.mu.Lock()
	question := s.next
	if question != nil {
		s.mu.Unlock()
		select {
		case <-question.done:
			return question.answer, question.err
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
	}
	question = &asked[T]{done: make(chan struct{})}
	s.next = question
	s.mu.Unlock()

	defer close(question.done)
	own := ctx
	var deadline context.CancelFunc = func() {}
	if at, ok := ctx.Deadline(); ok { // the others want it too, should this one's client have gone
		ctx, deadline = context.WithDeadline(context.WithoutCancel(ctx), at)
	}
	defer deadline()
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		question.err = ctx.Err()
	}
	s.mu.Lock()
	s.next = nil
	s.mu.Unlock()
	if question.err == nil {
		question.answer, question.err = s.ask(ctx)
	}
	if err := own.Err(); err != nil {
		var none T
		return none, err
	}
	return question.answer, question.err
}
