// Package streams serves the simplestreams documents that Incus and LXD clients read. To everybody it passes on the bytes that the
// projection of that name has made; for those who may read private images it has the projection make documents with these in
// them. It knows nothing of how documents are made.
package streams

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// Config is what the handler works with.
type Config struct {
	Pool *pgxpool.Pool
	Log  *slog.Logger
	// RetryPause is how long PostgreSQL is left alone after it failed, while the known documents are served; 0: a second.
	RetryPause time.Duration
	// QueryTimeout is how long a request waits for PostgreSQL before it gets the known documents; 0: two seconds.
	QueryTimeout time.Duration
	// Signer, optional, signs the documents for clients that check them; without it there are no .sjson ones.
	Signer *sjson.Signer
}

// Handler serves the documents.
type Handler struct {
	log       *slog.Logger
	documents map[string]*document // by path, without the leading slash
	private   *private
	signing   signing
}

// New makes the handler of /streams/v1/; it looks at the whole path of a request.
//
// GET and HEAD answer 200 or 304, with the documents as they were when PostgreSQL answered last: those of the principal that
// access.From finds in the request's context, who may read some private images, or else the public ones. With a Signer they are
// there also clear-signed, under names that end in .sjson, and its public key under sjson.KeyPath. 404: another path. 405: another
// method. 503: PostgreSQL has not answered since the start.
func New(cfg Config) *Handler {
	db := &database{pool: cfg.Pool, log: cfg.Log, pause: cmp.Or(cfg.RetryPause, time.Second), timeout: cmp.Or(cfg.QueryTimeout, 2*time.Second)}
	h := &Handler{log: cfg.Log, documents: map[string]*document{}, private: newPrivate(db), signing: signing{signer: cfg.Signer}}
	for _, path := range []string{incus.IndexPath, incus.ImagesPath} {
		h.documents[path] = &document{db: db, path: path}
	}
	return h
}

// keepEvery is how old what Keep has read may be, at most.
const keepEvery = 2 * time.Second

// Keep reads the documents, and what private ones are made of, now and then until ctx ends: so that there is something to serve
// also where PostgreSQL goes away before anybody has asked. An unchanged document costs one small query.
func (h *Handler) Keep(ctx context.Context) error {
	ticker := time.NewTicker(keepEvery)
	defer ticker.Stop()
	for {
		for _, d := range h.documents {
			_, _ = d.latest(ctx) // what goes wrong is logged there, once
		}
		_, _ = h.private.tables(ctx) // as above
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// ServeHTTP is what [New] says.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	asked := strings.TrimPrefix(r.URL.Path, "/")
	isKey := h.signing.signer != nil && asked == sjson.KeyPath
	path := h.signing.plain(asked)
	_, ok := h.documents[path]
	if !ok && !isKey {
		problem.Write(w, r, h.log, problem.New(events.CodeNotFound, "there is no such simplestreams document: clients begin at /"+incus.IndexPath))
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		problem.Write(w, r, h.log, problem.New(problem.CodeMethod, "a simplestreams document can only be read"))
		return
	}
	if isKey {
		h.signing.serveKey(w, r, h.log)
		return
	}
	c, err := h.latest(r.Context(), path)
	if err != nil {
		if !errors.Is(err, r.Context().Err()) {
			err = errors.Join(problem.New(problem.CodeUnavailable, "the simplestreams documents can't be read from PostgreSQL yet: try again"), err)
		}
		problem.Write(w, r, h.log, err)
		return
	}
	if path != asked {
		if c, err = h.signing.of(path, c); err != nil {
			problem.Write(w, r, h.log, err)
			return
		}
	}
	serve(w, r, h.log, c)
}

// latest is the document for the principal of ctx.
func (h *Handler) latest(ctx context.Context, path string) (*content, error) {
	if who := access.From(ctx); who.MaySomewhere(events.RoleReader) {
		if c, err := h.private.latest(ctx, who, path); c != nil || err != nil {
			return c, err
		}
	}
	return h.documents[path].latest(ctx)
}

// serve answers with the bytes, compressed for a client that takes them so.
func serve(w http.ResponseWriter, r *http.Request, log *slog.Logger, c *content) {
	header := w.Header()
	header.Set("Content-Type", cmp.Or(c.mediaType, "application/json"))
	// Clients keep the documents by a clock of their own. Caches on the way must ask each time: who has just published expects
	// to see the version, and asking costs them a 304.
	header.Set("Cache-Control", "no-cache")
	header.Add("Vary", "Accept-Encoding")
	if access.From(r.Context()).Name != "" { // also where it is the public document: it may be another one tomorrow
		header.Set("Cache-Control", "private, no-cache")
		header.Add("Vary", "Authorization")
	}
	etag, body := c.etag, c.body
	if c.zipped != nil && acceptsGzip(r.Header.Values("Accept-Encoding")) {
		// Other bytes, other strong tag (RFC 9110, section 8.8.3.3).
		etag, body = c.etag+"-gzip", c.zipped
		header.Set("Content-Encoding", "gzip")
		header.Set("Content-Length", strconv.Itoa(len(body)))
	}
	header.Set("ETag", `"`+etag+`"`)
	problem.ServeContent(w, r, log, c.modified, bytes.NewReader(body))
}

// acceptsGzip reads Accept-Encoding (RFC 9110, section 12.5.3). A client that doesn't name gzip doesn't get it, even if it
// sends "*".
func acceptsGzip(values []string) bool {
	for _, value := range values {
		for coding := range strings.SplitSeq(value, ",") {
			name, parameters, _ := strings.Cut(coding, ";")
			if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
				continue
			}
			q, weighted := strings.CutPrefix(strings.ToLower(strings.ReplaceAll(parameters, " ", "")), "q=")
			if !weighted {
				return true
			}
			weight, err := strconv.ParseFloat(q, 64)
			return err == nil && weight > 0
		}
	}
	return false
}
