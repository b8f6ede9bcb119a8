package streams

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// Nobody gets the answer to a question that was put before its call, and a crowd asks little.
func TestAnAnswerIsSharedByThoseWhoCameBeforeItsQuestion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var truth, asks atomic.Int64
		s := newShared(func(context.Context) (int64, error) {
			asks.Add(1)
			seen := truth.Load()
			time.Sleep(time.Millisecond) // the way back
			return seen, nil
		})
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 50 * time.Microsecond)
				least := truth.Add(1)
				if got, err := s.get(t.Context()); err != nil || got < least {
					t.Errorf("told %d (%v), and %d was true when it asked", got, err, least)
				}
			})
		}
		all.Wait()
		if n := asks.Load(); n < 2 || n > 10 { // 5 ms of callers, a millisecond each
			t.Errorf("%d questions for 100 callers", n)
		}
	})
}

func TestWhoGoesSpoilsNoAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan error)
		s := newShared(func(ctx context.Context) (string, error) {
			select {
			case err := <-answer:
				return "said", err
			case <-ctx.Done():
				return "", ctx.Err()
			}
		})
		gone, cancel := context.WithCancel(t.Context())
		bounded, stop := context.WithTimeout(gone, time.Minute)
		defer stop()
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.get(bounded); !errors.Is(err, context.Canceled) {
				t.Errorf("the one who asks and has gone: %v", err)
			}
		})
		synctest.Wait()
		for range 3 { // for the next question
			all.Go(func() {
				if _, err := s.get(t.Context()); err == nil || err.Error() != "away" {
					t.Errorf("error %v", err)
				}
			})
		}
		impatient, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		synctest.Wait()
		if _, err := s.get(impatient); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who can't wait: %v", err)
		}
		cancel()
		answer <- nil
		answer <- errors.New("away")
		all.Wait()
	})
}
