// Package limits keeps one client from taking what all need: requests a second, uploads at once, open upload
// sessions, bytes a day, and the last free bytes of the storage; and all of them from bringing a node down. It decides and answers with a problem that says
// when to come back; it must not know what a request is about, nor how bytes are received.
//
// Two scopes: [Requests], [Uploads], [Load] and [Connections] count on one node and forget at its end. [Intake] folds the events of upload
// sessions, which all nodes share, and so survives a restart.
package limits

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// limitName names a limit, in metrics and in the log.
type limitName string

// The limits there are.
const (
	requestRate      limitName = "request_rate"
	wrongCredentials limitName = "authentication" // requests with credentials that aren't right
	parallelUploads  limitName = "parallel_uploads"
	openSessions     limitName = "open_sessions"
	bytesPerDay      limitName = "bytes_per_day"
	storageReserve   limitName = "storage_reserve"
	overload         limitName = "overload" // requests at once, of all clients
)

// Refusals counts what the limits refuse, and says in the log that one was reached: at most once a minute for each,
// as the clients that reach one tend to come back. The nil Refusals does nothing.
type Refusals struct {
	log     *slog.Logger
	counter metric.Int64Counter

	mu   sync.Mutex
	said map[limitName]time.Time
}

// NewRefusals makes the counter imgsrv.limits.refused.
func NewRefusals(meter metric.Meter, log *slog.Logger) (*Refusals, error) {
	if meter == nil {
		meter = noop.Meter{}
	}
	counter, err := meter.Int64Counter("imgsrv.limits.refused", metric.WithDescription("Requests that a limit refused, by limit"))
	if err != nil {
		return nil, fmt.Errorf("make the meter of limits: %w", err)
	}
	for _, limit := range []limitName{requestRate, wrongCredentials, parallelUploads, openSessions, bytesPerDay, storageReserve, overload} {
		counter.Add(context.Background(), 0, metric.WithAttributes(attribute.String("limit", string(limit)))) // there from the first look on
	}
	return &Refusals{log: log, counter: counter, said: map[limitName]time.Time{}}, nil
}

const sayEvery = time.Minute

// note counts a refusal; who is a principal's name or a client's address.
func (r *Refusals) note(ctx context.Context, limit limitName, who string) {
	if r == nil {
		return
	}
	// The client may be gone; it was refused all the same. Who it was is in no metric: names would make time series.
	r.counter.Add(context.WithoutCancel(ctx), 1, metric.WithAttributes(attribute.String("limit", string(limit))))
	r.mu.Lock()
	now := time.Now()
	say := now.Sub(r.said[limit]) >= sayEvery
	if say {
		r.said[limit] = now
	}
	r.mu.Unlock()
	if say {
		r.log.WarnContext(ctx, "a limit was reached; more refusals by it in the next minute are only counted", "limit", string(limit), "who", who)
	}
}
