package limits

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/imgsrv/imgsrv/handlers/problem"
)

// most requests at once where nobody says another number: what a machine has files for, up to this.
const mostRequests = 4096

// RequestsRule is how many requests a node serves at once where nobody says another number: each takes a connection and up to
// three files, and connections that wait, PostgreSQL and the event log want some too.
func RequestsRule() int {
	var files syscall.Rlimit // the Go runtime has raised the soft limit to the hard one
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return mostRequests
	}
	return int(min(mostRequests, max(16, files.Cur*3/16)))
}

// ConnectionsRule is how many connections a listener takes at once: half of the files that the process may have open.
func ConnectionsRule() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 4 * mostRequests
	}
	return int(min(1<<20, max(32, files.Cur/2)))
}

// Load bounds how many requests a node serves at once, of all clients together, so that memory and files suffice for those that
// were let in. Reads get three quarters of the places at most: downloads, however many, don't keep bytes from coming in.
// The nil Load limits nothing.
type Load struct {
	most     int64
	free     []string
	refusals *Refusals
	log      *slog.Logger

	all, reads atomic.Int64
}

// NewLoad is nil, no limit, for a maximum of 0. Free are paths that are never refused: probes. It makes the gauge
// imgsrv.http.requests.
func NewLoad(most int, free []string, refusals *Refusals, meter metric.Meter, log *slog.Logger) (*Load, error) {
	if most <= 0 {
		return nil, nil //nolint:nilnil // the nil Load is one
	}
	l := &Load{most: int64(most), free: free, refusals: refusals, log: log}
	_, err := meter.Int64ObservableGauge("imgsrv.http.requests", metric.WithDescription("Requests that are being served"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			o.Observe(l.all.Load())
			return nil
		}))
	if err != nil {
		return nil, fmt.Errorf("make the meter of requests at once: %w", err)
	}
	return l, nil
}

// Middleware answers what is too much with 503 and when to come back. It stands before all that costs something.
func (l *Load) Middleware(next http.Handler) http.Handler {
	if l == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, path := range l.free {
			if r.URL.Path == path {
				next.ServeHTTP(w, r)
				return
			}
		}
		done, ok := l.enter(r.Method == http.MethodGet || r.Method == http.MethodHead)
		if !ok {
			l.refusals.note(r.Context(), overload, r.RemoteAddr)
			// Not all at the same moment again.
			wait := time.Second + rand.N(4*time.Second)
			problem.Write(w, r, slog.New(slog.DiscardHandler), problem.New(problem.CodeOverloaded, "the server has as many requests as it can serve: come back when Retry-After says").After(wait))
			return
		}
		defer done()
		next.ServeHTTP(w, r)
	})
}

func (l *Load) enter(read bool) (done func(), ok bool) {
	if read && l.reads.Add(1) > max(1, l.most*3/4) {
		l.reads.Add(-1)
		return nil, false
	}
	done = func() {
		l.all.Add(-1)
		if read {
			l.reads.Add(-1)
		}
	}
	if l.all.Add(1) > l.most {
		done()
		return nil, false
	}
	return done, true
}
