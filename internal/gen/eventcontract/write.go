package eventcontract

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgsrv/imgsrv/events"
)

// Places of the contract below the root of the repository.
const (
	schemaFolder   = "events/schemas"
	releasedFolder = "events/schemas/released" // what events in the world were written under
	asyncAPIFile   = "docs/asyncapi.yaml"
)

// Files makes the contract: content by path below root.
func Files(root string) (map[string][]byte, error) {
	schemas, err := schemasOf(root)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for typ, schema := range schemas {
		if out[schemaPath(schemaFolder, typ)], err = encode(schema); err != nil {
			return nil, fmt.Errorf("%s: %w", typ, err)
		}
	}
	if out[asyncAPIFile], err = asyncAPI(schemas); err != nil {
		return nil, err
	}
	return out, nil
}

func schemaPath(folder string, typ events.Type) string {
	return folder + "/" + string(typ) + ".json"
}

// Write makes the contract anew below root. A type that has no released schema yet gets one. With release,
// the others are brought up to date too, unless an old event might not satisfy one: then nothing is written.
func Write(root string, release bool) error {
	files, err := Files(root)
	if err != nil {
		return err
	}
	for _, typ := range events.Types() {
		path := schemaPath(releasedFolder, typ)
		earlier, err := os.ReadFile(filepath.Join(root, path))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("read released schema: %w", err)
		case !release:
			continue
		}
		later := files[schemaPath(schemaFolder, typ)]
		if earlier != nil {
			broken, err := Breaks(earlier, later)
			if err != nil {
				return fmt.Errorf("%s: %w", typ, err)
			}
			if len(broken) > 0 {
				return fmt.Errorf("%s: old events don't satisfy its schema: make a new version of the type instead:\n  %s", typ, strings.Join(broken, "\n  "))
			}
		}
		files[path] = later
	}
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // G301: a folder of the sources
			return fmt.Errorf("write the contract: %w", err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil { //nolint:gosec // G306: a file of the sources
			return fmt.Errorf("write the contract: %w", err)
		}
	}
	return nil
}
