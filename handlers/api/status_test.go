package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

func TestTheStatusNamesAllThatWasGivenUp(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if got := n.want(n.do(http.MethodGet, "/api/status", nil), 200); len(got["given_up"].([]any)) != 0 || got["readiness"].(map[string]any)["ready"] != true {
		t.Errorf("of an empty server: %v", got)
	}
	data := []byte("bytes")
	n.publish(session("debian", "1", data), data)
	_, job := n.failed("debian", "2", false)
	version, err := n.events.Version(t.Context(), "debian", "1")
	if err != nil {
		t.Fatal(err)
	}
	variant := version.State.Manifest.Variants[0].Name()
	file := events.Derived{Image: "debian", Version: "1", Variant: variant, Format: "disk.vmdk", Kind: events.DerivedFormat, State: events.DerivedHasFailed,
		Problem: &events.Problem{Code: "timeout", Detail: "it took too long"}}
	hook := "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
	dead := events.Delivery{Webhook: hook, Sequence: 1, State: events.DeliveryDead, Attempts: 11}
	sequence, err := n.events.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: events.DerivedFailed{Derived: file}},
		events.Change{Fact: events.DeliveryDeadLettered{Delivery: dead}})
	if err != nil {
		t.Fatal(err)
	}
	n.want(n.do(http.MethodGet, "/api/images", nil, withHeader("Imgsrv-Min-Sequence", fmt.Sprint(sequence))), 200)
	n.want(n.do(http.MethodGet, "/api/jobs", nil, withHeader("Imgsrv-Min-Sequence", fmt.Sprint(sequence))), 200)
	got := n.want(n.do(http.MethodGet, "/api/status", nil), 200)
	want := map[string]string{"jobs": job, "formats": "disk.vmdk: it took too long", "deliveries": "event 1 for webhook " + hook}
	for _, entry := range got["given_up"].([]any) {
		g := entry.(map[string]any)
		text := want[g["what"].(string)]
		delete(want, g["what"].(string))
		if examples, _ := g["examples"].([]any); text == "" || g["count"] != 1.0 || len(examples) != 1 || !strings.Contains(examples[0].(string), text) {
			t.Errorf("%v, want one with %q", g, text)
		}
	}
	if len(want) != 0 {
		t.Errorf("not told: %v of %v", want, got["given_up"])
	}
}
