package streams_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/handlers/streams"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	projection "github.com/imgsrv/imgsrv/projections/streams"
	"github.com/imgsrv/imgsrv/store/postgres"
)

const (
	indexURL  = "/streams/v1/index.json"
	imagesURL = "/streams/v1/images.json"
)

// site is the handler over a database of its own.
type site struct {
	http.Handler
	pool *pgxpool.Pool
	log  *lines
}

// lines keeps what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}

func newSite(t *testing.T) site {
	t.Helper()
	return newSiteWith(t, time.Nanosecond)
}

func newSiteWith(t *testing.T, pause time.Duration) site {
	t.Helper()
	pool, err := postgres.Open(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := migrations.Apply(t.Context(), pool, projection.Name, migrations.Streams()); err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	return site{streams.New(streams.Config{Pool: pool, Log: slog.New(slog.NewTextHandler(log, nil)), RetryPause: pause}), pool, log}
}

var published = time.Date(2026, 11, 24, 12, 0, 0, 123456000, time.UTC)

// put stores a document as the projector does, and returns its strong entity tag.
func (s site) put(t *testing.T, path, body string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(body))
	etag := hex.EncodeToString(sum[:])
	_, err := s.pool.Exec(t.Context(), `
INSERT INTO streams.documents (path, body, etag, sequence, updated_at) VALUES ($1, $2, $3, 1, $4)
ON CONFLICT (path) DO UPDATE SET body = excluded.body, etag = excluded.etag`, strings.TrimPrefix(path, "/"), []byte(body), etag, published)
	if err != nil {
		t.Fatal(err)
	}
	return `"` + etag + `"`
}

func (s site) do(method, url string, headers ...string) *http.Response {
	r := httptest.NewRequest(method, url, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r *http.Response) string {
	t.Helper()
	all, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(all)
}

func TestDocumentsAreServedWithTheirValidators(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	text := `{"products":"` + strings.Repeat("bookworm ", 200) + `"}`
	etag := s.put(t, imagesURL, text)
	zipped := strings.TrimSuffix(etag, `"`) + `-gzip"`

	tests := []struct {
		name           string
		method         string
		headers        []string
		status         int
		etag, encoding string
		body           string
	}{
		{"GET", "GET", nil, 200, etag, "", text},
		{"HEAD has no body", "HEAD", nil, 200, etag, "", ""},
		{"the tag it has", "GET", []string{"If-None-Match", etag}, 304, etag, "", ""},
		{"one of the tags it has", "GET", []string{"If-None-Match", `"x", W/` + etag}, 304, etag, "", ""},
		{"another tag", "GET", []string{"If-None-Match", `"x"`}, 200, etag, "", text},
		{"not modified since", "GET", []string{"If-Modified-Since", "Tue, 24 Nov 2026 12:00:00 GMT"}, 304, etag, "", ""},
		{"modified since", "GET", []string{"If-Modified-Since", "Tue, 24 Nov 2026 11:59:59 GMT"}, 200, etag, "", text},
		{"gzip", "GET", []string{"Accept-Encoding", "br, GZIP;q=0.5"}, 200, zipped, "gzip", text},
		{"gzip, HEAD", "HEAD", []string{"Accept-Encoding", "gzip"}, 200, zipped, "gzip", ""},
		{"gzip, the tag it has", "GET", []string{"Accept-Encoding", "gzip", "If-None-Match", zipped}, 304, zipped, "", ""},
		{"no gzip", "GET", []string{"Accept-Encoding", "gzip;q=0, deflate"}, 200, etag, "", text},
		{"anything but named gzip", "GET", []string{"Accept-Encoding", "*"}, 200, etag, "", text},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := s.do(test.method, imagesURL, test.headers...)
			got := body(t, r)
			if r.Header.Get("Content-Encoding") == "gzip" && got != "" {
				if length := r.Header.Get("Content-Length"); length == "" || len(got) >= len(text) {
					t.Errorf("%d bytes of %d, Content-Length %q", len(got), len(text), length)
				}
				z, err := gzip.NewReader(strings.NewReader(got))
				if err != nil {
					t.Fatal(err)
				}
				all, err := io.ReadAll(z)
				if err != nil {
					t.Fatal(err)
				}
				got = string(all)
			}
			if r.StatusCode != test.status || got != test.body {
				t.Errorf("%d with %q, want %d with %q", r.StatusCode, got, test.status, test.body)
			}
			want := http.Header{"Etag": {test.etag}, "Cache-Control": {"no-cache"}, "Vary": {"Accept-Encoding"},
				"Last-Modified": {"Tue, 24 Nov 2026 12:00:00 GMT"}}
			if test.encoding != "" {
				want.Set("Content-Encoding", test.encoding)
			}
			if test.status == 200 {
				want.Set("Content-Type", "application/json")
			} else {
				want.Del("Last-Modified") // a 304 with a tag needs none
			}
			r.Header.Del("Content-Length")
			r.Header.Del("Accept-Ranges")
			if diff := cmp.Diff(want, r.Header); diff != "" {
				t.Errorf("headers (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOtherPathsAndMethodsAreProblems(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, test := range []struct {
		method, url string
		status      int
	}{
		{"GET", "/streams/v1/", 404}, {"GET", "/streams/v1/index.json/", 404}, {"GET", "/streams/v1/index.sjson", 404},
		{"POST", indexURL, 405}, {"DELETE", imagesURL, 405},
	} {
		r := s.do(test.method, test.url)
		if r.StatusCode != test.status || r.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %d %s, want a problem with %d", test.method, test.url, r.StatusCode, r.Header.Get("Content-Type"), test.status)
		}
		if allow := r.Header.Get("Allow"); (test.status == 405) != (allow == "GET, HEAD") {
			t.Errorf("%s %s: Allow is %q", test.method, test.url, allow)
		}
	}
}

func TestBeforeTheFirstPublicationTheRemoteIsEmpty(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	want, err := projection.Documents(nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for url, document := range map[string][]byte{indexURL: want.Index, imagesURL: want.Images} {
		r := s.do("GET", url)
		if diff := cmp.Diff(string(document), body(t, r)); diff != "" || r.StatusCode != 200 {
			t.Errorf("%s: %d, differs from what the projection makes of nothing:\n%s", url, r.StatusCode, diff)
		}
		if modified := r.Header.Get("Last-Modified"); modified != "" {
			t.Errorf("%s was last modified %s, without ever being", url, modified)
		}
	}
}

func TestNewDocumentIsSeenByTheNextRequest(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	old := s.do("GET", indexURL).Header.Get("ETag")
	for _, text := range []string{"one", "two", "one"} {
		etag := s.put(t, indexURL, text)
		r := s.do("GET", indexURL, "If-None-Match", old)
		if got := body(t, r); got != text || r.Header.Get("ETag") != etag {
			t.Errorf("served %q as %s, want %q as %s", got, r.Header.Get("ETag"), text, etag)
		}
		old = etag
	}
}

func TestUnchangedDocumentIsNotReadAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.put(t, imagesURL, "known")
	if got := body(t, s.do("GET", imagesURL)); got != "known" {
		t.Fatalf("served %q", got)
	}
	// Bytes under the same tag can't differ; if they did, only who reads them again would see it.
	if _, err := s.pool.Exec(t.Context(), `UPDATE streams.documents SET body = 'read again'`); err != nil {
		t.Fatal(err)
	}
	if got := body(t, s.do("GET", imagesURL)); got != "known" {
		t.Errorf("served %q", got)
	}
}

// block ends the connections to the site's database and allows no new ones, until the returned function is called.
func block(t *testing.T, s site) (unblock func()) {
	t.Helper()
	other, err := pgx.Connect(context.Background(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := other.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	name := s.pool.Config().ConnConfig.Database
	quoted := pgx.Identifier{name}.Sanitize()
	execute := func(statement string, args ...any) {
		t.Helper()
		if _, err := other.Exec(t.Context(), statement, args...); err != nil {
			t.Fatal(err)
		}
	}
	execute(`ALTER DATABASE ` + quoted + ` WITH ALLOW_CONNECTIONS false`)
	execute(`SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1`, name)
	return func() { t.Helper(); execute(`ALTER DATABASE ` + quoted + ` WITH ALLOW_CONNECTIONS true`) }
}

func TestKnownDocumentsAreServedWhilePostgresIsAway(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.put(t, imagesURL, "known")
	first := s.do("GET", imagesURL)
	unblock := block(t, s)
	for range 5 {
		r := s.do("GET", imagesURL)
		if got := body(t, r); got != "known" || r.Header.Get("ETag") != first.Header.Get("ETag") {
			t.Fatalf("%d with %q, want the known document", r.StatusCode, got)
		}
	}
	if n := s.log.count("level=WARN"); n != 1 {
		t.Errorf("its absence was logged %d times, want once:\n%s", n, s.log.text.String())
	}
	// This one has never been read.
	if r := s.do("GET", indexURL); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
		t.Errorf("unknown document: %d, Retry-After %q, want 503 and when to try again", r.StatusCode, r.Header.Get("Retry-After"))
	}
	unblock()
	s.put(t, imagesURL, "new")
	if got := body(t, s.do("GET", imagesURL)); got != "new" {
		t.Errorf("served %q after PostgreSQL came back", got)
	}
	if n := s.log.count("level=INFO"); n != 1 {
		t.Errorf("its return was logged %d times, want once", n)
	}
}

func TestPostgresIsLeftAloneForAPauseAfterItFailed(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, time.Hour)
	s.put(t, imagesURL, "known")
	s.do("GET", imagesURL)
	unblock := block(t, s)
	s.do("GET", imagesURL) // fails to ask
	unblock()
	s.put(t, imagesURL, "new")
	if got := body(t, s.do("GET", imagesURL)); got != "known" {
		t.Errorf("PostgreSQL was asked within the pause: served %q", got)
	}
}

func TestRequestThatItsClientEndedIsNoFailureOfPostgres(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest("GET", indexURL, nil).WithContext(ctx))
	if n := s.log.count("PostgreSQL doesn't"); n != 0 || w.Code == 200 {
		t.Errorf("status %d, logged:\n%s", w.Code, s.log.text.String())
	}
}

func TestConcurrentReadersSeeWholeDocuments(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	texts := map[string]bool{}
	for i := range 20 {
		texts[strings.Repeat(string(rune('a'+i)), 5000)] = true
	}
	s.put(t, imagesURL, strings.Repeat("a", 5000))
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				r := s.do("GET", imagesURL)
				all, err := io.ReadAll(r.Body)
				sum := sha256.Sum256(all)
				if err != nil || !texts[string(all)] || r.Header.Get("ETag") != `"`+hex.EncodeToString(sum[:])+`"` {
					t.Errorf("%d: %.20q… as %s, %v", r.StatusCode, all, r.Header.Get("ETag"), err)
					return
				}
			}
		})
	}
	for text := range texts {
		s.put(t, imagesURL, text)
		if got := s.do("GET", imagesURL); !bytes.Equal([]byte(body(t, got)), []byte(text)) {
			t.Error("a reader that came after the change got the older document")
		}
	}
	close(done)
	readers.Wait()
}
