package blob

import (
	"context"
	"fmt"
	"time"

	"github.com/imgsrv/imgsrv/internal/pause"
)

// longestAwait is how long the end of the trouble may go unnoticed.
const longestAwait = 15 * time.Second

// IsAway reports whether err comes from a store that takes no bytes for now, whatever they are: it is full, or read-only.
func IsAway(err error) bool { return IsFull(err) || IsReadOnly(err) }

// Insist performs do, and again after a pause as long as the store is away, of which it tells waits each time. Its error is that of
// do, or that of ctx while it waits.
func (s *Store) Insist(ctx context.Context, do func() error, waits func(why error)) error {
	err := do()
	for least := time.Second; IsAway(err); least *= 2 {
		waits(err)
		if err := s.Await(ctx, least); err != nil {
			return err
		}
		err = do()
	}
	return err
}

// Await returns once the store can take bytes, as [Store.Check] sees it, and least has passed: who needs more room
// than there is comes back with a longer one. It returns an error only when ctx ends.
func (s *Store) Await(ctx context.Context, least time.Duration) error {
	for least = min(max(least, time.Millisecond), longestAwait); ; least = min(2*least, longestAwait) {
		if err := pause.For(ctx, least); err != nil {
			return fmt.Errorf("wait for the blob store: %w", err)
		}
		if s.Check(ctx) == nil {
			return nil
		}
	}
}
