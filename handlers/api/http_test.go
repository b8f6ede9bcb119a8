package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.yaml.in/yaml/v3"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// TestEachRouteAsksForTheRightToken: every route with no token, a wrong one and the admin's. A write is refused
// before its body is looked at.
func TestEachRouteAsksForTheRightToken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := []byte("bytes")
	id := n.publish(session("debian", "1", data, "latest"), data)
	_, failed := n.failed("debian", "2", false)
	open := n.want(n.do(http.MethodPost, "/api/images", session("debian", "3", data)), 201)["upload_session_id"].(string)
	routes := []struct {
		method, path    string
		body            any
		none, bad, good int
	}{
		{"GET", "/healthz", nil, 200, 200, 200},
		{"GET", "/readyz", nil, 200, 200, 200},
		{"GET", "/openapi.yaml", nil, 200, 200, 200},
		{"GET", "/openapi.json", nil, 200, 200, 200},
		{"GET", "/asyncapi.yaml", nil, 200, 200, 200},
		{"GET", "/api/images", nil, 200, 401, 200},
		{"GET", "/api/images/debian", nil, 200, 401, 200},
		{"GET", "/api/images/debian/versions", nil, 200, 401, 200},
		{"GET", "/api/images/debian/versions/1", nil, 200, 401, 200},
		{"HEAD", "/api/images/debian/versions/1", nil, 200, 401, 200},
		{"GET", formatPath("debian", "1"), nil, 200, 401, 200},
		{"HEAD", formatPath("debian", "1"), nil, 200, 401, 200},
		{"GET", blobPath(data), nil, 200, 401, 200},
		{"HEAD", blobPath(data), nil, 200, 401, 200},
		{"GET", "/api/uploads/" + id, nil, 200, 401, 200},
		{"GET", "/api/jobs", nil, 200, 401, 200},
		{"GET", "/api/jobs/" + failed, nil, 200, 401, 200},
		{"POST", "/api/images", session("debian", "4", data), 401, 401, 201},
		{"POST", "/api/images", "{", 401, 401, 400},
		{"DELETE", "/api/uploads/" + open, nil, 401, 401, 200},
		{"POST", "/api/jobs/" + failed + "/retry", nil, 401, 401, 202},
		{"POST", "/api/jobs/" + failed + "/cancel", nil, 401, 401, 200},
		{"PUT", "/api/images/debian/aliases/stable", `{"version":"1"}`, 401, 401, 200},
		{"PUT", "/api/images/debian/aliases/stable", `{`, 401, 401, 400},
		{"DELETE", "/api/images/debian/aliases/stable", nil, 401, 401, 204},
		{"GET", "/nowhere", nil, 404, 404, 404},
	}
	for _, route := range routes {
		for _, as := range []struct {
			name   string
			option option
			want   int
		}{{"no token", anonymous, route.none}, {"a wrong token", withToken("imgsrv_other"), route.bad}, {"the admin's token", withToken(adminToken), route.good}} {
			a := n.do(route.method, route.path, route.body, as.option)
			if a.StatusCode != as.want {
				t.Errorf("%s %s with %s: %d, want %d: %s", route.method, route.path, as.name, a.StatusCode, as.want, a.body)
			}
			if a.StatusCode == 401 && a.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%s %s: a 401 without WWW-Authenticate", route.method, route.path)
			}
			if a.StatusCode >= 400 && a.Header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("%s %s with %s: %d is no problem document: %s", route.method, route.path, as.name, a.StatusCode, a.body)
			}
			if a.StatusCode < 300 && route.good != route.none && a.Header.Get("Imgsrv-Sequence") == "" {
				t.Errorf("%s %s: a write without Imgsrv-Sequence", route.method, route.path)
			}
		}
	}
	n.problem(n.do(http.MethodGet, "/api/images", nil, withHeader("Authorization", "Basic YTpi")), 401, "unauthorized")
}

func TestWhatIsNotRoutedIsAProblem(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.problem(n.do(http.MethodGet, "/", nil), 404, "not-found")
	n.problem(n.do(http.MethodGet, "/api/images/", nil), 404, "not-found")
	a := n.do(http.MethodPut, "/api/images", nil)
	n.problem(a, 405, "method-not-allowed")
	if diff := cmp.Diff([]string{"GET", "HEAD", "POST"}, a.Header.Values("Allow")); diff != "" {
		t.Errorf("Allow: %s", diff)
	}
	n.problem(n.do(http.MethodPost, formatPath("debian", "1"), nil), 405, "method-not-allowed")
}

func TestOtherHandlersAreMountedBesideTheAPI(t *testing.T) {
	t.Parallel()
	cfg, n := parts(t)
	router, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	mounted := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, ok := w.(io.ReaderFrom); !ok {
			t.Error("the connection's ReadFrom is hidden")
		}
		if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
			t.Errorf("the connection's controls are hidden: %v", err)
		}
		_, _ = io.WriteString(w, r.Method)
	})
	router.Mount("/api/uploads/tus/", mounted)
	router.With(api.MinSequence(cfg.Events, 10*time.Second, cfg.Log, n.streams)).Mount("/streams/v1/", mounted)
	server := httptest.NewServer(router)
	defer server.Close()
	n.url = server.URL
	for _, request := range []string{"POST /api/uploads/tus/", "PATCH /api/uploads/tus/0199a1b2.0", "OPTIONS /api/uploads/tus/", "GET /streams/v1/index.json"} {
		method, path, _ := strings.Cut(request, " ")
		if a := n.do(method, path, nil); a.StatusCode != 200 || string(a.body) != method {
			t.Errorf("%s: %d %s", request, a.StatusCode, a.body)
		}
	}
	n.problem(n.do(http.MethodGet, "/streams/v1/index.json", nil, withHeader("Imgsrv-Min-Sequence", "7")), 400, "bad-request")
	n.problem(n.do(http.MethodGet, "/api/uploads/0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b", nil), 404, "not-found")
	if !strings.Contains(n.logged.String(), "route=/api/uploads/tus/* path=/api/uploads/tus/0199a1b2.0") {
		t.Errorf("log: %s", n.logged)
	}
}

func TestAPanicIsAProblemAndLoggedOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.do(http.MethodGet, "/panic/now", nil, withHeader("X-Request-Id", "my-request"))
	n.problem(a, 500, "internal-error")
	log := n.logged.String()
	if strings.Count(log, "out of cheese") != 1 || !strings.Contains(log, "http_test") && !strings.Contains(log, "node_test.go") || !strings.Contains(log, "request_id=my-request") {
		t.Errorf("log: %s", log)
	}
	if !strings.Contains(log, "status=500") || a.Header.Get("X-Request-Id") != "my-request" {
		t.Errorf("request id %q, log: %s", a.Header.Get("X-Request-Id"), log)
	}
	// A half answer must not look whole.
	resp, err := http.Get(n.url + "/panic/late")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close()
	}
	if err == nil {
		t.Error("the broken answer looked whole")
	}
}

func TestTheAccessLogTellsNoSecrets(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.want(n.do(http.MethodGet, "/api/images?after=secret-query", nil), 200)
	n.problem(n.do(http.MethodGet, "/api/images", nil, withToken("secret-token")), 401, "unauthorized")
	a := n.do(http.MethodGet, "/api/images/none", nil, anonymous, withHeader("X-Request-Id", "bad\tid"))
	if id := a.Header.Get("X-Request-Id"); !regexp.MustCompile(`^[0-9a-f-]{36}$`).MatchString(id) {
		t.Errorf("request id %q", id)
	}
	log := n.logged.String()
	for _, secret := range []string{"secret-query", "secret-token", adminToken} {
		if strings.Contains(log, secret) {
			t.Errorf("the log has %s: %s", secret, log)
		}
	}
	for _, want := range []string{"route=/api/images path=/api/images status=200", "principal=admin", "route=/api/images/{image} path=/api/images/none status=404"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q: %s", want, log)
		}
	}
}

func TestRequestsAreMeasuredByRoute(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	n := newNode(t, func(c *api.Config) { c.Meter = provider.Meter("test") })
	n.problem(n.do(http.MethodGet, "/api/images/one", nil), 404, "not-found")
	n.problem(n.do(http.MethodGet, "/api/images/two", nil), 404, "not-found")
	n.problem(n.do("BREW", "/coffee", nil), 404, "not-found")
	if a := n.do("BREW", "/api/images", nil); a.Header.Get("Allow") == "" {
		t.Errorf("an unknown method of a path that is there: %d without Allow", a.StatusCode)
	} else {
		n.problem(a, 405, "method-not-allowed")
	}
	var got metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &got); err != nil {
		t.Fatal(err)
	}
	count := map[string]uint64{}
	for _, m := range got.ScopeMetrics[0].Metrics {
		if m.Name != "http.server.request.duration" {
			continue
		}
		for _, point := range m.Data.(metricdata.Histogram[float64]).DataPoints {
			value := func(key attribute.Key) string { v, _ := point.Attributes.Value(key); return v.String() }
			count[value("http.request.method")+" "+value("http.route")+" "+value("http.response.status_code")] = point.Count
		}
	}
	if diff := cmp.Diff(map[string]uint64{"GET /api/images/{image} 404": 2, "_OTHER none 404": 1, "_OTHER none 405": 1}, count); diff != "" {
		t.Error(diff)
	}
}

func TestAReadWaitsForAWrite(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))), 201)["upload_session_id"].(string)
	n.handOver(id, []byte("x"))
	sequence := fmt.Sprint(n.finish(events.JobIDFor(id)))
	min := withHeader("Imgsrv-Min-Sequence", sequence)
	n.want(n.do(http.MethodGet, "/api/images/debian", nil, min), 200)
	if a := n.do(http.MethodGet, formatPath("debian", "1"), nil, min); a.StatusCode != 200 {
		t.Errorf("download: %d", a.StatusCode)
	}
	for _, value := range []string{"x", "-1", "1.5", "99999999999999999999999", "1000"} {
		n.problem(n.do(http.MethodGet, "/api/images", nil, withHeader("Imgsrv-Min-Sequence", value)), 400, "bad-request")
	}
}

func TestAReadThatWaitsTooLongIsPutOff(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t, func(c *api.Config) { c.MinSequenceWait = 10 * time.Millisecond })
	n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))), 201)
	for _, path := range []string{"/api/images", "/api/jobs", formatPath("debian", "1")} {
		a := n.do(http.MethodGet, path, nil, withHeader("Imgsrv-Min-Sequence", "1"))
		n.problem(a, 503, "not-yet")
		if a.Header.Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", path)
		}
	}
	n.want(n.do(http.MethodGet, "/api/images", nil, withHeader("Imgsrv-Min-Sequence", "0")), 200)
}

func TestReadinessSaysWhichPartIsAway(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	got := n.want(n.do(http.MethodGet, "/readyz", nil), 200)
	var names []string
	for _, p := range got["projections"].([]any) {
		names = append(names, p.(map[string]any)["name"].(string))
	}
	if diff := cmp.Diff([]string{"catalog", "jobs", "streams"}, names); diff != "" {
		t.Error(diff)
	}
	if got["ready"] != true || got["storage"].(map[string]any)["free_bytes"].(float64) <= 0 {
		t.Errorf("readiness: %v", got)
	}
	n.pool.Close()
	got = n.want(n.do(http.MethodGet, "/readyz", nil), 503)
	if got["ready"] != false || got["postgres"].(map[string]any)["ok"] != false || got["nats"].(map[string]any)["ok"] != true {
		t.Errorf("readiness: %v", got)
	}
	why := got["postgres"].(map[string]any)["error"]
	got = n.want(n.do(http.MethodGet, "/readyz", nil, anonymous), 503)
	if told := got["postgres"].(map[string]any)["error"]; told == "" || told == why {
		t.Errorf("anybody is told that %v", told)
	}
	n.want(n.do(http.MethodGet, "/readyz", nil, withToken("no token")), 503) // a probe with a wrong token still learns what it asks
	n.want(n.do(http.MethodGet, "/healthz", nil), 200)
}

func TestReadinessIsBounded(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *api.Config) {
		c.PingPostgres = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	})
	started := time.Now()
	n.want(n.do(http.MethodGet, "/readyz", nil), 503)
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("took %s", took)
	}
}

func TestSessionsAndJobsGoOnWithoutPostgres(t *testing.T) {
	t.Parallel()
	away, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/none?connect_timeout=2") // nothing listens there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(away.Close)
	n := newStoppedNode(t, func(c *api.Config) { c.VisibleWait, c.Catalog = time.Millisecond, catalog.New(away, nil) })
	id := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))), 201)["upload_session_id"].(string)
	n.want(n.do(http.MethodGet, "/api/uploads/"+id, nil), 200)
	n.handOver(id, []byte("x"))
	n.finish(events.JobIDFor(id))
	n.want(n.do(http.MethodGet, "/api/jobs/"+events.JobIDFor(id), nil), 200)
	n.want(n.do(http.MethodPut, "/api/images/debian/aliases/stable", map[string]any{"version": "1"}), 200)

	// Nor does it take a database to know who may do what.
	n.want(n.do(http.MethodPost, "/api/principals", map[string]any{"name": "ci", "roles": []any{map[string]any{"role": "publisher", "images": "team-a-*"}}}), 201)
	issued := n.want(n.do(http.MethodPost, "/api/tokens", map[string]any{"principal": "ci"}), 201)
	ci := withToken(issued["token"].(string))
	n.want(n.do(http.MethodPost, "/api/images", session("team-a-1", "1", []byte("x")), ci), 201)
	n.problem(n.do(http.MethodPost, "/api/images", session("team-b-1", "1", []byte("x")), ci), 403, "forbidden")
	n.want(n.do(http.MethodDelete, "/api/tokens/"+issued["id"].(string), nil), 204)
	n.problem(n.do(http.MethodPost, "/api/images", session("team-a-2", "1", []byte("x")), ci), 401, "unauthorized")
	a := n.do(http.MethodGet, "/api/images", nil)
	n.problem(a, 503, "unavailable")
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestTheDocumentDescribesEveryRoute(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	fromYAML, fromJSON := map[string]any{}, map[string]any{}
	a := n.do(http.MethodGet, "/openapi.yaml", nil, anonymous)
	if err := yaml.Unmarshal(a.body, &fromYAML); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(n.do(http.MethodGet, "/openapi.json", nil, anonymous).body, &fromJSON); err != nil {
		t.Fatal(err)
	}
	if fromYAML["openapi"] != "3.1.0" || fromJSON["openapi"] != "3.1.0" {
		t.Errorf("version %v", fromYAML["openapi"])
	}
	want := strings.Fields(`
		GET/api/images POST/api/images GET/api/images/{image} GET/api/images/{image}/versions GET/api/images/{image}/versions/{version}
		GET/api/images/{image}/versions/{version}/variants/{variant}/formats/{format} HEAD/api/images/{image}/versions/{version}/variants/{variant}/formats/{format}
		GET/api/images/{image}/versions/{version}/SHA256SUMS
		GET/images/ GET/images/{image}/ GET/images/{image}/{version}/ GET/images/{image}/{version}/{file} GET/images/{image}/{version}/SHA256SUMS
		GET/api/images/{image}/versions/{version}/attachments/{name} HEAD/api/images/{image}/versions/{version}/attachments/{name}
		POST/api/images/{image}/versions/{version}/withdraw POST/api/images/{image}/versions/{version}/restore POST/api/images/{image}/versions/{version}/variants/{variant}/derive
		GET/api/images/{image}/policy PUT/api/images/{image}/policy PUT/api/images/{image}/visibility
		PUT/api/images/{image}/aliases/{alias} DELETE/api/images/{image}/aliases/{alias} GET/api/uploads/{id} DELETE/api/uploads/{id}
		POST/api/uploads/tus/ HEAD/api/uploads/tus/{upload} PATCH/api/uploads/tus/{upload} DELETE/api/uploads/tus/{upload}
		GET/api/status GET/api/jobs GET/api/jobs/{id} POST/api/jobs/{id}/cancel POST/api/jobs/{id}/retry GET/cas/sha256/{prefix}/{hex} HEAD/cas/sha256/{prefix}/{hex}
		GET/streams/v1/index.json GET/streams/v1/images.json GET/streams/v1/images/{image}.json GET/healthz GET/readyz
		GET/api/events GET/api/events/{sequence} GET/api/events/export POST/api/events/import GET/api/images/{image}/history
		GET/api/operations GET/api/operations/{id} GET/api/operations/{id}/events POST/api/operations/{id}/cancel POST/api/backups POST/api/fsck POST/api/gc
		GET/api/projections GET/api/projections/{name}/replay POST/api/projections/{name}/verify POST/api/projections/{name}/skip
		GET/api/projections/{name}/rebuild POST/api/projections/{name}/rebuild DELETE/api/projections/{name}/rebuild
		GET/api/whoami GET/api/principals POST/api/principals GET/api/principals/{name} DELETE/api/principals/{name}
		POST/api/principals/{name}/roles DELETE/api/principals/{name}/roles
		GET/api/tokens POST/api/tokens GET/api/tokens/{id} DELETE/api/tokens/{id} POST/api/tokens/{id}/rotate`)
	documented := map[string]bool{}
	for path, item := range fromJSON["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			documented[strings.ToUpper(method)+path] = true
			operation := op.(map[string]any)
			if operation["summary"] == "" || operation["summary"] == nil || operation["operationId"] == nil || operation["security"] == nil {
				t.Errorf("%s %s lacks a summary, an id or what it asks of the caller", method, path)
			}
			for status, response := range operation["responses"].(map[string]any) {
				content, _ := response.(map[string]any)["content"].(map[string]any)
				if status >= "400" && content["application/problem+json"] == nil && path != "/readyz" {
					t.Errorf("%s %s: %s is no problem document", method, path, status)
				}
			}
		}
	}
	for _, route := range want {
		if !documented[route] {
			t.Errorf("%s is not in the document", route)
		}
		delete(documented, route)
	}
	if len(documented) > 0 {
		t.Errorf("and these are, unexpectedly: %v", documented)
	}
	// Every reference leads somewhere.
	schemas := fromJSON["components"].(map[string]any)["schemas"].(map[string]any)
	for _, ref := range regexp.MustCompile(`#/components/schemas/(\w+)`).FindAllStringSubmatch(string(a.body), -1) {
		if schemas[ref[1]] == nil {
			t.Errorf("no schema %s", ref[1])
		}
	}
	if strings.Contains(string(a.body), "unpkg") || strings.Contains(string(a.body), "$schema") {
		t.Error("the document has links that we don't want")
	}
}
