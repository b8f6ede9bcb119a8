package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/imgsrv/imgsrv/internal/secretfile"
)

// Meters measure the backups of a node. The nil Meters measure nothing.
type Meters struct {
	runs metric.Int64Counter
	file string
	log  *slog.Logger
	last atomic.Int64 // seconds since 1970; 0: none yet
}

// remembered is what outlives the process: a node that was started anew must not look like one that never had a backup.
type remembered struct {
	LastSuccessAt time.Time `json:"last_success_at"`
}

// NewMeters makes the meters, which remember in a file when the last backup was made.
func NewMeters(m metric.Meter, file string, log *slog.Logger) (*Meters, error) {
	out := &Meters{file: file, log: log}
	var known remembered
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	switch {
	case err == nil && !known.LastSuccessAt.IsZero():
		out.last.Store(known.LastSuccessAt.Unix())
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		log.Warn("when the last backup was made can't be read: it is measured from the next one on", "file", file, "error", err)
	}
	var errs [2]error
	out.runs, errs[0] = m.Int64Counter("imgsrv.backup.runs", metric.WithDescription("Backups by result: succeeded, failed"))
	_, errs[1] = m.Int64ObservableGauge("imgsrv.backup.last_success.timestamp", metric.WithUnit("s"), metric.WithDescription("When the last backup that this node has made was ended, in Unix time"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			if at := out.last.Load(); at != 0 {
				o.Observe(at)
			}
			return nil
		}))
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make meters: %w", err)
	}
	return out, nil
}

// done counts a backup that has ended. One that lacks blobs is not whole, and no success.
func (m *Meters) done(ctx context.Context, now time.Time, whole bool) {
	if m == nil {
		return
	}
	if !whole {
		m.runs.Add(ctx, 1, metric.WithAttributes(attribute.String("result", "failed")))
		return
	}
	m.runs.Add(ctx, 1, metric.WithAttributes(attribute.String("result", "succeeded")))
	m.last.Store(now.Unix())
	text, err := json.Marshal(remembered{LastSuccessAt: now.UTC()})
	if err == nil {
		err = secretfile.Replace(m.file, append(text, '\n'))
	}
	if err != nil {
		m.log.WarnContext(ctx, "a restart will not know when the last backup was made", "file", m.file, "error", err)
	}
}
