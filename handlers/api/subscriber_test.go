package api_test

import (
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// withSubscribers gives the API subscribers of a NATS server that is somebody else's.
func withSubscribers(t *testing.T) func(*api.Config) {
	return func(cfg *api.Config) {
		cfg.Subscribers = jetstream.NewSubscribers(cfg.Events, nil, slog.New(slog.DiscardHandler))
		natstest.Run(t, cfg.Subscribers)
	}
}

func TestASubscriberIsAddedListedAndRemoved(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t, withSubscribers(t))
	answer := n.do(http.MethodPost, "/api/subscribers", map[string]any{"name": "mirror", "images": []string{"debian"}, "from": 7})
	added := n.want(answer, 201)
	for name, want := range map[string]string{"Location": n.url + "/api/subscribers/mirror", "Cache-Control": "no-store", "Imgsrv-Sequence": "1"} {
		if got := answer.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	credentials := added["credentials"].(string)
	if !strings.HasPrefix(credentials, "SU") || !strings.Contains(added["nats_config"].(string), added["public_key"].(string)) {
		t.Errorf("added %v", added)
	}
	listed := n.want(n.do(http.MethodGet, "/api/subscribers", nil), 200)
	list := listed["subscribers"].([]any)
	want := map[string]any{"name": "mirror", "public_key": added["public_key"], "images": []any{"debian"}, "from": 7.0, "max_pending": 1.0,
		"added_by": "admin", "added_at": added["added_at"], "acknowledged": 0.0, "pending": 0.0}
	if len(list) == 1 {
		got := list[0].(map[string]any)
		got["acknowledged"] = 0.0 // of a consumer that begins later than the stream ends
		if !reflect.DeepEqual(got, want) {
			t.Errorf("listed %v, want %v", got, want)
		}
	} else {
		t.Errorf("listed %v", list)
	}
	if strings.Contains(n.logged.String(), strings.TrimSpace(credentials)) {
		t.Error("the credentials are in the log")
	}
	n.problem(n.do(http.MethodPost, "/api/subscribers", map[string]any{"name": "mirror", "all": true}), 409, "subscriber-exists")
	for what, body := range map[string]map[string]any{
		"nothing to read":       {"name": "other"},
		"all, and one":          {"name": "other", "all": true, "images": []string{"debian"}},
		"a pattern":             {"name": "other", "images": []string{"debian-*"}},
		"an image twice":        {"name": "other", "images": []string{"a", "a"}},
		"the server's consumer": {"name": "publication", "all": true},
		"too many at once":      {"name": "other", "all": true, "max_pending": 1001},
		"no name":               {"name": "", "all": true},
	} {
		t.Log(what)
		n.problem(n.do(http.MethodPost, "/api/subscribers", body), 422, "invalid-request")
	}
	if removed := n.do(http.MethodDelete, "/api/subscribers/mirror", nil); removed.StatusCode != 204 || removed.Header.Get("Imgsrv-Sequence") != "2" {
		t.Errorf("DELETE: %s, Imgsrv-Sequence %q", removed.Status, removed.Header.Get("Imgsrv-Sequence"))
	}
	for _, name := range []string{"mirror", "never", "a.b", "%3E"} {
		n.problem(n.do(http.MethodDelete, "/api/subscribers/"+name, nil), 404, "not-found")
	}
	if list := n.want(n.do(http.MethodGet, "/api/subscribers", nil), 200)["subscribers"].([]any); len(list) != 0 {
		t.Errorf("after the removal: %v", list)
	}
	again := n.want(n.do(http.MethodPost, "/api/subscribers", map[string]any{"name": "mirror", "all": true}), 201)
	if again["credentials"] == credentials || again["public_key"] == added["public_key"] {
		t.Error("a name that is given again has the old key")
	}
	for _, r := range [][2]string{{http.MethodGet, "/api/subscribers"}, {http.MethodPost, "/api/subscribers"}, {http.MethodDelete, "/api/subscribers/mirror"}} {
		n.problem(n.do(r[0], r[1], nil, anonymous), 401, "unauthorized")
	}
}
