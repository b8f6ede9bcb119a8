package tree

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

var digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Entry is a document that an index names, and the products that it says are in it.
type Entry struct {
	Path     string
	Products []string // sorted
}

// Entries are the documents of images that an index names, also those without products, by their names in the index.
func Entries(index []byte) ([]Entry, error) {
	var document incus.Index
	if err := json.Unmarshal(index, &document); err != nil {
		return nil, fmt.Errorf("%s is no simplestreams index: %w", incus.IndexPath, err)
	}
	var entries []Entry
	for _, name := range slices.Sorted(maps.Keys(document.Index)) {
		entry := document.Index[name]
		if entry.DataType != incus.DataType {
			continue
		}
		if !local(entry.Path) || !strings.HasPrefix(entry.Path, streamsFolder) {
			return nil, fmt.Errorf("%s names the document %q, which is not in %s", incus.IndexPath, entry.Path, streamsFolder)
		}
		slices.Sort(entry.Products)
		entries = append(entries, Entry{entry.Path, entry.Products})
	}
	return entries, nil
}

// streamsFolder has the documents, and no files of images.
const streamsFolder = "streams/"

// Named are all files that a document of products names, each path once and sorted, and the keys of the products, sorted. Whatever
// the items are, each has to have a path within the tree that is not a document's, a size and a digest.
func Named(products []byte) (files []simplestreams.File, keys []string, err error) {
	var document incus.Products
	if err := json.Unmarshal(products, &document); err != nil {
		return nil, nil, fmt.Errorf("read a simplestreams document: %w", err)
	}
	byPath := map[string]simplestreams.File{}
	for key, p := range document.Products {
		for serial, v := range p.Versions {
			for _, it := range v.Items {
				f := simplestreams.File{FileType: it.FileType, Path: it.Path, SHA256: it.SHA256, Size: it.SizeBytes}
				if !local(f.Path) || strings.HasPrefix(f.Path, streamsFolder) || strings.HasPrefix(f.Path, ".") || !digestPattern.MatchString(f.SHA256) || f.Size <= 0 {
					return nil, nil, fmt.Errorf("product %s, version %s: an item with path %q, sha256 %q and size %d can't be a file of a tree", key, serial, f.Path, f.SHA256, f.Size)
				}
				other, there := byPath[f.Path]
				if there && (other.SHA256 != f.SHA256 || other.Size != f.Size) {
					return nil, nil, fmt.Errorf("product %s, version %s: %s has two digests", key, serial, f.Path)
				}
				byPath[f.Path] = f
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byPath)) {
		files = append(files, byPath[name])
	}
	return files, slices.Sorted(maps.Keys(document.Products)), nil
}

// local says whether a path is a clean one that stays in the tree.
func local(p string) bool {
	return p != "" && p != "." && path.Clean(p) == p && !path.IsAbs(p) && p != ".." && !strings.HasPrefix(p, "../") && !strings.Contains(p, "://") && !strings.ContainsAny(p, "\\\x00")
}
