package api_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/handlers/streams"
	"github.com/imgsrv/imgsrv/handlers/tus"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/tusname"
	"github.com/imgsrv/imgsrv/projections"
	catalogprojection "github.com/imgsrv/imgsrv/projections/catalog"
	jobsprojection "github.com/imgsrv/imgsrv/projections/jobs"
	streamsprojection "github.com/imgsrv/imgsrv/projections/streams"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// door is all of HTTP over a real log and store, without PostgreSQL, which nothing that writes needs.
type door struct {
	http.Handler
	log    *jetstream.Log
	blobs  *blob.Store
	secret string // what stands in a file beside the storage
	around string // folder of the storage and of that file
}

func newDoor(t testing.TB) *door {
	t.Helper()
	d := &door{log: natstest.Log(t), around: t.TempDir(), secret: "a secret beside the storage"}
	if err := os.WriteFile(filepath.Join(d.around, "secret"), []byte(d.secret), 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.blobs, err = blob.Open(filepath.Join(d.around, "storage")); err != nil {
		t.Fatal(err)
	}
	away, err := pgxpool.New(context.Background(), "host="+filepath.Join(d.around, "nowhere")+" user=nobody dbname=none") // a socket that isn't there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(away.Close)
	quiet := slog.New(slog.DiscardHandler)
	directory := access.NewDirectory(access.DirectoryConfig{Log: d.log, Logger: quiet})
	directory.AddBuiltIn(adminToken)
	following, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = directory.Run(following) })
	t.Cleanup(func() { stop(); done.Wait() })
	guard := directory.Guard(nil)
	var runners []*projections.Runner
	for _, p := range []projections.Projector{catalogprojection.New(), jobsprojection.New(), streamsprojection.New()} {
		r, err := projections.NewRunner(away, d.log, p, projections.Config{Log: quiet, Meter: noop.Meter{}})
		if err != nil {
			t.Fatal(err)
		}
		runners = append(runners, r)
	}
	uploads, err := tus.New(tus.Config{Log: d.log, Store: d.blobs, Guard: guard, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	router, err := api.New(api.Config{Log: quiet, Meter: noop.Meter{}, Guard: guard, Events: d.log, Catalog: catalog.New(away, nil), Blobs: d.blobs,
		Offsets: uploads, CatalogProjection: runners[0], JobsProjection: runners[1], StreamsProjection: runners[2], PingPostgres: away.Ping,
		MinSequenceWait: time.Millisecond, VisibleWait: time.Millisecond, EventHeartbeat: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	router.Mount(tusname.BasePath, uploads)
	router.Mount("/streams/v1/", streams.New(streams.Config{Pool: away, Log: quiet}))
	d.Handler = router
	return d
}

// hangUp is a client that goes away once an answer that has no end begins.
type hangUp struct {
	*httptest.ResponseRecorder
	gone context.CancelFunc
}

func (h hangUp) WriteHeader(status int) {
	h.ResponseRecorder.WriteHeader(status)
	if h.Header().Get("Content-Type") == "text/event-stream" {
		h.gone()
	}
}

// knock makes a request and checks what holds for each answer: it is never the server's fault, an error is a problem document,
// no header has a second line, and no byte from beside the storage is in it. A request that no HTTP server would pass on skips.
func (d *door) knock(t *testing.T, method, target, headers string, body []byte) *httptest.ResponseRecorder {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Skip()
	}
	r, err := http.NewRequestWithContext(ctx, method, "/", bytes.NewReader(body))
	if err != nil {
		t.Skip()
	}
	read, err := textproto.NewReader(bufio.NewReader(strings.NewReader(headers + "\r\n\r\n"))).ReadMIMEHeader()
	if err != nil {
		t.Skip()
	}
	for _, values := range read {
		for _, v := range values {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				t.Skip()
			}
		}
	}
	r.URL, r.RequestURI, r.Header, r.Host = u, target, http.Header(read), "images.example.org"
	w := httptest.NewRecorder()
	d.ServeHTTP(hangUp{w, cancel}, r)

	status := w.Code
	if status >= 500 && status != http.StatusServiceUnavailable && status != http.StatusInsufficientStorage {
		t.Fatalf("%s %q: %d: %s", method, target, status, w.Body)
	}
	for name, values := range w.Header() {
		for _, v := range values {
			if strings.ContainsAny(name+v, "\r\n\x00") {
				t.Fatalf("%s %q: header %q: %q", method, target, name, v)
			}
		}
	}
	if status >= 400 && u.Path != "/readyz" { // its 503 is the document that says what is away
		var p problem.Details
		if got := w.Header().Get("Content-Type"); got != problem.ContentType {
			t.Fatalf("%s %q: %d as %q: %s", method, target, status, got, w.Body)
		}
		if method != http.MethodHead && (json.Unmarshal(w.Body.Bytes(), &p) != nil || p.Status != status || p.Code == "" || p.Title == "") {
			t.Fatalf("%s %q: %d: %s", method, target, status, w.Body)
		}
	}
	if strings.Contains(w.Body.String(), d.secret) {
		t.Fatalf("%s %q tells what stands beside the storage", method, target)
	}
	return w
}

// untouched checks that nothing was made beside the storage.
func (d *door) untouched(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir(d.around)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "secret" && e.Name() != "storage" {
			t.Errorf("%s was made beside the storage", e.Name())
		}
	}
}

const asAdmin = "Authorization: Bearer " + adminToken

// FuzzRequest sends any request to any path. What leads into the storage or out of it is in the seeds.
func FuzzRequest(f *testing.F) {
	d := newDoor(f)
	for _, target := range []string{
		"/api/images", "/api/images?limit=0&after=%00", "/api/images/debian", "/api/images//versions/1", "/api/images/%2e%2e/versions/%2e%2e%2f1",
		"/api/images/debian/versions/1/variants/amd64.virtual-machine.default/formats/..%2f..%2fsecret", "/api/images/a%0d%0ab/history",
		"/api/images?at=2026-01-01T00:00:00Z", "/api/images/debian/versions?at=yesterday",
		"/cas/sha256/../../secret", "/cas/sha256/%2e%2e/%2e%2e%2fsecret", "/cas/sha256/..%5c..%5csecret/x", "/cas/sha256/00/00%00",
		"/streams/v1/../../secret", "/streams/v1/images.json", "/api/uploads/%252e%252e", "/api/uploads/tus/..%2f..%2fsecret.0", "/api/uploads/tus/a.0",
		"/api/jobs?after=!!&state=x", "/api/jobs/%00", "/api/events?after=0&type=imgsrv.*&image=%2a", "/api/events/0", "/api/events/18446744073709551616",
		"/api/events/export", "/openapi.yaml", "/healthz", "/readyz", "*", "http://other/api/images",
	} {
		f.Add(http.MethodGet, target, "", []byte(nil))
		f.Add(http.MethodGet, target, asAdmin, []byte(nil))
	}
	f.Add(http.MethodGet, "/api/events", "Last-Event-ID: -1\r\nImgsrv-Min-Sequence: 99999999999999999999", []byte(nil))
	f.Add(http.MethodGet, "/api/images", "Imgsrv-Min-Sequence: 1", []byte(nil))
	f.Add(http.MethodGet, "/api/images", "Authorization: Basic Og==", []byte(nil))
	f.Add("PROPFIND", "/api/images/x", asAdmin, []byte("<x/>"))
	f.Add(http.MethodPost, "/api/uploads/tus/", asAdmin+"\r\nTus-Resumable: 1.0.0\r\nUpload-Length: -1\r\nUpload-Metadata: session Li4v", []byte(nil))
	f.Add(http.MethodPost, "/api/uploads/tus/", asAdmin+"\r\nUpload-Draft-Interop-Version: 6\r\nUpload-Complete: ?1\r\nContent-Length: 1", []byte("x"))
	f.Add(http.MethodPatch, "/api/uploads/tus/..%2f..%2fsecret.0", asAdmin+"\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\nContent-Type: application/offset+octet-stream", []byte("x"))
	f.Fuzz(func(t *testing.T, method, target, headers string, body []byte) {
		if strings.HasPrefix(target, "/api/events/import") && method == http.MethodPost {
			t.Skip() // half an import would close the log to all that follows; FuzzImport is about it
		}
		d.knock(t, method, target, headers, body)
		d.untouched(t)
	})
}

// FuzzWrite posts bodies to every route that takes JSON.
func FuzzWrite(f *testing.F) {
	d := newDoor(f)
	var routes [][2]string
	err := chi.Walk(d.Handler.(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if method != http.MethodGet && method != http.MethodHead && route != "/api/events/import" && !strings.Contains(route, "*") {
			routes = append(routes, [2]string{method, route})
		}
		return nil
	})
	if err != nil || len(routes) == 0 {
		f.Fatalf("routes %v, %v", routes, err)
	}
	fine, err := json.Marshal(session("debian", "1", []byte("x"), "latest"))
	if err != nil {
		f.Fatal(err)
	}
	for i := range routes {
		for _, body := range []string{string(fine), `{"version":"1"}`, `{"reason":"x"}`, `[]`, `{`, "", "null", `{"image":"a","image":"../../b"}`, `{"version":1e999}`,
			`{"size":99999999999999999999}`, strings.Repeat(`[`, 10_050), strings.Repeat(`{"a":`, 10_050), "{\"image\":\"\xff\xfe\"}", `{"image":"\ud800\u0000\r\n"}`} {
			f.Add(uint8(i), "debian", "application/json", "", []byte(body))
		}
	}
	f.Add(uint8(0), "..", "text/html; charset=\"", "key\xff", fine)
	f.Fuzz(func(t *testing.T, which uint8, name, contentType, key string, body []byte) {
		route := routes[int(which)%len(routes)]
		parts := strings.Split(route[1], "/")
		for i, part := range parts {
			if strings.HasPrefix(part, "{") {
				parts[i] = url.PathEscape(name)
			}
		}
		d.knock(t, route[0], strings.Join(parts, "/"), asAdmin+"\r\nContent-Type: "+contentType+"\r\nIdempotency-Key: "+key, body)
		d.untouched(t)
	})
}
