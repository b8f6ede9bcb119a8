package eventcontract_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.yaml.in/yaml/v3"

	"github.com/imgsrv/imgsrv/docs"
	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

// schemaVariable names a file: schemas/3.0.0.json of the npm package @asyncapi/specs, the schema of AsyncAPI 3.0 itself.
const schemaVariable = "IMGSRV_TEST_ASYNCAPI_SCHEMA"

func asyncAPI(t *testing.T) map[string]any {
	t.Helper()
	var doc map[string]any
	if err := yaml.Unmarshal(docs.AsyncAPI, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestTheAsyncAPIDocumentSatisfiesItsSpecification(t *testing.T) {
	t.Parallel()
	path := os.Getenv(schemaVariable)
	if path == "" {
		t.Skipf("this test needs schemas/3.0.0.json of the npm package @asyncapi/specs, at the path that %s says", schemaVariable)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// The file names its dialect in two ways, of which the validator knows one.
	data = bytes.ReplaceAll(data, []byte(`"http://json-schema.org/draft-07/schema"`), []byte(`"http://json-schema.org/draft-07/schema#"`))
	var schema jsonschema.Schema
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	specification, err := schema.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(asyncAPI(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := specification.Validate(instance(t, asJSON)); err != nil {
		t.Error(err)
	}
	broken := strings.Replace(string(asJSON), `"action":"send"`, `"action":"shout"`, 1)
	if err := specification.Validate(instance(t, []byte(broken))); err == nil {
		t.Error("the schema takes an operation that neither sends nor receives")
	}
}

func TestTheAsyncAPIDocumentNamesEveryTypeAndLeadsNowhereElse(t *testing.T) {
	t.Parallel()
	doc := asyncAPI(t)
	stream := doc["channels"].(map[string]any)["stream"].(map[string]any)
	var have []events.Type
	for name := range stream["messages"].(map[string]any) {
		have = append(have, events.Type(name))
	}
	slices.Sort(have)
	if diff := cmp.Diff(events.Types(), have); diff != "" {
		t.Errorf("types (-registry +document):\n%s", diff)
	}
	walk(doc, func(object map[string]any) {
		ref, ok := object["$ref"].(string)
		if !ok {
			return
		}
		var target any = doc
		for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
			next, ok := target.(map[string]any)
			if !ok || next[part] == nil {
				t.Errorf("%s leads nowhere", ref)
				return
			}
			target = next[part]
		}
	})
}

func walk(v any, visit func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		visit(v)
		for _, value := range v {
			walk(value, visit)
		}
	case []any:
		for _, value := range v {
			walk(value, visit)
		}
	}
}

// The headers of a stored message are those of the document, no more and no less, and its subject is of the channel.
func TestTheAsyncAPIDocumentDescribesStoredMessages(t *testing.T) {
	t.Parallel()
	log, nc := natstest.LogAndConn(t)
	fact := events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: "latest", Version: "1"}, MovedBy: events.MovedByHand}
	cause := jetstream.Cause{Actor: "admin", Correlation: "upload", Causation: "event"}
	if _, err := log.Append(tracecontext.With(t.Context(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), cause, events.Change{Fact: fact}); err != nil {
		t.Fatal(err)
	}
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), jetstream.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	doc := asyncAPI(t)
	schemas := doc["components"].(map[string]any)["schemas"].(map[string]any)
	var have []string
	headers := map[string]any{}
	for name, values := range msg.Header {
		if !strings.HasPrefix(name, "Nats-") { // the server's own
			have, headers[name] = append(have, name), values[0]
		}
	}
	var want []string
	for name := range schemas["EnvelopeHeaders"].(map[string]any)["properties"].(map[string]any) {
		want = append(want, name)
	}
	slices.Sort(have)
	slices.Sort(want)
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("headers (-document +stored):\n%s", diff)
	}
	validate(t, schemas["EnvelopeHeaders"], headers)
	validate(t, schemas[headers["ce-type"].(string)], instance(t, msg.Data))
	channel := doc["channels"].(map[string]any)["stream"].(map[string]any)
	if address := strings.NewReplacer("{entity}", events.KindAlias, "{id}", "debian.latest").Replace(fmt.Sprint(channel["address"])); address != msg.Subject {
		t.Errorf("subject %s, and by the document %s", msg.Subject, address)
	}
	if !strings.Contains(fmt.Sprint(doc["servers"]), jetstream.StreamName) {
		t.Errorf("the document doesn't name the stream %s", jetstream.StreamName)
	}
}

func validate(t *testing.T, schema, value any) {
	t.Helper()
	data, err := json.Marshal(schema)
	if err != nil {
		t.Fatal(err)
	}
	var parsed jsonschema.Schema
	if err := json.Unmarshal(data, &parsed); err != nil {
		t.Fatal(err)
	}
	resolved, err := parsed.Resolve(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := resolved.Validate(value); err != nil {
		t.Errorf("%v", err)
	}
}
