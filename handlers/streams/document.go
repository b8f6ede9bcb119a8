package streams

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/klauspost/compress/gzip"

	"github.com/imgsrv/imgsrv/internal/incus"
)

// content is one state of a document. It is never changed.
type content struct {
	etag     string    // SHA-256 of body, hex
	modified time.Time // zero for a document that never had anything in it
	body     []byte
	zipped   []byte // nil where it would save nothing

	mediaType string // "": JSON
}

func newContent(etag string, modified time.Time, body []byte) (*content, error) {
	c := &content{etag: etag, modified: modified, body: body}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := z.Write(body)
	if err := errors.Join(err, z.Close()); err != nil {
		return nil, fmt.Errorf("compress a simplestreams document: %w", err)
	}
	if zipped.Len() < len(body) {
		c.zipped = zipped.Bytes()
	}
	return c, nil
}

// document is one of the two, with the last state that PostgreSQL gave.
type document struct {
	db   *database
	path string

	known   atomic.Pointer[content] // nil until PostgreSQL has answered
	reading sync.Mutex              // held while a new body is read, so that only one request does that
}

// nothing is the document before the first publication, when there is no row; clients take it for a remote without images.
func nothing(path string) (*content, error) {
	none := incus.NewProducts(time.Time{})
	none.Updated = ""
	encode := none.Encode
	if path == incus.IndexPath {
		encode = none.Index(incus.ImagesPath).Encode
	}
	body, err := encode()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return newContent(hex.EncodeToString(sum[:]), time.Time{}, body)
}

// latest asks PostgreSQL for the entity tag, and for the body only if that is a new one. While PostgreSQL is away it gives the
// last state known, and fails only if there is none or ctx has ended.
func (d *document) latest(ctx context.Context) (*content, error) {
	known := d.known.Load()
	if known != nil && d.db.resting() {
		return known, nil
	}
	fresh, err := d.read(ctx, known)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		d.db.failed(err)
		if known == nil {
			return nil, err
		}
		return known, nil
	}
	d.db.answered()
	return fresh, nil
}

const selectTag = `SELECT etag, updated_at FROM streams.documents WHERE path = $1`

func (d *document) read(ctx context.Context, known *content) (*content, error) {
	ctx, cancel := context.WithTimeout(ctx, d.db.timeout)
	defer cancel()
	var etag string
	var modified *time.Time
	err := d.db.pool.QueryRow(ctx, selectTag, d.path).Scan(&etag, &modified)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		c, err := nothing(d.path)
		if err != nil {
			return nil, err
		}
		d.known.Store(c)
		return c, nil
	case err != nil:
		return nil, fmt.Errorf("read the entity tag of %s: %w", d.path, err)
	case known.is(etag, modified):
		return known, nil
	}
	return d.readBody(ctx, etag, modified)
}

const selectBody = `SELECT etag, updated_at, body FROM streams.documents WHERE path = $1`

// readBody gives a state that is at least as new as the entity tag just read.
func (d *document) readBody(ctx context.Context, etag string, modified *time.Time) (*content, error) {
	d.reading.Lock()
	defer d.reading.Unlock()
	if known := d.known.Load(); known.is(etag, modified) {
		return known, nil // another request has read it meanwhile
	}
	var body []byte
	if err := d.db.pool.QueryRow(ctx, selectBody, d.path).Scan(&etag, &modified, &body); err != nil {
		return nil, fmt.Errorf("read %s: %w", d.path, err)
	}
	var at time.Time
	if modified != nil {
		at = *modified
	}
	c, err := newContent(etag, at, body)
	if err != nil {
		return nil, err
	}
	d.known.Store(c)
	return c, nil
}

func (c *content) is(etag string, modified *time.Time) bool {
	if c == nil || c.etag != etag {
		return false
	}
	return modified == nil && c.modified.IsZero() || modified != nil && c.modified.Equal(*modified)
}

// database is PostgreSQL with what is known of its health, so that its absence is logged once and doesn't slow each request.
type database struct {
	pool           *pgxpool.Pool
	log            *slog.Logger
	pause, timeout time.Duration

	mu    sync.Mutex
	away  bool
	since time.Time // of the last failure
}

func (db *database) resting() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.away && time.Since(db.since) < db.pause
}

func (db *database) failed(err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if !db.away {
		db.log.Warn("PostgreSQL doesn't give the simplestreams documents: the last known ones are served", "error", err)
	}
	db.away, db.since = true, time.Now()
}

func (db *database) answered() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.away {
		db.log.Info("PostgreSQL gives the simplestreams documents again")
	}
	db.away = false
}
