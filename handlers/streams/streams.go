// Package streams serves the simplestreams documents that Incus and LXD clients read, to everybody those of the public images, to those
// who may read private ones documents with these in them. It has package projections/streams make them, whenever a request finds
// that the tables of that name are others, and knows nothing of how they are made.
package streams

import (
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
	"github.com/imgsrv/imgsrv/internal/pieces"
)

// Config is what the handler works with.
type Config struct {
	Pool *pgxpool.Pool
	Log  *slog.Logger
	// Edition, optional, is the projection's (projections.Runner.Edition): while it is the same, PostgreSQL isn't asked again.
	Edition func() (number uint64, ok bool)
	// RetryPause is how long PostgreSQL is left alone after it failed, while the known documents are served; 0: a second.
	RetryPause time.Duration
	// QueryTimeout is how long a request waits for PostgreSQL before it gets the known documents; 0: two seconds.
	QueryTimeout time.Duration
	// Signer, optional, signs the documents for clients that check them; without it there are no .sjson ones.
	Signer *sjson.Signer
}

// Handler serves the documents.
type Handler struct {
	log     *slog.Logger
	source  *source
	private *private
	pages   pages
	signing signing
	coder   *pieces.Coder
}

// New makes the handler of /streams/v1/; it looks at the whole path of a request.
//
// GET and HEAD answer 200 or 304, with the documents as they were when PostgreSQL answered last: those of the principal that
// access.From finds in the request's context, who may read some private images, or else the public ones; and, below images/, a document
// of one image, in pages. With a Signer they are there also clear-signed, under names that end in .sjson, and its public key under
// sjson.KeyPath. 400: a page that isn't one. 404: another path, or an image that the principal may not read. 405: another method.
// 503: PostgreSQL has not answered since the start.
func New(cfg Config) *Handler {
	db := &database{pool: cfg.Pool, log: cfg.Log, pause: cmp.Or(cfg.RetryPause, time.Second), timeout: cmp.Or(cfg.QueryTimeout, 2*time.Second)}
	return &Handler{log: cfg.Log, source: newSource(db, cfg.Edition), private: newPrivate(db), signing: signing{signer: cfg.Signer}, coder: pieces.NewCoder()}
}

// keepEvery is how old what Keep has read may be, at most.
const keepEvery = 2 * time.Second

// Keep reads the documents, and what private ones are made of, now and then until ctx ends: so that there is something to serve
// also where PostgreSQL goes away before anybody has asked. An unchanged document costs one small query.
func (h *Handler) Keep(ctx context.Context) error {
	ticker := time.NewTicker(keepEvery)
	defer ticker.Stop()
	for {
		_, _ = h.source.latest(ctx) // what goes wrong is logged there, once
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
	image, isImage := incus.ImageOfPath(path)
	if path != incus.IndexPath && path != incus.ImagesPath && !isImage && !isKey {
		problem.Write(w, r, h.log, problem.New(events.CodeNotFound, "there is no such simplestreams document: clients begin at /"+incus.IndexPath))
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		problem.Write(w, r, h.log, problem.New(problem.CodeMethod, "a simplestreams document can only be read"))
		return
	}
	if isKey {
		h.serveKey(w, r)
		return
	}
	state, err := h.source.latest(r.Context())
	if err != nil {
		if !errors.Is(err, r.Context().Err()) {
			err = errors.Join(problem.New(problem.CodeUnavailable, "the simplestreams documents can't be read from PostgreSQL yet: try again"), err)
		}
		problem.Write(w, r, h.log, err)
		return
	}
	var c *content
	if isImage {
		c, err = h.pages.of(state, access.From(r.Context()), image, r.URL.Query())
	} else {
		c, err = h.document(r.Context(), state, path)
	}
	if err == nil && path != asked {
		c, err = h.signing.of(path, c)
	}
	if err != nil {
		problem.Write(w, r, h.log, err)
		return
	}
	h.serve(w, r, c)
}

// document is the one for the principal of ctx.
func (h *Handler) document(ctx context.Context, of *state, path string) (*content, error) {
	if who := access.From(ctx); who.MaySomewhere(events.RoleReader) {
		if c, err := h.private.latest(ctx, who, of, path); c != nil || err != nil {
			return c, err
		}
	}
	return of.documents[path], nil
}

// serve answers with the bytes, compressed for a client that takes them so.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, c *content) {
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
	if c.next != "" {
		header.Set("Link", "<"+c.next+`>; rel="next"`)
	}
	etag, body := c.etag, c.plain
	if coding, ok := negotiate(r.Header.Values("Accept-Encoding")); ok {
		packed, err := c.as(coding, h.coder)
		if err != nil {
			problem.Write(w, r, h.log, err)
			return
		}
		if packed != nil {
			// Other bytes, other strong tag (RFC 9110, section 8.8.3.3).
			etag, body = c.etag+"-"+coding.String(), packed
			header.Set("Content-Encoding", coding.String())
			header.Set("Content-Length", strconv.FormatInt(body.Size(), 10))
		}
	}
	header.Set("ETag", `"`+etag+`"`)
	problem.ServeContent(w, r, h.log, c.modified, body.Reader())
}

// negotiate reads Accept-Encoding (RFC 9110, section 12.5.3): of the codings that the client names, the one that it likes best; of those
// it likes the same, zstd before gzip, which packs less and slower, before none. A client that doesn't name a coding doesn't get it, even if it sends "*".
func negotiate(values []string) (best pieces.Coding, ok bool) {
	weights := map[string]float64{}
	for _, value := range values {
		for coding := range strings.SplitSeq(value, ",") {
			name, parameters, _ := strings.Cut(coding, ";")
			weights[strings.ToLower(strings.TrimSpace(name))] = weightOf(parameters)
		}
	}
	least := weights["identity"] // which is fine with a client that is silent about it, but nothing that it asks for
	for _, coding := range []pieces.Coding{pieces.Zstd, pieces.Gzip} {
		if weight := weights[coding.String()]; weight > 0 && weight >= least && (!ok || weight > weights[best.String()]) {
			best, ok = coding, true
		}
	}
	return best, ok
}

// weightOf reads the parameters of a coding: 1 where there is no weight, 0 where it can't be read.
func weightOf(parameters string) float64 {
	q, weighted := strings.CutPrefix(strings.ToLower(strings.ReplaceAll(parameters, " ", "")), "q=")
	if !weighted {
		return 1
	}
	weight, err := strconv.ParseFloat(q, 64)
	if err != nil || !(weight >= 0 && weight <= 1) {
		return 0
	}
	return weight
}
