package streams

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"fmt"
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

	"github.com/klauspost/compress/zstd"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/pieces"
	projection "github.com/imgsrv/imgsrv/projections/streams"
)

// FuzzServe asks for documents as they were when PostgreSQL went away. Whatever is asked, the answer is one of the documents,
// a part of it, or a problem; and it costs no more than a small multiple of the document.
func FuzzServe(f *testing.F) {
	quiet := slog.New(slog.DiscardHandler)
	db := &database{log: quiet, pause: 1 << 62, away: true, since: time.Now()}
	h := &Handler{log: quiet, source: newSource(db, nil), private: newPrivate(db), coder: pieces.NewCoder()}
	known, bodies := manyProducts(f)
	h.source.known.Store(known)
	for _, seed := range []struct{ method, target, encoding, ranges, etag string }{
		{"GET", "/streams/v1/images.json", "", "", ""},
		{"GET", "/streams/v1/index.json", "gzip;q=0.5, *", "", ""},
		{"HEAD", "/streams/v1/images.json", "gzip", "bytes=0-4", `"0123456789abcdef"`},
		{"GET", "/streams/v1/images.json", "zstd, gzip;q=0.9", "bytes=100-90000", ""},
		{"GET", "/streams/v1/images.json", "", "bytes=0-0,2-2,-1", ""},
		{"GET", "/streams/v1/images.json", "gzip", "bytes=99999-", `W/"x"`},
		{"GET", "/streams/v1/images.json", "", "bytes=" + strings.Repeat("0-,", 500) + "0-", ""},
		{"GET", "/streams/v1/%2e%2e/%2e%2e/etc/passwd", "gzip;q=nan", "lines=1-2", "*"},
		{"GET", "/streams/v1/images.json%00", "gzip;q=0", "bytes=-0", ""},
		{"DELETE", "/streams/v1/index.json", "", "", ""},
		{"GET", "/streams/v1/images/deb.json", "zstd", "bytes=5-60", ""},
	} {
		f.Add(seed.method, seed.target, seed.encoding, seed.ranges, seed.etag)
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		f.Fatal(err)
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
		coding := w.Header().Get("Content-Encoding")
		if !strings.Contains(strings.ToLower(encoding), coding) {
			t.Fatal("packed for a client that didn't ask for it")
		}
		from := whole
		if coding != "" {
			packed, err := h.coder.Compress(known.documents[strings.TrimPrefix(u.Path, "/")].body, map[string]pieces.Coding{"gzip": pieces.Gzip, "zstd": pieces.Zstd}[coding])
			if err != nil {
				t.Fatal(err)
			}
			if from, err = io.ReadAll(packed.Reader()); err != nil {
				t.Fatal(err)
			}
		}
		if status == http.StatusOK {
			switch coding {
			case "gzip":
				z, err := gzip.NewReader(bytes.NewReader(got))
				if err != nil {
					t.Fatal(err)
				}
				if got, err = io.ReadAll(z); err != nil {
					t.Fatal(err)
				}
			case "zstd":
				if got, err = decoder.DecodeAll(got, nil); err != nil {
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

// manyProducts is a state with documents of some pieces.
func manyProducts(f *testing.F) (*state, map[string][]byte) {
	var products []projection.Product
	for i := range 200 {
		digest := fmt.Sprintf("%064x", i)
		products = append(products, projection.Product{Image: "deb", Version: fmt.Sprint(i), Fingerprint: digest,
			Variant:  events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"},
			Metadata: projection.File{Format: "incus.tar.xz", SHA256: digest, SizeBytes: 7}, Root: projection.File{Format: "disk.qcow2", SHA256: digest, SizeBytes: 8},
			KeyedAt: time.Unix(1700000000+int64(i), 0), Published: projection.Change{Sequence: events.Sequence(i + 1), At: time.Unix(1700000000, 0)}})
	}
	tables := projection.NewTables(products, nil, []projection.Image{{Name: "deb", Visibility: events.Public}})
	shown, err := projection.NewView(func(string) bool { return false }).Show(tables, nil)
	if err != nil {
		f.Fatal(err)
	}
	known := &state{tables: tables, shown: shown, documents: documentsOf(shown, time.Unix(1700000000, 0))}
	page, _, err := tables.Line("deb").Page("", defaultPage)
	if err != nil {
		f.Fatal(err)
	}
	bodies := map[string][]byte{incus.IndexPath: shown.Index.Bytes(), incus.ImagesPath: shown.Images.Bytes(), incus.ImagePath("deb"): page.Body}
	known.documents[incus.ImagePath("deb")] = newContent(time.Time{}, pieces.Body{pieces.New(page.Body)}) // as it is packed
	return known, bodies
}
