package limits

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// uploadsRetry is what a client is told to wait for a place: uploads end at any moment, requests of 64 MiB often.
const uploadsRetry = 2 * time.Second

// Uploads limits how many requests of one principal may bring bytes at once, on one node. That also bounds what many
// slow ones can hold. The nil Uploads limits nothing.
type Uploads struct {
	most     int
	refusals *Refusals

	mu  sync.Mutex
	now map[string]int
}

// NewUploads is nil, no limit, for a maximum of 0.
func NewUploads(most int, refusals *Refusals) *Uploads {
	if most <= 0 {
		return nil
	}
	return &Uploads{most: most, refusals: refusals, now: map[string]int{}}
}

// Begin takes a place for the principal of a context. done, to be called once, gives it back.
func (u *Uploads) Begin(ctx context.Context) (done func(), err error) {
	if u == nil {
		return func() {}, nil
	}
	name := access.From(ctx).Name
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now[name] >= u.most {
		u.refusals.note(ctx, parallelUploads, name)
		return nil, problem.New(problem.CodeTooManyUploads, fmt.Sprintf("%s uploads %d files at once on this node, and may not more: come back when one is done", name, u.most)).After(uploadsRetry)
	}
	u.now[name]++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.now[name]--; u.now[name] == 0 {
			delete(u.now, name)
		}
	}, nil
}
