package limits_test

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// who reads a principal from a header; a wrong one is refused as a guard refuses a wrong token.
func who(r *http.Request) (access.Principal, error) {
	switch name := r.Header.Get("Who"); name {
	case "wrong":
		return access.Principal{}, problem.New(problem.CodeUnauthorized, "the token is unknown")
	case "unclear":
		return access.Principal{}, problem.New(problem.CodeUnavailable, "come back")
	case "admin":
		return access.NewPrincipal(name, events.Grant{Role: events.RoleAdmin}), nil
	default:
		return access.NewPrincipal(name, events.Grant{Role: events.RolePublisher}), nil
	}
}

// gate is a handler behind a limit of one request a second, five at once.
type gate struct {
	t       *testing.T
	handler http.Handler
	now     time.Time
	passed  int
}

func newGate(t *testing.T) *gate {
	t.Helper()
	exempt, err := limits.ParseExempt([]string{"127.0.0.0/8", "::1", "10.1.0.0/16", ""})
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t, now: time.Now()}
	requests := limits.NewRequests(limits.RequestsConfig{PerSecond: 1, Burst: 5, Exempt: exempt, Free: []string{"/healthz"}, Chunks: "/tus/",
		Log: slog.New(slog.DiscardHandler), Clock: func() time.Time { return g.now }})
	g.handler = requests.Middleware(who)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { g.passed++ }))
	return g
}

func (g *gate) do(method, path, from, principal string) *httptest.ResponseRecorder {
	g.t.Helper()
	r := httptest.NewRequestWithContext(g.t.Context(), method, path, nil)
	r.RemoteAddr = from
	r.Header.Set("Who", principal)
	w := httptest.NewRecorder()
	g.handler.ServeHTTP(w, r)
	return w
}

// use makes requests until one is refused, or 50, and says how many passed.
func (g *gate) use(from, principal string) int {
	g.t.Helper()
	for n := range 50 {
		if g.do("GET", "/", from, principal).Code == http.StatusTooManyRequests {
			return n
		}
	}
	return 50
}

func TestEachPrincipalAndEachAddressHasItsOwnRate(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	for _, c := range []struct {
		what, from, who string
		want            int
	}{
		{"somebody without a token", "192.0.2.1:1000", "", 5},
		{"the same from another port", "192.0.2.1:2000", "", 0},
		{"the same, as IPv6 writes it", "[::ffff:192.0.2.1]:2000", "", 0},
		{"another address", "192.0.2.2:1000", "", 5},
		{"IPv6", "[2001:db8:0:1::1]:1000", "", 5},
		{"another address of the same /64", "[2001:db8:0:1:ffff::9]:1000", "", 0},
		{"another /64", "[2001:db8:0:2::1]:1000", "", 5},
		{"a principal from a used-up address", "192.0.2.1:1000", "ci", 5},
		{"the same principal from elsewhere", "198.51.100.1:1000", "ci", 0},
		{"another principal", "192.0.2.1:1000", "cd", 5},
		{"an admin from elsewhere", "192.0.2.1:1000", "admin", 5},
		{"that admin from this machine", "127.0.0.1:1000", "admin", 50},
		{"nobody, from this machine", "[::1]:1000", "", 50},
		{"nobody, from a proxy", "10.1.2.3:1000", "", 50},
		{"a principal from this machine", "127.0.0.1:1000", "robot", 5},
		{"wrong tokens from this machine", "127.0.0.1:1000", "wrong", 50},
		{"wrong tokens", "192.0.2.9:1000", "wrong", 30},
		{"nobody, where wrong tokens came from", "192.0.2.9:1000", "", 5},
		{"a principal, where wrong tokens came from", "192.0.2.9:1000", "late", 5},
		{"tokens that can't be judged just now", "192.0.2.10:1000", "unclear", 30},
	} {
		if got := g.use(c.from, c.who); got != c.want {
			t.Errorf("%s: %d requests passed, want %d", c.what, got, c.want)
		}
	}
}

func TestARefusedClientIsToldWhenToComeBack(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	g.use("192.0.2.1:1", "ci")
	g.now = g.now.Add(100 * time.Millisecond)
	before := g.passed
	w := g.do("GET", "/", "192.0.2.1:1", "ci")
	var p struct{ Code, Detail string }
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != 429 || p.Code != "too-many-requests" || w.Header().Get("Retry-After") != "1" || g.passed != before {
		t.Fatalf("%d %q, Retry-After %q, %d passed (%v), want a 429 with 1 second", w.Code, w.Body, w.Header().Get("Retry-After"), g.passed-before, err)
	}
	g.now = g.now.Add(time.Second)
	if w := g.do("GET", "/", "192.0.2.1:1", "ci"); w.Code != 200 {
		t.Errorf("%d after the time that was told", w.Code)
	}
	// Who keeps coming too early doesn't wait longer for it.
	if w := g.do("GET", "/", "192.0.2.1:1", "ci"); w.Header().Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q, want 1", w.Header().Get("Retry-After"))
	}
}

func TestProbesAndChunksOfUploadsAreNotCounted(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	g.use("192.0.2.1:1", "")
	g.use("192.0.2.1:1", "ci")
	if w := g.do("GET", "/healthz", "192.0.2.1:1", ""); w.Code != 200 {
		t.Errorf("a probe: %d", w.Code)
	}
	if w := g.do("PATCH", "/tus/x", "192.0.2.1:1", "ci"); w.Code != 200 {
		t.Errorf("a chunk of an upload: %d", w.Code)
	}
	if w := g.do("PATCH", "/elsewhere", "192.0.2.1:1", "ci"); w.Code != 429 {
		t.Errorf("a PATCH of something else: %d, want 429", w.Code)
	}
	if w := g.do("PATCH", "/tus/x", "192.0.2.1:1", ""); w.Code != 429 {
		t.Errorf("a PATCH of nobody: %d, want 429", w.Code)
	}
}

func TestNoRateIsNoLimit(t *testing.T) {
	t.Parallel()
	requests := limits.NewRequests(limits.RequestsConfig{})
	passed := 0
	h := requests.Middleware(who)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ }))
	for range 5000 {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "GET", "/", nil))
	}
	if passed != 5000 {
		t.Errorf("%d of 5000 passed", passed)
	}
}

func TestExemptionsAreAddressesOrPrefixes(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"localhost", "10.0.0.0/33", "10.0.0"} {
		if _, err := limits.ParseExempt([]string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestUploadsAtOnceAreCountedForEachPrincipal(t *testing.T) {
	t.Parallel()
	uploads := limits.NewUploads(2, nil)
	ci := access.With(t.Context(), access.NewPrincipal("ci"))
	var done []func()
	for range 2 {
		d, err := uploads.Begin(ci)
		if err != nil {
			t.Fatal(err)
		}
		done = append(done, d)
	}
	if _, err := uploads.Begin(ci); problem.From(err).Code != "too-many-uploads" || problem.From(err).GetHeaders().Get("Retry-After") == "" {
		t.Errorf("a third: %v, want too-many-uploads with Retry-After", err)
	}
	if _, err := uploads.Begin(access.With(t.Context(), access.NewPrincipal("cd"))); err != nil {
		t.Errorf("another principal: %v", err)
	}
	done[0]()
	if _, err := uploads.Begin(ci); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
}

// A token in the path that isn't good is a 404, and counts as any wrong token: nobody guesses without a limit.
func TestWrongTokensInPathsAreLimited(t *testing.T) {
	t.Parallel()
	requests := limits.NewRequests(limits.RequestsConfig{PerSecond: 1, Burst: 5, Log: slog.New(slog.DiscardHandler), Clock: time.Now})
	passed := 0
	handler := access.PathToken(requests.Middleware(access.NewGuard("the-token").Authenticate)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ })))
	refused := 0
	for range 100 {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/r/wrong/streams/v1/index.json", nil))
		if w.Code == http.StatusTooManyRequests {
			refused++
		}
	}
	if refused == 0 || passed == 0 {
		t.Errorf("%d passed, %d were refused", passed, refused)
	}
}
