package api

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/provenance"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// Downloads, whatever names them.
const (
	cacheForever    = "public, max-age=31536000, immutable" // what a version or a digest names never changes
	cacheRevalidate = "public, no-cache"                    // an alias may move; with the ETag asking again is cheap
	cacheOwn        = "private, max-age=31536000, immutable"
	cacheOwnAsk     = "private, no-cache"
)

// bytes registers the downloads, GET and HEAD. They are plain handlers: huma would stand between the file and
// the connection, and the bytes would pass through memory.
func (s *server) bytes(router chi.Router) {
	router.Group(func(r chi.Router) {
		r.Use(Authenticate(s.Guard, s.Log), MinSequence(s.Events, s.MinSequenceWait, s.Log, s.CatalogProjection))
		routes := s.provenance()
		routes[pathFormat], routes[pathAttached], routes[pathBlob] = s.serveFormat, s.serveAttachment, s.serveBlob
		maps.Copy(routes, s.pages())
		for path, serve := range routes {
			handler := func(w http.ResponseWriter, r *http.Request) {
				if err := serve(w, r); err != nil {
					s.refuse(w, r, err)
				}
			}
			r.Get(path, handler)
			r.Head(path, handler)
		}
	})
}

// serveFormat is GET and HEAD /api/images/{image}/versions/{version or alias}/variants/{variant}/formats/{format}:
// 200, 206 with Range, 304, 401, 404, 410, 412, 416, 503; with ETag, Repr-Digest, Last-Modified, Accept-Ranges,
// Content-Disposition and Cache-Control.
func (s *server) serveFormat(w http.ResponseWriter, r *http.Request) error {
	image, version, variant, format := param(r, "image"), param(r, "version"), param(r, "variant"), param(r, "format")
	gone := missing("image %q has no file %q of variant %q in version %q", image, format, variant, version)
	if events.CheckImageName(image) != nil || events.CheckVersionName(version) != nil || events.CheckFormatName(format) != nil {
		return gone
	}
	row, err := findListed(r.Context(), s, func() (catalog.FormatRow, error) {
		return s.findFormat(r.Context(), image, version, variant, format)
	})
	if err != nil {
		return notFoundAs(err, gone)
	}
	if err := s.mayHave(r.Context(), row.Image, row.Version, row.Visibility, row.Withdrawn); err != nil {
		return notFoundAs(err, gone)
	}
	return s.send(w, r, download{digest: row.Digest, size: row.Size, mediaType: row.MediaType, modified: row.PublishedAt,
		cache: cacheOf(row.Visibility, row.ByAlias || row.Derived), name: provenance.FileName(row.Image, row.Version, row.Variant, row.Format)})
}

// cacheOf is the Cache-Control of what belongs to an image; of what may change, as an alias does, each use asks again.
func cacheOf(visibility events.Visibility, changes bool) string {
	switch {
	case visibility != events.Public && changes:
		return cacheOwnAsk
	case visibility != events.Public:
		return cacheOwn
	case changes:
		return cacheRevalidate
	}
	return cacheForever
}

// serveBlob is GET and HEAD /cas/sha256/{2 hex}/{64 hex}: as serveFormat, for the bytes of any published version
// that the caller may see, without Last-Modified.
func (s *server) serveBlob(w http.ResponseWriter, r *http.Request) error {
	prefix, hexed := param(r, "prefix"), param(r, "hex")
	gone := missing("there is no blob %q", hexed)
	digest, err := events.ParseDigest("sha256:" + hexed)
	if err != nil || prefix != hexed[:2] {
		return gone
	}
	row, err := findListed(r.Context(), s, func() (catalog.BlobRow, error) { return s.findBlob(r.Context(), digest) })
	if errors.Is(err, catalog.ErrNotFound) {
		return s.goneBlob(r.Context(), digest, gone)
	}
	if err != nil {
		return err
	}
	d := download{digest: row.Digest, size: row.Size, mediaType: row.MediaType, cache: cacheForever, name: "sha256-" + hexed}
	if !row.Public {
		d.cache = cacheOwn
	}
	return s.send(w, r, d)
}

// goneBlob is the refusal of a digest under which nothing is to be had: to who may read all images it says so where the bytes were collected.
func (s *server) goneBlob(ctx context.Context, digest events.Digest, gone error) error {
	if !access.From(ctx).MayServer(events.RoleReader) {
		return gone
	}
	current, err := s.Events.Blob(ctx, digest)
	if err != nil || current.State.State != events.BlobIsCollected {
		return gone
	}
	return problem.New(problem.CodeGone, fmt.Sprintf("the bytes of %s have been collected at %s: no version named them any more", digest, current.Event.Time.UTC().Format(time.RFC3339)))
}

type download struct {
	digest    events.Digest
	size      int64 // bytes
	mediaType string
	name      string // that a browser saves it under; made of clean names only
	modified  time.Time
	cache     string
}

func (s *server) send(w http.ResponseWriter, r *http.Request, d download) error {
	file, err := s.openBlob(d.digest, d.size)
	if err != nil {
		return err
	}
	defer file.Close() //nolint:errcheck // only read
	sum, err := hex.DecodeString(d.digest.Hex())
	if err != nil {
		return fmt.Errorf("send a published file: digest %q: %w", d.digest, err)
	}
	h := w.Header()
	h.Set("Content-Type", d.mediaType)
	h.Set("Content-Disposition", `attachment; filename="`+d.name+`"`)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("ETag", `"`+string(d.digest)+`"`)
	h.Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum)+":") // RFC 9530
	if _, ok := access.PathTokenFrom(r.Context()); ok {
		// Whatever the image is: the address holds a token, which can end.
		d.cache = strings.Replace(d.cache, "public", "private", 1)
	}
	h.Set("Cache-Control", d.cache)

	paced := &pacedWriter{ResponseWriter: w, request: r, log: s.Log, control: http.NewResponseController(w),
		good: func() error { return s.Blobs.Damaged(d.digest.Hex()) }}
	problem.ServeContent(paced, r, s.Log, d.modified, file)
	paced.end()
	if paced.bad {
		s.suspect(d.digest)
		panic(http.ErrAbortHandler) // the client must not take what it has for the whole
	}
	return nil
}

// openBlob opens a published file. A file that isn't there, or hasn't the length that was published, or is known to be damaged, is
// none that may be sent: that is a problem of its own, and no plain 404.
func (s *server) openBlob(digest events.Digest, size int64) (*os.File, error) {
	file, info, err := s.Blobs.OpenBlob(digest.Hex())
	if err == nil && info.Size() != size {
		err = errors.Join(&blob.SizeMismatchError{What: "blob " + digest.Hex(), WantBytes: size, GotBytes: info.Size()}, file.Close())
	}
	if err == nil {
		return file, nil
	}
	var damaged *blob.DamagedError
	var wrongSize *blob.SizeMismatchError
	switch {
	case errors.As(err, &damaged):
	case errors.As(err, &wrongSize), errors.Is(err, fs.ErrNotExist), errors.Is(err, blob.ErrNotRegular), errors.Is(err, syscall.EIO):
		s.suspect(digest) // nobody has noticed yet
	default:
		return nil, fmt.Errorf("send a published file: %w", err)
	}
	return nil, &damagedError{problem.New(problem.CodeBlobDamaged, fmt.Sprintf("the bytes of %s are damaged in the server's storage, and none of them is sent; its operators can repair them", digest)), err}
}

// damagedError is a problem, with its cause for the log.
type damagedError struct {
	details *problem.Details
	cause   error
}

func (e *damagedError) Error() string { return fmt.Sprintf("send a published file: %v", e.cause) }

func (e *damagedError) Unwrap() error { return e.details }

// suspect has a blob looked at, which couldn't be read as it should.
func (s *server) suspect(digest events.Digest) {
	if s.Scrub != nil {
		s.Scrub.Suspect(digest.Hex())
	}
}
