package api_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"
	"go.yaml.in/yaml/v3"

	"github.com/imgsrv/imgsrv/docs"
	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

func TestTheAsyncAPIDocumentIsForEverybody(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.do(http.MethodGet, "/asyncapi.yaml", nil, anonymous)
	if a.StatusCode != http.StatusOK || !bytes.Equal(a.body, docs.AsyncAPI) {
		t.Errorf("answer %d with %d bytes, want 200 with the %d of docs/asyncapi.yaml", a.StatusCode, len(a.body), len(docs.AsyncAPI))
	}
	if got := a.Header.Get("Content-Type"); got != "application/vnd.aai.asyncapi+yaml;version=3.0.0" {
		t.Errorf("Content-Type %q", got)
	}
}

func TestServerSentEventsAreAsTheAsyncAPIDocumentSays(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	fact := events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: "latest", Version: "1"}, MovedBy: events.MovedByHand}
	if _, err := n.events.Append(t.Context(), jetstream.Cause{Actor: "admin", Correlation: "upload", Causation: "event"}, events.Change{Fact: fact}); err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url+"/api/events?after=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+adminToken)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := response.Body.Close(); err != nil {
			t.Error(err)
		}
	}()
	var sent any
	lines := bufio.NewScanner(response.Body)
	for sent == nil && lines.Scan() {
		if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &sent); err != nil {
				t.Fatal(err)
			}
		}
	}
	if sent == nil {
		t.Fatalf("the stream ended without an event: %v", lines.Err())
	}
	if err := documented(t, "ServerSentEvent").Validate(sent); err != nil {
		t.Error(err)
	}
	if err := documented(t, "imgsrv.alias.moved.v2").Validate(sent.(map[string]any)["data"]); err != nil {
		t.Error(err)
	}
}

// documented is a schema of the AsyncAPI document.
func documented(t *testing.T, name string) *jsonschema.Resolved {
	t.Helper()
	var doc struct {
		Components struct {
			Schemas map[string]any `json:"schemas"`
		} `json:"components"`
	}
	if err := yaml.Unmarshal(docs.AsyncAPI, &doc); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(map[string]any{"$ref": "#/components/schemas/" + name, "$defs": doc.Components.Schemas})
	if err != nil {
		t.Fatal(err)
	}
	var schema jsonschema.Schema
	if err := json.Unmarshal(bytes.ReplaceAll(data, []byte("#/components/schemas/"), []byte("#/$defs/")), &schema); err != nil {
		t.Fatal(err)
	}
	resolved, err := schema.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	return resolved
}
