package events

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
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

// goldens are all files of a type: beside the first, those of payloads with what a later release added to it,
// such as version_published.v1.attachments.json.
func goldens(t *testing.T, typ Type) []string {
	t.Helper()
	more, err := filepath.Glob(strings.TrimSuffix(golden(typ), ".json") + ".*.json")
	if err != nil {
		t.Fatal(err)
	}
	more = slices.DeleteFunc(more, func(file string) bool { return strings.HasSuffix(file, ".current.json") })
	return append([]string{golden(typ)}, more...)
}

// Each stored version of each type stays readable for ever: its golden file is never changed, and this
// test decodes it into today's type and compares what that encodes to with the .current file where the
// type has moved on, or with the golden file itself.
func TestEveryStoredVersionIsReadable(t *testing.T) {
	t.Parallel()
	known := map[string]bool{}
	for _, typ := range Types() {
		for _, file := range goldens(t, typ) {
			known[file] = true
			checkGolden(t, typ, file)
		}
	}
	files, err := filepath.Glob("testdata/*.v*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file, ".current.json") && !known[file] {
			t.Errorf("%s: no type reads it any more", file)
		}
	}
}

func checkGolden(t *testing.T, typ Type, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Errorf("type %s has no golden file: %v", typ, err)
		return
	}
	fact, err := Decode(typ, data)
	if err != nil {
		t.Errorf("%s: %v", file, err)
		return
	}
	encoded, err := json.Marshal(fact)
	if err != nil {
		t.Fatal(err)
	}
	want := data
	if fact.Type() != typ {
		if want, err = os.ReadFile(strings.TrimSuffix(file, ".json") + ".current.json"); err != nil {
			t.Errorf("%s is upcast to %s: %v", typ, fact.Type(), err)
			return
		}
	}
	if diff := cmp.Diff(decodeAny(t, want), decodeAny(t, encoded)); diff != "" {
		t.Errorf("%s after decoding (-file +fact):\n%s", file, diff)
	}
	if fact.Entity().ID == "" || strings.Contains(fact.Entity().Subject(), "..") {
		t.Errorf("%s: subject %q is incomplete", file, fact.Entity().Subject())
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
