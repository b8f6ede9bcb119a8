// Package pause waits between one attempt and the next. It knows nothing of what is tried again, nor how often.
package pause

import (
	"context"
	"math/rand/v2"
	"time"
)

// For waits, and returns nil. Where ctx ends before, it returns the cause.
func For(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// About is up to a quarter more or less than d, so that many who wait don't come back at once.
func About(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.75 + rand.Float64()/2))
}
