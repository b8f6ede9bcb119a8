package streams_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/streams"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/migrations"
	projection "github.com/imgsrv/imgsrv/projections/streams"
)

// assembled is what the handler logs when it makes documents with private images.
const assembled = "documents made for readers"

// privateSite has the images deb (public), team-a and team-b (private), each with a version 1, and logs all.
type privateSite struct {
	remote
	t *testing.T
}

func newPrivateSite(t *testing.T) *privateSite {
	t.Helper()
	s := &privateSite{remote{site: newSite(t), files: map[string][]byte{}}, t}
	s.Handler = streams.New(streams.Config{Pool: s.pool, Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})), RetryPause: time.Nanosecond})
	s.publish("deb", "1", events.Public)
	s.publish("team-a", "1", events.Private)
	s.publish("team-b", "1", events.Private)
	return s
}

func (s *privateSite) publish(image, version string, visibility events.Visibility) {
	s.t.Helper()
	fact := s.publication(s.t, image, version, map[events.Variant]string{{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"}: image + version})
	fact.Version.Manifest.Visibility = visibility
	s.project(s.t, fact)
}

// reader may read the images of the patterns.
func reader(patterns ...string) access.Principal {
	var grants []events.Grant
	for _, pattern := range patterns {
		grants = append(grants, events.Grant{Role: events.RoleReader, Images: pattern})
	}
	return access.NewPrincipal("reader of "+strings.Join(patterns, " "), grants...)
}

// as asks for a document as a principal.
func (s *privateSite) as(who access.Principal, url string, headers ...string) *http.Response {
	r := httptest.NewRequest("GET", url, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.site.ServeHTTP(w, r.WithContext(access.With(r.Context(), who)))
	return w.Result()
}

// images lists those whose products a principal sees.
func (s *privateSite) images(who access.Principal) []string {
	s.t.Helper()
	listed, err := clientrules.Read([]byte(body(s.t, s.as(who, indexURL))), func(path string) ([]byte, error) {
		r := s.as(who, "/"+path)
		if r.StatusCode != 200 {
			return nil, fmt.Errorf("%s: %d", path, r.StatusCode)
		}
		return []byte(body(s.t, r)), nil
	}, clientrules.Incus)
	if err != nil {
		s.t.Fatalf("%s: %v", who.Name, err)
	}
	names := map[string]bool{}
	for _, image := range listed {
		name, _, _ := strings.Cut(image.Product, ":")
		names[name] = true
	}
	return slices.Sorted(maps.Keys(names))
}

func TestEachPrincipalSeesThePrivateImagesThatItMayRead(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	nobody := access.Principal{}
	for _, test := range []struct {
		who  access.Principal
		want []string
	}{
		{nobody, []string{"deb"}},
		{reader("team-a"), []string{"deb", "team-a"}},
		{reader("team-b*"), []string{"deb", "team-b"}},
		{reader("team-*"), []string{"deb", "team-a", "team-b"}},
		{reader("team-a", "team-b"), []string{"deb", "team-a", "team-b"}},
		{reader("other-*"), []string{"deb"}},
		{access.NewPrincipal("admin", events.Grant{Role: events.RoleAdmin}), []string{"deb", "team-a", "team-b"}},
		{access.NewPrincipal("publisher", events.Grant{Role: events.RolePublisher, Images: "team-b"}), []string{"deb", "team-b"}},
		{access.NewPrincipal("nothing"), []string{"deb"}},
	} {
		if diff := cmp.Diff(test.want, s.images(test.who)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.who.Name, diff)
		}
	}
	public := body(t, s.as(nobody, imagesURL))
	for _, who := range []access.Principal{reader("other-*"), access.NewPrincipal("nothing")} {
		r := s.as(who, imagesURL)
		if got := body(t, r); got != public {
			t.Errorf("%s gets another document than the public", who.Name)
		}
		if got := r.Header.Get("Cache-Control"); got != "private, no-cache" {
			t.Errorf("Cache-Control for %s is %q: tomorrow it may be another document", who.Name, got)
		}
	}
	if strings.Contains(public, "team") {
		t.Error("the public document tells of private images")
	}
	// What is new, is there with the next request; what is made public, for all.
	s.publish("team-c", "1", events.Private)
	s.publish("team-b", "2", events.Private)
	s.project(s.t, events.ImageVisibilityChanged{Image: events.Image{Name: "team-b", Visibility: events.Public}})
	if diff := cmp.Diff([]string{"deb", "team-b", "team-c"}, s.images(reader("team-c"))); diff != "" {
		t.Errorf("after publications (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"deb", "team-b"}, s.images(nobody)); diff != "" {
		t.Errorf("the public, after publications (-want +got):\n%s", diff)
	}
}

func TestPrivateDocumentsHaveValidatorsAndStayOutOfSharedCaches(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	a, b := reader("team-a"), reader("team-b")
	first := s.as(a, imagesURL)
	want := http.Header{"Etag": first.Header["Etag"], "Cache-Control": {"private, no-cache"}, "Vary": {"Accept-Encoding", "Authorization"},
		"Content-Type": {"application/json"}, "Accept-Ranges": {"bytes"}, "Content-Length": first.Header["Content-Length"]}
	if diff := cmp.Diff(want, first.Header); diff != "" || first.StatusCode != 200 {
		t.Errorf("%d, headers (-want +got):\n%s", first.StatusCode, diff)
	}
	etag, text := first.Header.Get("ETag"), body(t, first)
	if r := s.as(a, imagesURL, "If-None-Match", etag); r.StatusCode != 304 || r.Header.Get("ETag") != etag || r.Header.Get("Cache-Control") != "private, no-cache" {
		t.Errorf("the tag it has: %d, %v", r.StatusCode, r.Header)
	}
	if r := s.as(b, imagesURL, "If-None-Match", etag); r.StatusCode != 200 || r.Header.Get("ETag") == etag {
		t.Errorf("another reader's tag: %d, %v", r.StatusCode, r.Header)
	}
	zipped := s.as(a, imagesURL, "Accept-Encoding", "gzip")
	z, err := gzip.NewReader(zipped.Body)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(z); err != nil || string(all) != text || zipped.Header.Get("ETag") == etag {
		t.Errorf("compressed: %d bytes of %d as %s, %v", len(all), len(text), zipped.Header.Get("ETag"), err)
	}
	if r := s.as(access.Principal{}, imagesURL); r.Header.Get("Cache-Control") != "no-cache" || r.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("the public document: %v", r.Header)
	}
}

func TestAThousandHostsCostOneAssembly(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	poll := func() {
		var hosts sync.WaitGroup
		work := make(chan access.Principal)
		for range 20 {
			hosts.Go(func() {
				for who := range work {
					if r := s.as(who, imagesURL); r.StatusCode != 200 {
						t.Errorf("%d", r.StatusCode)
					}
				}
			})
		}
		for i := range 1000 {
			// Tokens of different patterns, and the same images behind them.
			work <- reader("team-a", fmt.Sprintf("host-%d-*", i))
		}
		close(work)
		hosts.Wait()
	}
	poll()
	if n := s.log.count(assembled); n != 1 {
		t.Errorf("%d assemblies", n)
	}
	// Facts that nothing lists move the position.
	if _, err := s.pool.Exec(t.Context(), `UPDATE streams.position SET sequence = sequence + 10, updated_at = now()`); err != nil {
		t.Fatal(err)
	}
	poll()
	if n := s.log.count(assembled); n != 1 {
		t.Errorf("%d assemblies after facts that nothing lists", n)
	}
	s.publish("deb", "2", events.Public)
	poll()
	if n := s.log.count(assembled); n != 2 {
		t.Errorf("%d assemblies after a publication, want another one", n)
	}
	s.images(reader("team-*"))
	if n := s.log.count(assembled); n != 3 {
		t.Errorf("%d assemblies after readers of another set, want one more", n)
	}
}

func TestDocumentsThatNobodyAskedForLatelyAreForgotten(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	var facts []events.Fact
	const sets = 300 // more than are kept
	for i := range sets {
		facts = append(facts, events.ImageDescribed{Image: events.Image{Name: fmt.Sprintf("host-%d", i), Visibility: events.Private}})
	}
	s.project(t, facts...)
	for i := range sets {
		if got := s.images(reader("team-a", fmt.Sprintf("host-%d", i))); len(got) != 2 {
			t.Fatalf("reader %d sees %v", i, got)
		}
	}
	if n := s.log.count(assembled); n != sets {
		t.Errorf("%d assemblies for %d sets of images", n, sets)
	}
	s.images(reader("team-a", fmt.Sprintf("host-%d", sets-1)))
	if n := s.log.count(assembled); n != sets {
		t.Error("the newest ones are forgotten")
	}
	s.images(reader("team-a", "host-0"))
	if n := s.log.count(assembled); n != sets+1 {
		t.Errorf("%d assemblies: the oldest ones are kept for ever", n)
	}
}

func TestPrivateDocumentsAreServedWhilePostgresIsAway(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	before := body(t, s.as(reader("team-a"), imagesURL))
	unblock := block(t, s.site)
	if r := s.as(reader("team-a"), imagesURL); r.StatusCode != 200 || body(t, r) != before {
		t.Errorf("%d, want the last known document", r.StatusCode)
	}
	// One that nobody has asked for before is made of what is known.
	if r := s.as(reader("team-b"), imagesURL); r.StatusCode != 200 || !bytes.Contains([]byte(body(t, r)), []byte("team-b")) {
		t.Errorf("another reader: %d", r.StatusCode)
	}
	fresh := streams.New(streams.Config{Pool: s.pool, Log: slog.New(slog.DiscardHandler), RetryPause: time.Nanosecond})
	w, r := httptest.NewRecorder(), httptest.NewRequest("GET", imagesURL, nil)
	fresh.ServeHTTP(w, r.WithContext(access.With(r.Context(), reader("team-a"))))
	if w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("a node that has never read the tables: %d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
	unblock()
	s.publish("team-a", "2", events.Private)
	if got := body(t, s.as(reader("team-a"), imagesURL)); !strings.Contains(got, "team-a:2:") {
		t.Error("the new version isn't listed after PostgreSQL came back")
	}
}

func TestPrivateDocumentsFollowARebuild(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	if got := s.images(reader("team-a")); len(got) != 2 {
		t.Fatalf("images %v", got)
	}
	if err := migrations.Apply(t.Context(), s.pool, "streams_next", migrations.Streams()); err != nil {
		t.Fatal(err)
	}
	// The new tables differ from the old ones, as after an event that was skipped; nothing else says so.
	err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `
INSERT INTO streams_next.position SELECT * FROM streams.position;
INSERT INTO streams_next.images SELECT * FROM streams.images;
ALTER SCHEMA streams RENAME TO streams_old;
ALTER SCHEMA streams_next RENAME TO streams`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.images(reader("team-a")); len(got) != 0 {
		t.Errorf("images %v, and there are none in the new tables", got)
	}
}

// Readers at the time of a publication get whole documents of their own images, never an older one than they had.
func TestConcurrentReadersGetTheirOwnDocuments(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	done := make(chan struct{})
	var readers sync.WaitGroup
	for i := range 4 {
		own, other := "team-a", "team-b"
		if i%2 == 1 {
			own, other = other, own
		}
		readers.Go(func() {
			seen := 0
			for {
				select {
				case <-done:
					return
				default:
				}
				got := body(t, s.as(reader(own), imagesURL))
				if strings.Contains(got, other+":") || !strings.Contains(got, own+":") {
					t.Errorf("a reader of %s got\n%s", own, got)
					return
				}
				n := strings.Count(got, `"label"`)
				if n < seen {
					t.Errorf("a reader of %s saw %d versions and then %d", own, seen, n)
					return
				}
				seen = n
			}
		})
	}
	for i := 2; i < 12; i++ {
		for _, image := range []string{"team-a", "team-b"} {
			s.publish(image, fmt.Sprint(i), events.Private)
			if got := body(t, s.as(reader(image), imagesURL)); !strings.Contains(got, fmt.Sprintf("%s:%d:", image, i)) {
				t.Errorf("a reader who came after the publication of %s %d got the older document", image, i)
			}
		}
	}
	close(done)
	readers.Wait()
}

func TestIndexAndImagesAreOfOneSet(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	tables, err := projection.ReadTables(t.Context(), s.pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := projection.NewView(func(image string) bool { return image == "team-a" }).Show(tables, nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, document := range map[string][]byte{incus.IndexPath: want.Index.Bytes(), incus.ImagesPath: want.Images.Bytes()} {
		if diff := cmp.Diff(string(document), body(t, s.as(reader("team-a"), "/"+path))); diff != "" {
			t.Errorf("%s (-what the projection makes +served):\n%s", path, diff)
		}
	}
}

func TestSignedDocumentsAreOfTheReaderToo(t *testing.T) {
	t.Parallel()
	s := newPrivateSite(t)
	s.Handler = newSignedHandler(t, s.site)
	for _, test := range []struct {
		who  access.Principal
		want bool
	}{{access.Principal{}, false}, {reader("team-a"), true}, {reader("team-b"), false}} {
		for _, url := range []string{"/streams/v1/index.sjson", "/streams/v1/images.sjson"} {
			r := s.as(test.who, url)
			text := body(t, r)
			if !strings.HasPrefix(text, "-----BEGIN PGP SIGNED MESSAGE-----") || strings.Contains(text, "team-a") != test.want || !strings.Contains(text, "deb:1:") {
				t.Errorf("%s for %q: %d\n%s", url, test.who.Name, r.StatusCode, text)
			}
		}
	}
}
