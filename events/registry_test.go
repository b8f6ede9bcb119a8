package events

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// golden is the file of a type: imgsrv.version.published.v1 -> testdata/version_published.v1.json.
func golden(t Type) string {
	name := strings.TrimPrefix(string(t), "imgsrv.")
	entity, rest, _ := strings.Cut(name, ".")
	return filepath.Join("testdata", entity+"_"+rest+".json")
}

// Each stored version of each type stays readable for ever: its golden file is never changed, and this
// test decodes it into today's type and compares what that encodes to with the .current file where the
// type has moved on, or with the golden file itself.
func TestEveryStoredVersionIsReadable(t *testing.T) {
	t.Parallel()
	for _, typ := range Types() {
		data, err := os.ReadFile(golden(typ))
		if err != nil {
			t.Errorf("type %s has no golden file: %v", typ, err)
			continue
		}
		fact, err := Decode(typ, data)
		if err != nil {
			t.Errorf("%s: %v", typ, err)
			continue
		}
		encoded, err := json.Marshal(fact)
		if err != nil {
			t.Fatal(err)
		}
		want := data
		if fact.Type() != typ {
			if want, err = os.ReadFile(strings.TrimSuffix(golden(typ), ".json") + ".current.json"); err != nil {
				t.Errorf("%s is upcast to %s: %v", typ, fact.Type(), err)
				continue
			}
		}
		if diff := cmp.Diff(decodeAny(t, want), decodeAny(t, encoded)); diff != "" {
			t.Errorf("%s after decoding (-file +fact):\n%s", typ, diff)
		}
		if fact.Entity().ID == "" || strings.Contains(fact.Entity().Subject(), "..") {
			t.Errorf("%s: subject %q of the golden file is incomplete", typ, fact.Entity().Subject())
		}
	}
	files, err := filepath.Glob("testdata/*.v*.json")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, typ := range Types() {
		known[golden(typ)] = true
	}
	for _, file := range files {
		if !strings.HasSuffix(file, ".current.json") && !known[file] {
			t.Errorf("%s: no type reads it any more", file)
		}
	}
}

func decodeAny(t *testing.T, data []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAnUnknownTypeIsAnErrorOfItsOwn(t *testing.T) {
	t.Parallel()
	if _, err := Decode("imgsrv.version.published.v99", []byte("{}")); !errors.Is(err, ErrUnknownType) {
		t.Errorf("error %v, want ErrUnknownType", err)
	}
	if _, err := Decode("imgsrv.version.published.v1", []byte("{")); err == nil || errors.Is(err, ErrUnknownType) {
		t.Errorf("broken JSON: error %v", err)
	}
}
