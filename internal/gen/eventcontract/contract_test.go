package eventcontract_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/jsonschema-go/jsonschema"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/gen/eventcontract"
)

const root = "../../.."

func TestTheCheckedInContractIsThatOfTheSource(t *testing.T) {
	t.Parallel()
	files, err := eventcontract.Files(root)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range files {
		have, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Errorf("%v: run go generate ./events", err)
			continue
		}
		if !bytes.Equal(want, have) {
			t.Errorf("%s is not what the source says: run go generate ./events (-checked in +made):\n%s", path, cmp.Diff(string(have), string(want)))
		}
	}
	checkedIn, err := filepath.Glob(filepath.Join(root, "events/schemas/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range checkedIn {
		if _, ok := files["events/schemas/"+filepath.Base(path)]; !ok {
			t.Errorf("%s is the schema of no type", path)
		}
	}
}

// What was valid when it was written stays valid: schemas only grow. A change that isn't growth needs a new
// version of the type.
func TestOldEventsSatisfyTheSchemas(t *testing.T) {
	t.Parallel()
	released, err := filepath.Glob(filepath.Join(root, "events/schemas/released/*.json"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[events.Type]bool{}
	for _, path := range released {
		typ := events.Type(strings.TrimSuffix(filepath.Base(path), ".json"))
		known[typ] = true
		earlier, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		later, err := events.Schema(typ)
		if err != nil {
			t.Errorf("a released type can't go: %v", err)
			continue
		}
		broken, err := eventcontract.Breaks(earlier, later)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range broken {
			t.Errorf("%s: %s; old events don't satisfy it: make a new version of the type", typ, line)
		}
	}
	for _, typ := range events.Types() {
		if !known[typ] {
			t.Errorf("%s has no released schema: run go generate ./events", typ)
		}
	}
}

func TestGoldenEventsSatisfyTheirSchema(t *testing.T) {
	t.Parallel()
	schemas := resolved(t)
	for typ, schema := range schemas {
		name := strings.Replace(strings.TrimPrefix(string(typ), "imgsrv."), ".", "_", 1)
		more, err := filepath.Glob(filepath.Join(root, "events/testdata", name+".*.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range append(more, filepath.Join(root, "events/testdata", name+".json")) {
			if strings.HasSuffix(file, ".current.json") {
				continue // of the type that it is upcast to
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Error(err)
				continue
			}
			if err := schema.Validate(instance(t, data)); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		if err := schema.Validate(map[string]any{}); err == nil {
			t.Errorf("%s: the schema takes an empty payload", typ)
		}
	}
}

func TestEveryEventThatTheRulesMakeSatisfiesItsSchema(t *testing.T) {
	t.Parallel()
	schemas := resolved(t)
	rapid.Check(t, func(t *rapid.T) {
		for _, event := range eventstest.Draw(t, rapid.IntRange(1, 40).Draw(t, "decisions")).Events {
			if err := schemas[event.Type].Validate(instance(t, event.Data)); err != nil {
				t.Fatalf("%s: %v\n%s", event.Type, err, event.Data)
			}
		}
	})
}

func resolved(t *testing.T) map[events.Type]*jsonschema.Resolved {
	t.Helper()
	out := map[events.Type]*jsonschema.Resolved{}
	for _, typ := range events.Types() {
		data, err := events.Schema(typ)
		if err != nil {
			t.Fatal(err)
		}
		var schema jsonschema.Schema
		if err := json.Unmarshal(data, &schema); err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		if out[typ], err = schema.Resolve(nil); err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
	}
	return out
}

func instance(t eventstest.TB, data []byte) any {
	t.Helper()
	var out any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

func TestChangesThatBreakOldEventsAreFound(t *testing.T) {
	t.Parallel()
	const before = `{"title": "a", "type": "object", "required": ["id"], "properties": {
		"id": {"type": "string"}, "size": {"type": "integer"}, "state": {"type": "string", "enum": ["open", "done"]},
		"digest": {"type": "string", "pattern": "^a$"}, "free": {}, "files": {"type": ["array", "null"], "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}}}}`
	for name, test := range map[string]struct {
		from, to string // of before
		want     []string
	}{
		"nothing":                    {"", "", nil},
		"a description":              {`"title": "a"`, `"title": "b", "description": "c"`, nil},
		"a property more":            {`"id": {"type": "string"},`, `"id": {"type": "string"}, "more": {"type": "integer"},`, nil},
		"a value of an enum more":    {`["open", "done"]`, `["open", "done", "gone"]`, nil},
		"a wider type":               {`{"type": "integer"}`, `{"type": ["integer", "null"]}`, nil},
		"a rule less":                {`, "pattern": "^a$"`, ``, nil},
		"less is required":           {`"required": ["id"]`, `"required": []`, nil},
		"more is required":           {`"required": ["id"]`, `"required": ["id", "size"]`, []string{"payload: size became required, which old events lack"}},
		"required where none was":    {`"type": "object", "required": ["name"]`, `"type": "object", "required": ["name", "size"]`, []string{"payload.files[]: size became required, which old events lack"}},
		"a property less":            {`"size": {"type": "integer"},`, ``, []string{"payload: property size was removed or renamed"}},
		"another type":               {`{"type": "integer"}`, `{"type": "string"}`, []string{`payload.size: type was "integer" and is now "string": narrower, or another`}},
		"a narrower type":            {`["array", "null"]`, `"array"`, []string{`payload.files: type was ["array","null"] and is now "array": narrower, or another`}},
		"a type where none was":      {`"free": {}`, `"free": {"type": "string"}`, []string{`payload.free: type was open and is now "string": narrower, or another`}},
		"a value of an enum less":    {`["open", "done"]`, `["open"]`, []string{`payload.state: enum was ["open","done"] and is now ["open"]: narrower`}},
		"an enum where none was":     {`{"type": "integer"}`, `{"type": "integer", "enum": [1]}`, []string{`payload.size: enum was open and is now [1]: narrower`}},
		"another pattern":            {`"^a$"`, `"^b$"`, []string{`payload.digest: pattern was "^a$" and is now "^b$"`}},
		"a keyword without a rule":   {`{"type": "integer"}`, `{"type": "integer", "maximum": 3}`, []string{`payload.size: maximum was open and is now 3`}},
		"a closed set of properties": {`"title": "a"`, `"additionalProperties": false`, []string{`payload: additionalProperties was open and is now false`}},
	} {
		if !strings.Contains(before, test.from) {
			t.Fatalf("%s: the schema has no %s", name, test.from)
		}
		got, err := eventcontract.Breaks([]byte(before), []byte(strings.Replace(before, test.from, test.to, 1)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
