package webhooks

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/imgsrv/imgsrv/docs"
	"github.com/imgsrv/imgsrv/events"
)

func TestTheAsyncAPIDocumentNamesTheHeadersOfADelivery(t *testing.T) {
	t.Parallel()
	event := events.Event{
		Meta:     events.Meta{ID: "id", Source: "imgsrv://test", Time: time.Unix(1, 0), Actor: "admin", Correlation: "upload", Causation: "event", TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		Sequence: 7, Type: "imgsrv.alias.removed.v1", Fact: events.AliasRemoved{Alias: events.Alias{Image: "debian", Alias: "latest"}}, Data: []byte("{}"),
	}
	r, err := request(t.Context(), events.Webhook{URL: "https://receiver.example/"}, []byte("secret"), event, time.Unix(2, 0))
	if err != nil {
		t.Fatal(err)
	}
	var sent []string
	for name := range r.Header {
		if name != "User-Agent" { // of HTTP, not of the event
			sent = append(sent, strings.ToLower(name))
		}
	}
	slices.Sort(sent)
	var doc struct {
		Components struct {
			Schemas map[string]struct{ Properties map[string]any }
		}
	}
	if err := yaml.Unmarshal(docs.AsyncAPI, &doc); err != nil {
		t.Fatal(err)
	}
	described := slices.Sorted(maps.Keys(doc.Components.Schemas["WebhookHeaders"].Properties))
	if diff := cmp.Diff(described, sent); diff != "" {
		t.Errorf("headers (-docs/asyncapi.yaml +sent):\n%s", diff)
	}
}
