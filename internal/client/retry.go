package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/imgsrv/imgsrv/internal/pause"
)

// Retry says how broken transfers are tried again: after First, then each time twice as long up to Longest, each wait
// shortened by a random part of up to half, so that many clients don't come back at once.
type Retry struct {
	First   time.Duration // 0 means 200 ms
	Longest time.Duration // 0 means 15 s
	Limit   int           // so many failures in a row without progress end it; 0 means 12, about two minutes
	// Patience is how long in all a server may put a client off (429 with Retry-After) without progress in between. A
	// wait that would be longer is not begun. 0 means 10 minutes.
	Patience time.Duration
	// Notice, if set, is called before each wait with the failure and its length.
	Notice func(err error, wait time.Duration)
}

func (r Retry) withDefaults() Retry {
	if r.First <= 0 {
		r.First = 200 * time.Millisecond
	}
	if r.Longest <= 0 {
		r.Longest = 15 * time.Second
	}
	if r.Limit <= 0 {
		r.Limit = 12
	}
	if r.Patience <= 0 {
		r.Patience = 10 * time.Minute
	}
	return r
}

// attempts counts failures in a row.
type attempts struct {
	Retry
	failures int
	putOff   time.Duration // by the server, without progress
}

// progress says that something went forward: the count begins anew.
func (a *attempts) progress() { a.failures, a.putOff = 0, 0 }

// wait waits before the next attempt. It gives an error when there is to be none: the context's, or err at the limit.
func (a *attempts) wait(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var p *Problem
	if errors.As(err, &p) && p.Status == http.StatusTooManyRequests && p.retryAfter > 0 {
		return a.waitAsTold(ctx, p.retryAfter, err)
	}
	a.failures++
	if a.failures >= a.Limit {
		return fmt.Errorf("gave up after %d attempts without progress: %w", a.failures, err)
	}
	wait := a.Longest
	if shift := a.failures - 1; shift < 20 {
		wait = min(a.Longest, a.First<<shift)
	}
	wait -= time.Duration(rand.Int64N(int64(wait)/2 + 1)) //nolint:gosec // spreads load, guards nothing
	if p != nil && p.retryAfter > 0 {
		wait = max(wait, min(p.retryAfter, a.Longest))
	}
	return a.pause(ctx, wait, err)
}

// waitAsTold waits for as long as a server says whose limit was reached: it is well and knows when, so this counts as
// no failure.
func (a *attempts) waitAsTold(ctx context.Context, told time.Duration, err error) error {
	if a.putOff+told > a.Patience {
		return fmt.Errorf("%w (in %s)", err, told)
	}
	wait := told + time.Duration(rand.Int64N(int64(a.First)+1)) //nolint:gosec // as in wait
	a.putOff += wait
	return a.pause(ctx, wait, err)
}

func (a *attempts) pause(ctx context.Context, wait time.Duration, err error) error {
	if a.Notice != nil {
		a.Notice(err, wait)
	}
	return pause.For(ctx, wait)
}

// again makes a call that may be repeated without harm until it is not refused for a passing reason.
func (c *Client) again(ctx context.Context, call func() error) error {
	tries := attempts{Retry: c.retry}
	for {
		err := call()
		if err == nil || !transient(err) {
			return err
		}
		if err := tries.wait(ctx, err); err != nil {
			return err
		}
	}
}

// firstAgain is again for the first request of an undertaking: an address where nobody can be reached is an error at once.
func (c *Client) firstAgain(ctx context.Context, call func() error) error {
	err := c.again(ctx, func() error {
		err := call()
		var connection *ConnectionError
		if errors.As(err, &connection) && connection.neverSent() {
			return &final{connection}
		}
		return err
	})
	if f, ok := err.(*final); ok { //nolint:errorlint // wrapped by nobody
		return f.error
	}
	return err
}

// final hides an error from transient.
type final struct{ error }

// certificateError says that the server's certificate isn't trusted, which no repetition cures.
func certificateError(err error) bool {
	var c *tls.CertificateVerificationError
	return errors.As(err, &c)
}

var errStalled = errors.New("the connection stalled: no byte moved for a while")

// watch makes a context that ends with errStalled when moved isn't called for the stall timeout. stop must be called.
func (c *Client) watch(ctx context.Context) (watched context.Context, moved func(), stop func()) {
	watched, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.stall, func() { cancel(errStalled) })
	moved = func() { timer.Reset(c.stall) }
	return watched, moved, func() {
		timer.Stop()
		cancel(nil)
	}
}

// stalled puts errStalled in place of the bare cancellation that it caused.
func stalled(ctx, watched context.Context, server string, err error) error {
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(watched), errStalled) {
		return &ConnectionError{Server: server, Err: errStalled}
	}
	return err
}
