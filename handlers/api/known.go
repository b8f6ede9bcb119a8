package api

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/store/catalog"
)

const (
	// tablesTimeout is how long a download waits for PostgreSQL before what is known in memory has to do.
	tablesTimeout = 2 * time.Second
	// tablesRest is how long PostgreSQL is then left alone, so that not each download of an outage waits.
	tablesRest = time.Second
)

// tables remembers that PostgreSQL gave no answer lately.
type tables struct {
	mu     sync.Mutex
	failed time.Time // zero while it answers
}

// resting says whether to leave PostgreSQL alone. After a rest one caller looks how it is, and the others rest on meanwhile.
func (t *tables) resting() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failed.IsZero():
		return false
	case time.Since(t.failed) < tablesRest:
		return true
	}
	t.failed = time.Now()
	return false
}

// note takes in how a question went, and says whether PostgreSQL was away at it.
func (t *tables) note(ctx context.Context, err error) (away bool) {
	away = errors.Is(err, catalog.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case away:
		t.failed = time.Now()
	case ctx.Err() == nil:
		t.failed = time.Time{}
	}
	return away
}

// findBlob asks the tables, and while they are away what is known in memory. What isn't known there is 503 whatever it is, so
// that nobody learns of a private blob by it.
func (s *server) findBlob(ctx context.Context, digest events.Digest) (catalog.BlobRow, error) {
	return find(ctx, s, func(ctx context.Context) (catalog.BlobRow, error) {
		return s.Catalog.Blob(ctx, digest, readable(ctx))
	}, func() (catalog.BlobRow, bool) {
		return s.Known.Blob(digest, func(image string) bool { return access.From(ctx).May(events.RoleReader, image) })
	})
}

// findFormat is as findBlob. What the caller may not see is as if it weren't known.
func (s *server) findFormat(ctx context.Context, image, version, variant, format string) (catalog.FormatRow, error) {
	return find(ctx, s, func(ctx context.Context) (catalog.FormatRow, error) {
		return s.Catalog.Format(ctx, image, version, variant, format)
	}, func() (catalog.FormatRow, bool) {
		row, ok := s.Known.Format(image, version, variant, format)
		return row, ok && maySee(ctx, row.Image, row.Visibility)
	})
}

// find asks the tables, within a bound, and where they are away, or were a moment ago, what is known.
func find[R any](ctx context.Context, s *server, ask func(context.Context) (R, error), known func() (R, bool)) (R, error) {
	if s.Known == nil {
		return ask(ctx)
	}
	if s.tables.resting() {
		if row, ok := known(); ok {
			return row, nil
		}
		var none R
		return none, catalog.ErrUnavailable
	}
	bounded, cancel := context.WithTimeout(ctx, tablesTimeout)
	defer cancel()
	row, err := ask(bounded)
	if s.tables.note(ctx, err) {
		if row, ok := known(); ok {
			return row, nil
		}
		return row, errors.Join(catalog.ErrUnavailable, err)
	}
	return row, err
}

// findListed asks ask, and where that finds nothing while the simplestreams documents are ahead of the catalog, once more as soon as the
// catalog has come to where they are: a host must get what it has just read there. It waits a second at most (VisibleWait).
func findListed[R any](ctx context.Context, s *server, ask func() (R, error)) (R, error) {
	row, err := ask()
	if !errors.Is(err, catalog.ErrNotFound) {
		return row, err
	}
	shown := s.StreamsProjection.Reached(ctx)
	if shown <= s.CatalogProjection.Reached(ctx) {
		return row, err
	}
	waiting, cancel := context.WithTimeout(ctx, s.VisibleWait)
	defer cancel()
	if s.CatalogProjection.WaitFor(waiting, shown) != nil {
		return row, err
	}
	return ask()
}
