package streams

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// FuzzServe asks for documents as they were when PostgreSQL went away. Whatever is asked, the answer is one of the two documents,
// a part of it, or a problem; and it costs no more than a small multiple of the document.
func FuzzServe(f *testing.F) {
	quiet := slog.New(slog.DiscardHandler)
	db := &database{log: quiet, pause: 1 << 62, away: true, since: time.Now()}
	h := &Handler{log: quiet, documents: map[string]*document{}}
	bodies := map[string][]byte{}
	for _, path := range []string{incus.IndexPath, incus.ImagesPath} {
		body := []byte(`{"format":"` + path + `","products":"` + strings.Repeat("debian ", 200) + `"}`)
		c, err := newContent("0123456789abcdef", time.Unix(1700000000, 0), body)
		if err != nil {
			f.Fatal(err)
		}
		d := &document{db: db, path: path}
		d.known.Store(c)
		h.documents[path], bodies[path] = d, body
	}
	for _, seed := range []struct{ method, target, encoding, ranges, etag string }{
		{"GET", "/streams/v1/images.json", "", "", ""},
		{"GET", "/streams/v1/index.json", "gzip;q=0.5, *", "", ""},
		{"HEAD", "/streams/v1/images.json", "gzip", "bytes=0-4", `"0123456789abcdef"`},
		{"GET", "/streams/v1/images.json", "", "bytes=0-0,2-2,-1", ""},
		{"GET", "/streams/v1/images.json", "gzip", "bytes=99999-", `W/"x"`},
		{"GET", "/streams/v1/images.json", "", "bytes=" + strings.Repeat("0-,", 500) + "0-", ""},
		{"GET", "/streams/v1/%2e%2e/%2e%2e/etc/passwd", "gzip;q=nan", "lines=1-2", "*"},
		{"GET", "/streams/v1/images.json%00", "gzip;q=0", "bytes=-0", ""},
		{"DELETE", "/streams/v1/index.json", "", "", ""},
	} {
		f.Add(seed.method, seed.target, seed.encoding, seed.ranges, seed.etag)
	}
	f.Fuzz(func(t *testing.T, method, target, encoding, ranges, etag string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			t.Skip()
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Method, r.URL = method, u
		for name, value := range map[string]string{"Accept-Encoding": encoding, "Range": ranges, "If-None-Match": etag, "If-Range": etag} {
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		whole, there := bodies[strings.TrimPrefix(u.Path, "/")]
		status, got := w.Code, w.Body.Bytes()
		if len(got) > 20*cmp.Or(len(whole), 100) {
			t.Errorf("%d bytes for a document of %d", len(got), len(whole))
		}
		switch {
		case !there && status != http.StatusNotFound, there && (method == "GET" || method == "HEAD") == (status == http.StatusMethodNotAllowed):
			t.Fatalf("%s %q: %d", method, target, status)
		case status >= 400:
			var p problem.Details
			if w.Header().Get("Content-Type") != problem.ContentType || w.Header().Get("Content-Encoding") != "" {
				t.Fatalf("%d as %v", status, w.Header())
			}
			if status >= 500 || method != "HEAD" && (json.Unmarshal(got, &p) != nil || p.Status != status) {
				t.Fatalf("%d: %s", status, got)
			}
			return
		case status != http.StatusOK && status != http.StatusPartialContent && status != http.StatusNotModified:
			t.Fatalf("status %d", status)
		case method == "HEAD" || status == http.StatusNotModified:
			if len(got) > 0 {
				t.Fatalf("%d to %s with %d bytes", status, method, len(got))
			}
			return
		}
		// The bytes that the client gets are those that stand in what it was said to get.
		zipped := w.Header().Get("Content-Encoding") == "gzip"
		if zipped && !strings.Contains(strings.ToLower(encoding), "gzip") {
			t.Fatal("packed for a client that didn't ask for it")
		}
		from := whole
		if zipped {
			from = h.documents[strings.TrimPrefix(u.Path, "/")].known.Load().zipped
		}
		if status == http.StatusOK {
			if zipped {
				z, err := gzip.NewReader(bytes.NewReader(got))
				if err != nil {
					t.Fatal(err)
				}
				if got, err = io.ReadAll(z); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(got, whole) {
				t.Fatalf("another document: %q", got)
			}
			return
		}
		kind, params, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
		if err != nil || kind != "multipart/byteranges" {
			if !bytes.Contains(from, got) {
				t.Fatalf("a part that is in no document: %q", got)
			}
			return
		}
		parts := multipart.NewReader(bytes.NewReader(got), params["boundary"])
		for {
			part, err := parts.NextPart()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if data, err := io.ReadAll(part); err != nil || !bytes.Contains(from, data) {
				t.Fatalf("a part that is in no document: %q, %v", data, err)
			}
		}
	})
}
