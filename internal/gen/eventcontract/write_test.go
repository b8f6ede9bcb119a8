package eventcontract_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/gen/eventcontract"
)

const moved = "events/schemas/released/imgsrv.alias.moved.v2.json"

// project is a folder with the sources of package events, and nothing made of them yet.
func project(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := os.Mkdir(filepath.Join(folder, "events"), 0o755); err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob(filepath.Join(root, "events/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range sources {
		write(t, folder, filepath.Join("events", filepath.Base(path)), read(t, root, filepath.Join("events", filepath.Base(path))))
	}
	return folder
}

func read(t *testing.T, folder, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(folder, path))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t *testing.T, folder, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, path), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestANewTypeIsReleasedAsItIs(t *testing.T) {
	t.Parallel()
	folder := project(t)
	if err := eventcontract.Write(folder, false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, folder, moved), read(t, folder, strings.Replace(moved, "released/", "", 1))) {
		t.Error("the released schema is not the current one")
	}
}

func TestAReleasedSchemaMovesOnlyByARelease(t *testing.T) {
	t.Parallel()
	folder := project(t)
	if err := eventcontract.Write(folder, false); err != nil {
		t.Fatal(err)
	}
	now := read(t, folder, moved)
	// An earlier release knew fewer values.
	earlier := bytes.Replace(now, []byte("\"publication\",\n"), nil, 1)
	if bytes.Equal(earlier, now) {
		t.Fatal("the schema doesn't list what moves an alias")
	}
	write(t, folder, moved, earlier)
	if err := eventcontract.Write(folder, false); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, folder, moved), earlier) {
		t.Error("the released schema changed without a release")
	}
	if err := eventcontract.Write(folder, true); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, folder, moved), now) {
		t.Error("the release left the earlier schema")
	}
}

func TestAReleaseIsRefusedWhereOldEventsDontSatisfyASchema(t *testing.T) {
	t.Parallel()
	folder := project(t)
	if err := eventcontract.Write(folder, false); err != nil {
		t.Fatal(err)
	}
	earlier := bytes.Replace(read(t, folder, moved), []byte(`"previous": {`), []byte(`"came_from": {"type": "string"}, "previous": {`), 1)
	write(t, folder, moved, earlier)
	const other = "docs/asyncapi.yaml"
	write(t, folder, other, nil)
	err := eventcontract.Write(folder, true)
	if err == nil || !strings.Contains(err.Error(), "imgsrv.alias.moved.v2") || !strings.Contains(err.Error(), "property came_from was removed") {
		t.Errorf("error %v, want one that names type and property", err)
	}
	if !bytes.Equal(read(t, folder, moved), earlier) || len(read(t, folder, other)) != 0 {
		t.Error("a refused release has written files")
	}
}
