package api_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/handlers/limits"
)

// sized is session with one file of a size.
func sized(version string, size int64) map[string]any {
	body := session("debian", version, nil)
	body["variants"].([]any)[0].(map[string]any)["files"] = []any{map[string]any{"format": "disk.qcow2", "size": size}}
	return body
}

func TestSessionsOpenedAtOnceNeverGetTheSameRoom(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t)
	free, err := n.blobs.Free()
	if err != nil {
		t.Fatal(err)
	}
	answers := make([]answer, 6)
	var asking sync.WaitGroup
	for i := range answers {
		asking.Go(func() { answers[i] = n.do(http.MethodPost, "/api/images", sized(fmt.Sprint(i), free/10*6)) })
	}
	asking.Wait()
	opened := ""
	for _, a := range answers {
		if a.StatusCode != http.StatusCreated {
			doc := n.problem(a, 507, "storage-full")
			if detail := doc["detail"].(string); !strings.Contains(detail, fmt.Sprint(free/10*6)) {
				t.Errorf("the refusal doesn't say how much: %s", detail)
			}
			continue
		}
		if opened != "" {
			t.Fatal("two sessions were promised the same room")
		}
		opened = n.want(a, 201)["upload_session_id"].(string)
	}
	if opened == "" {
		t.Fatal("no session was opened")
	}
	n.want(n.do(http.MethodDelete, "/api/uploads/"+opened, nil), 200)
	n.want(n.do(http.MethodPost, "/api/images", sized("after", free/10*6)), 201)
}

func TestSessionsAndBytesAreLimitedWhereASessionIsOpened(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t, func(c *api.Config) {
		c.Intake = limits.NewIntake(limits.IntakeConfig{Events: c.Events, Store: c.Blobs, MaxSessions: 2, MaxPerDay: 1000})
	})
	first := n.do(http.MethodPost, "/api/images", sized("1", 300), withHeader("Idempotency-Key", "one"))
	id := n.want(first, 201)["upload_session_id"]
	n.problem(n.do(http.MethodPost, "/api/images", sized("2", 1001)), 413, "too-large")
	a := n.do(http.MethodPost, "/api/images", sized("2", 701))
	n.problem(a, 429, "quota-exhausted")
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	n.want(n.do(http.MethodPost, "/api/images", sized("2", 1)), 201)
	a = n.do(http.MethodPost, "/api/images", sized("3", 1))
	n.problem(a, 429, "too-many-sessions")
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	// What is refused for another reason is told that; a repeated request opens nothing.
	n.problem(n.do(http.MethodPost, "/api/images", sized("2", 1)), 409, "version-in-progress")
	if again := n.want(n.do(http.MethodPost, "/api/images", sized("1", 300), withHeader("Idempotency-Key", "one")), 201); again["upload_session_id"] != id {
		t.Errorf("session %v for a repeated request, want %v", again["upload_session_id"], id)
	}
	// A refused session left nothing behind.
	n.want(n.do(http.MethodDelete, "/api/uploads/"+fmt.Sprint(id), nil), 200)
	n.want(n.do(http.MethodPost, "/api/images", sized("3", 1)), 201)
}

// Every route is behind the limit of requests but for the probes, also those that a new feature adds.
func TestTheRequestLimitStandsBeforeEveryRoute(t *testing.T) {
	t.Parallel()
	cfg, n := parts(t)
	cfg.Requests = limits.NewRequests(limits.RequestsConfig{PerSecond: 1e-9, Burst: 1, Free: []string{"/healthz", "/readyz"}, Log: cfg.Log})
	router, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(router)
	t.Cleanup(server.Close)
	n.url = server.URL
	n.problem(n.do(http.MethodGet, "/nowhere", nil, anonymous), 404, "not-found") // the one request
	n.problem(n.do(http.MethodGet, "/nowhere", nil, anonymous), 429, "too-many-requests")
	routes := 0
	err = chi.Walk(router, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if route == "/healthz" || route == "/readyz" {
			return nil
		}
		routes++
		if a := n.do(method, route, nil, anonymous); a.StatusCode != 429 || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: %d, Retry-After %q, want 429", method, route, a.StatusCode, a.Header.Get("Retry-After"))
		}
		return nil
	})
	if err != nil || routes < 20 {
		t.Errorf("%d routes (%v)", routes, err)
	}
	n.want(n.do(http.MethodGet, "/healthz", nil, anonymous), 200)
	n.problem(n.do(http.MethodGet, "/api/images/none", nil), 404, "not-found") // the admin has a rate of its own
	for n.do(http.MethodGet, "/api/images", nil, withToken("imgsrv_wrong")).StatusCode == 401 {
		routes++ // until there were too many
		if routes > 1000 {
			t.Fatal("wrong tokens are not limited")
		}
	}
	n.problem(n.do(http.MethodGet, "/api/images", nil, withToken("imgsrv_wrong")), 429, "too-many-requests")
	for line := range strings.Lines(n.logged.String()) {
		if strings.Contains(line, "status=429") && !strings.Contains(line, "level=DEBUG") {
			t.Errorf("refused requests fill the log: %s", line)
		}
	}
}
