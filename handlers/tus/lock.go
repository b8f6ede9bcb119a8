package tus

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
)

// ErrStopping is the cause to cancel requests' contexts with when the server stops: a running upload then
// ends where it is, with all bytes that arrived kept.
var ErrStopping = errors.New("the server is stopping")

// body is a request's body that can be ended from outside, also while a read waits for the client, and that ends when
// no byte comes for too long. tusd has ways of its own for both: the one reads a field that its handler may be
// writing, the other begins with the second read, and waits for the first byte for ever.
type body struct {
	io.ReadCloser
	control *http.ResponseController
	stall   time.Duration

	mu    sync.Mutex
	cause error // what ended it
	// whole says that all of it was read. From then on net/http reads on the connection by itself, to notice a client that goes
	// away, and the deadline is none of ours: one that passes cancels this request and every later one of the connection.
	whole bool
}

func newBody(r *http.Request, w http.ResponseWriter, stall time.Duration) *body {
	return &body{ReadCloser: r.Body, control: http.NewResponseController(w), stall: stall, whole: r.Body == http.NoBody}
}

func (b *body) Read(p []byte) (int, error) {
	if cause := b.begin(); cause != nil {
		return 0, cause
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		if cause := b.ended(err); cause != nil {
			return n, cause
		}
	}
	return n, err
}

// begin sets the time that a read may take, unless the body was ended.
func (b *body) begin() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause == nil && !b.whole {
		_ = b.control.SetReadDeadline(time.Now().Add(b.stall)) // as in interrupt
	}
	return b.cause
}

// ended is told how a read has failed, and says what ended the body.
func (b *body) ended(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause == nil && errors.Is(err, io.EOF) {
		b.whole = true
	}
	return b.cause
}

// interrupted says whether the body was ended before all of it was read, so that its connection is of no more use.
func (b *body) interrupted() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.cause != nil && !b.whole
}

// interrupt makes this and each later Read fail with cause.
func (b *body) interrupt(cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause == nil {
		b.cause = cause
	}
	if b.whole {
		return
	}
	// Wakes a waiting Read. tusd moves the deadline after each read, but the next one looks at cause first.
	_ = b.control.SetReadDeadline(time.Unix(1, 0)) // not possible on a writer without deadlines, as in some tests
}

// left is called when the handler is done. The server reads on for a while before it sends the answer; of a body that
// was ended it shall not wait for more.
func (b *body) left() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cause != nil && !b.whole {
		_ = b.control.SetReadDeadline(time.Unix(1, 0)) // as in interrupt; tusd has moved it
	}
}

type bodyKey struct{}

// locker keeps uploads apart in this process, which owns the data folder: lock files with process ids
// would outlive a kill. Who wants a lock that is held ends the holder's request: its client has come back
// on a new connection.
type locker struct {
	mu   sync.Mutex
	held map[string]*hold
}

type hold struct {
	released chan struct{}
	body     *body // nil for a request without one
}

func newLocker() *locker { return &locker{held: map[string]*hold{}} }

// NewLock implements tusd's Locker.
func (l *locker) NewLock(id string) (handler.Lock, error) { return &lock{locker: l, id: id}, nil }

type lock struct {
	locker *locker
	id     string
	hold   *hold
}

// Lock waits until the upload is free, or ctx ends: then the error is tusd's ErrLockTimeout.
func (l *lock) Lock(ctx context.Context, _ func()) error {
	own, _ := ctx.Value(bodyKey{}).(*body)
	for {
		l.locker.mu.Lock()
		other := l.locker.held[l.id]
		if other == nil {
			l.hold = &hold{released: make(chan struct{}), body: own}
			l.locker.held[l.id] = l.hold
			l.locker.mu.Unlock()
			return nil
		}
		l.locker.mu.Unlock()
		if other.body != nil {
			other.body.interrupt(handler.ErrUploadInterrupted)
		}
		select {
		case <-other.released:
		case <-ctx.Done():
			return handler.ErrLockTimeout
		}
	}
}

// Unlock implements tusd's Lock.
func (l *lock) Unlock() error {
	l.locker.mu.Lock()
	defer l.locker.mu.Unlock()
	delete(l.locker.held, l.id)
	close(l.hold.released)
	return nil
}
