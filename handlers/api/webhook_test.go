package api_test

import (
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/handlers/webhooks"
)

// withWebhooks gives the API webhooks that nobody sends to.
func withWebhooks(t *testing.T) func(*api.Config) {
	return func(cfg *api.Config) {
		targets, err := webhooks.ParseTargets([]string{"hooks.internal"})
		if err != nil {
			t.Fatal(err)
		}
		cfg.Webhooks, err = webhooks.New(webhooks.Config{Log: cfg.Events, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{},
			Keys: webhooks.NewKeys(filepath.Join(t.TempDir(), "webhook.key")), Targets: targets})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestAWebhookIsAddedListedAndRemoved(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t, withWebhooks(t))
	answer := n.do(http.MethodPost, "/api/webhooks", map[string]any{"url": "http://hooks.internal:9000/in", "images": []string{"debian-*"}})
	added := n.want(answer, 201)
	id := added["id"].(string)
	for name, want := range map[string]string{"Location": n.url + "/api/webhooks/" + id, "Cache-Control": "no-store", "Imgsrv-Sequence": "1"} {
		if got := answer.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if secret := n.want(n.do(http.MethodGet, "/api/webhooks/"+id+"/secret", nil), 200)["secret"]; secret != added["secret"] || !strings.HasPrefix(secret.(string), "whsec_") {
		t.Errorf("secret %v, then %v", added["secret"], secret)
	}
	listed := n.want(n.do(http.MethodGet, "/api/webhooks", nil), 200)["webhooks"].([]any)
	shown := n.want(n.do(http.MethodGet, "/api/webhooks/"+id, nil), 200)
	if len(listed) != 1 || listed[0].(map[string]any)["id"] != id || shown["url"] != "http://hooks.internal:9000/in" || shown["from"] != 2.0 || shown["secret"] != nil {
		t.Errorf("listed %v, shown %v", listed, shown)
	}
	if strings.Contains(n.logged.String(), added["secret"].(string)) {
		t.Error("the secret is in the log")
	}
	n.problem(n.do(http.MethodGet, "/api/webhooks/"+id+"/deliveries/1", nil), 404, "not-found")
	n.problem(n.do(http.MethodPost, "/api/webhooks/"+id+"/redeliver", map[string]any{"sequence": 99}), 404, "not-found")
	n.problem(n.do(http.MethodPost, "/api/webhooks/"+id+"/redeliver", map[string]any{"sequence": 1}), 422, "invalid-request") // the webhook's own event
	if removed := n.do(http.MethodDelete, "/api/webhooks/"+id, nil); removed.StatusCode != 204 || removed.Header.Get("Imgsrv-Sequence") != "2" {
		t.Errorf("DELETE: %s, Imgsrv-Sequence %q", removed.Status, removed.Header.Get("Imgsrv-Sequence"))
	}
	for _, path := range []string{"", "/secret", "/dead-letters"} {
		n.problem(n.do(http.MethodGet, "/api/webhooks/"+id+path, nil), 404, "not-found")
	}
	n.problem(n.do(http.MethodDelete, "/api/webhooks/"+id, nil), 404, "not-found")
	if listed := n.want(n.do(http.MethodGet, "/api/webhooks", nil), 200)["webhooks"].([]any); len(listed) != 0 {
		t.Errorf("listed after the removal: %v", listed)
	}
}

func TestAWebhookThatMayNotBeIsNotAdded(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t, withWebhooks(t))
	for name, body := range map[string]map[string]any{
		"private":      {"url": "https://192.168.0.1/"},
		"without TLS":  {"url": "http://8.8.8.8/"},
		"no URL":       {"url": "x"},
		"unknown type": {"url": "http://hooks.internal/", "types": []string{"imgsrv.nothing.happened.v1"}},
	} {
		if p := n.do(http.MethodPost, "/api/webhooks", body); p.StatusCode != 422 {
			t.Errorf("%s: %s", name, p.Status)
		}
	}
	if head, err := n.events.Head(t.Context()); err != nil || head != 0 {
		t.Errorf("%d events (%v) of refused webhooks", head, err)
	}
}

func TestTheDocumentDescribesWebhooks(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t, withWebhooks(t))
	paths := n.want(n.do(http.MethodGet, "/openapi.json", nil), 200)["paths"].(map[string]any)
	for path, methods := range map[string][]string{"/api/webhooks": {"get", "post"}, "/api/webhooks/{id}": {"get", "delete"}, "/api/webhooks/{id}/secret": {"get"},
		"/api/webhooks/{id}/dead-letters": {"get"}, "/api/webhooks/{id}/deliveries/{sequence}": {"get"}, "/api/webhooks/{id}/redeliver": {"post"}} {
		operations, _ := paths[path].(map[string]any)
		for _, method := range methods {
			if operations[method] == nil {
				t.Errorf("%s %s is not described", method, path)
			}
		}
	}
}
