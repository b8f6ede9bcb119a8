package blob

import (
	"context"
	"fmt"
	"time"
)

// longestAwait is how long the end of the trouble may go unnoticed.
const longestAwait = 15 * time.Second

// IsAway reports whether err comes from a store that takes no bytes for now, whatever they are: it is full, or read-only.
func IsAway(err error) bool { return IsFull(err) || IsReadOnly(err) }

// Insist performs do, and again after a pause as long as the store is away, of which it tells waits each time. Its error is that of
// do, or that of ctx while it waits.
func (s *Store) Insist(ctx context.Context, do func() error, waits func(why error)) error {
	err := do()
	for pause := time.Second; IsAway(err); pause *= 2 {
		waits(err)
		if err := s.Await(ctx, pause); err != nil {
			return err
		}
		err = do()
	}
	return err
}

// Await returns once the store can take bytes, as [Store.Check] sees it, and pause has passed at least: who needs more room
// than there is comes back with a longer one. It returns an error only when ctx ends.
func (s *Store) Await(ctx context.Context, pause time.Duration) error {
	for pause = min(max(pause, time.Millisecond), longestAwait); ; pause = min(2*pause, longestAwait) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("wait for the blob store: %w", context.Cause(ctx))
		}
		if s.Check(ctx) == nil {
			return nil
		}
	}
}
