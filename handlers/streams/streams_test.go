package streams_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/klauspost/compress/zstd"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/streams"
	"github.com/imgsrv/imgsrv/internal/incus"
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
	last *events.Sequence // of the facts in the tables
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
	if _, err := pool.Exec(t.Context(), `INSERT INTO streams.position (sequence, stream, updated_at) VALUES (0, 's', now())`); err != nil {
		t.Fatal(err)
	}
	log := &lines{}
	return site{streams.New(streams.Config{Pool: pool, Log: slog.New(slog.NewTextHandler(log, nil)), RetryPause: pause}), pool, log, new(events.Sequence)}
}

var published = time.Date(2026, 11, 24, 12, 0, 0, 123456000, time.UTC)

// project applies facts as the projection's runner does.
func (s site) project(t *testing.T, facts ...events.Fact) {
	t.Helper()
	var batch []events.Event
	for _, fact := range facts {
		*s.last++
		batch = append(batch, events.Event{Meta: events.Meta{Time: published}, Sequence: *s.last, Fact: fact})
	}
	err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL search_path = streams`); err != nil {
			return err
		}
		if _, err := tx.Exec(t.Context(), `UPDATE position SET sequence = $1`, int64(*s.last)); err != nil {
			return err
		}
		return projection.New().Apply(t.Context(), tx, batch)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// publish makes versions of a public image, each with a virtual machine of other bytes.
func (s site) publish(t *testing.T, image string, versions ...string) {
	t.Helper()
	var facts []events.Fact
	r := &remote{site: s, files: map[string][]byte{}}
	for _, version := range versions {
		facts = append(facts, r.publication(t, image, version, map[events.Variant]string{{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"}: image + version}))
	}
	s.project(t, facts...)
}

// want are the documents as the projection makes them of all that is in the tables.
func (s site) want(t *testing.T) map[string]string {
	t.Helper()
	tables, err := projection.ReadTables(t.Context(), s.pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := projection.NewView(func(string) bool { return false }).Show(tables, nil)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{indexURL: string(shown.Index.Bytes()), imagesURL: string(shown.Images.Bytes())}
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
	s.publish(t, "deb", "1", "2", "3")
	text := s.want(t)[imagesURL]
	etag := s.do("GET", imagesURL).Header.Get("ETag")
	if len(etag) != 66 {
		t.Fatalf("entity tag %s", etag)
	}
	of := func(coding string) string { return strings.TrimSuffix(etag, `"`) + "-" + coding + `"` }

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
		{"gzip", "GET", []string{"Accept-Encoding", "br, GZIP;q=0.5"}, 200, of("gzip"), "gzip", text},
		{"gzip, HEAD", "HEAD", []string{"Accept-Encoding", "gzip"}, 200, of("gzip"), "gzip", ""},
		{"gzip, the tag it has", "GET", []string{"Accept-Encoding", "gzip", "If-None-Match", of("gzip")}, 304, of("gzip"), "", ""},
		{"zstd", "GET", []string{"Accept-Encoding", "zstd"}, 200, of("zstd"), "zstd", text},
		{"zstd, the tag it has", "GET", []string{"Accept-Encoding", "zstd", "If-None-Match", of("zstd")}, 304, of("zstd"), "", ""},
		{"zstd, the tag of another form", "GET", []string{"Accept-Encoding", "zstd", "If-None-Match", of("gzip")}, 200, of("zstd"), "zstd", text},
		{"as browsers ask", "GET", []string{"Accept-Encoding", "gzip, deflate, br, zstd"}, 200, of("zstd"), "zstd", text},
		{"gzip rather than zstd", "GET", []string{"Accept-Encoding", "zstd;q=0.5, gzip"}, 200, of("gzip"), "gzip", text},
		{"rather nothing", "GET", []string{"Accept-Encoding", "zstd;q=0.5, gzip;q=0.4, identity"}, 200, etag, "", text},
		{"no gzip", "GET", []string{"Accept-Encoding", "gzip;q=0, deflate"}, 200, etag, "", text},
		{"a weight that isn't one", "GET", []string{"Accept-Encoding", "gzip;q=nan, zstd;q=7"}, 200, etag, "", text},
		{"anything but named gzip", "GET", []string{"Accept-Encoding", "*"}, 200, etag, "", text},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := s.do(test.method, imagesURL, test.headers...)
			got := body(t, r)
			if coding := r.Header.Get("Content-Encoding"); coding != "" && got != "" {
				if length := r.Header.Get("Content-Length"); length != strconv.Itoa(len(got)) || len(got) >= len(text) {
					t.Errorf("%d bytes of %d, Content-Length %q", len(got), len(text), length)
				}
				got = unpack(t, coding, got)
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

// unpack is what stands in a body, by the decoders of the standard library and of zstd.
func unpack(t *testing.T, coding, packed string) string {
	t.Helper()
	var plain io.Reader
	switch coding {
	case "gzip":
		z, err := gzip.NewReader(strings.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false) // as some clients read
		plain = z
	case "zstd":
		z, err := zstd.NewReader(strings.NewReader(packed))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		plain = z
	default:
		t.Fatalf("coding %q", coding)
	}
	all, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	return string(all)
}

func TestOtherPathsAndMethodsAreProblems(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, test := range []struct {
		method, url string
		status      int
	}{
		{"GET", "/streams/v1/", 404}, {"GET", "/streams/v1/index.json/", 404}, {"GET", "/streams/v1/index.sjson", 404},
		{"GET", "/streams/v1/images/absent.json", 404}, {"GET", "/streams/v1/images/.json", 404}, {"GET", "/streams/v1/images/", 404},
		{"GET", "/streams/v1/images/a/b.json", 404}, {"PUT", "/streams/v1/images/a.json", 405},
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
	want, err := projection.NewView(func(string) bool { return false }).Show(projection.NewTables(nil, nil, nil), nil)
	if err != nil {
		t.Fatal(err)
	}
	for url, document := range map[string][]byte{indexURL: want.Index.Bytes(), imagesURL: want.Images.Bytes()} {
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
	for _, version := range []string{"1", "2", "3"} {
		s.publish(t, "deb", version)
		for url, want := range s.want(t) {
			r := s.do("GET", url, "If-None-Match", old)
			if got := body(t, r); got != want || !strings.Contains(got, "deb:"+version+":") || r.Header.Get("ETag") == old {
				t.Errorf("served %q as %s, want %q", got, r.Header.Get("ETag"), want)
			}
		}
		old = s.do("GET", indexURL).Header.Get("ETag")
	}
}

func TestUnchangedDocumentsAreNotReadAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish(t, "deb", "1")
	known := body(t, s.do("GET", imagesURL))
	// What changes without a word about it is seen by who reads all again.
	if _, err := s.pool.Exec(t.Context(), `UPDATE streams.versions SET withdrawn = true`); err != nil {
		t.Fatal(err)
	}
	if got := body(t, s.do("GET", imagesURL)); got != known {
		t.Errorf("served %q", got)
	}
	// After a change only what has changed is read.
	s.publish(t, "deb", "2")
	if got := body(t, s.do("GET", imagesURL)); !strings.Contains(got, "deb:1:") || !strings.Contains(got, "deb:2:") {
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
	s.publish(t, "deb", "1")
	first := s.do("GET", imagesURL)
	known := body(t, first)
	unblock := block(t, s)
	for range 5 {
		r := s.do("GET", imagesURL)
		if got := body(t, r); got != known || r.Header.Get("ETag") != first.Header.Get("ETag") {
			t.Fatalf("%d with %q, want the known document", r.StatusCode, got)
		}
	}
	if n := s.log.count("level=WARN"); n != 1 {
		t.Errorf("its absence was logged %d times, want once:\n%s", n, s.log.text.String())
	}
	// What was never asked for, made of what is known.
	for _, url := range []string{indexURL, "/streams/v1/images/deb.json"} {
		if r := s.do("GET", url); r.StatusCode != 200 || !strings.Contains(body(t, r), "deb:1:") {
			t.Errorf("%s: %d", url, r.StatusCode)
		}
	}
	// A node that has never read the tables.
	fresh := site{Handler: streams.New(streams.Config{Pool: s.pool, Log: slog.New(slog.DiscardHandler), RetryPause: time.Nanosecond})}
	for _, url := range []string{indexURL, "/streams/v1/images/deb.json"} {
		if r := fresh.do("GET", url); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" {
			t.Errorf("%s, unknown: %d, Retry-After %q, want 503 and when to try again", url, r.StatusCode, r.Header.Get("Retry-After"))
		}
	}
	unblock()
	s.publish(t, "deb", "2")
	if got := body(t, s.do("GET", imagesURL)); !strings.Contains(got, "deb:2:") {
		t.Errorf("served %q after PostgreSQL came back", got)
	}
	if n := s.log.count("level=INFO"); n != 1 {
		t.Errorf("its return was logged %d times, want once", n)
	}
}

func TestPostgresIsLeftAloneForAPauseAfterItFailed(t *testing.T) {
	t.Parallel()
	s := newSiteWith(t, time.Hour)
	s.publish(t, "deb", "1")
	known := body(t, s.do("GET", imagesURL))
	unblock := block(t, s)
	s.do("GET", imagesURL) // fails to ask
	unblock()
	s.publish(t, "deb", "2")
	if got := body(t, s.do("GET", imagesURL)); got != known {
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

// Readers at the time of publications get whole documents, never an older one than they had, and one entity tag for the same bytes.
func TestConcurrentReadersSeeWholeDocuments(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.publish(t, "deb", "0")
	done := make(chan struct{})
	var readers sync.WaitGroup
	var mu sync.Mutex
	tags := map[string]string{}
	for i := range 4 {
		readers.Go(func() {
			coding, seen := []string{"gzip", "zstd"}[i%2], 0
			for {
				select {
				case <-done:
					return
				default:
				}
				r := s.do("GET", imagesURL, "Accept-Encoding", coding)
				text := unpack(t, coding, body(t, r))
				var document incus.Products
				if err := json.Unmarshal([]byte(text), &document); err != nil || len(document.Products) < seen {
					t.Errorf("%d products after %d, %v", len(document.Products), seen, err)
					return
				}
				seen = len(document.Products)
				tag, _, _ := strings.Cut(r.Header.Get("ETag"), "-")
				mu.Lock()
				if before, known := tags[tag]; known && before != text {
					t.Errorf("one tag for two documents: %s", tag)
				}
				tags[tag] = text
				mu.Unlock()
			}
		})
	}
	for i := 1; i <= 20; i++ {
		s.publish(t, "deb", fmt.Sprint(i))
		if got := body(t, s.do("GET", imagesURL)); !strings.Contains(got, fmt.Sprintf("deb:%d:", i)) {
			t.Error("a reader that came after the change got the older document")
		}
	}
	close(done)
	readers.Wait()
	if len(tags) < 2 {
		t.Errorf("readers saw %d documents", len(tags))
	}
}
