package simplestreams

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// IndexPath is where clients look first; it is fixed in them.
const IndexPath = "streams/v1/index.json"

// Image is one image as clients would list it: a root with its metadata, or one unified tarball.
type Image struct {
	Product string // key of the product
	Serial  string // key of the version: begins with YYYYMMDD

	Architecture string // Debian's name, as package incus has it: amd64
	Type         string // container or virtual-machine
	OS           string
	Release      string
	ReleaseTitle string
	Codename     string
	Variant      string   // the product's, "default" where it names none
	Version      string   // the product's property, mostly ""
	Label        string   // the version's
	Aliases      []string // of the product, as written
	Requirements map[string]string
	SupportEOL   string    // YYYY-MM-DD, or ""
	Supported    bool      // as the product says
	CreatedAt    time.Time // the day in Serial, UTC

	// Fingerprint is what the server promises: SHA-256 of metadata followed by root, hex; of a unified image the tarball's own.
	Fingerprint string
	Metadata    File // zero for a unified image
	Root        File
	Deltas      []Delta // that make the root of another one
}

// Delta is a VCDIFF file that makes an image's root of the root of an earlier image.
type Delta struct {
	File
	// Bases are the fingerprints by which the earlier image may be known: clients read the one that is for squashfs, whatever the root
	// is, and a server that keeps to the names of the fields has that of a virtual machine in another.
	Bases []string
}

// Unified says that the image is one tarball with metadata and root in it.
func (i Image) Unified() bool { return i.Metadata.Path == "" }

// File is one file of an image.
type File struct {
	FileType string // incus.tar.xz, lxd.tar.xz, squashfs, root.tar.xz, disk-kvm.img, …
	Path     string // clean, relative to the server's address
	SHA256   string // 64 lower-case hex digits
	Size     int64  // bytes
}

// Problem is something that clients would pass over, or could not use.
type Problem struct {
	Where string // the place in the documents
	Text  string
}

func (p Problem) String() string { return p.Where + ": " + p.Text }

// Document is a document of products that an index leads to.
type Document struct {
	Path     string // clean, relative to the server's address
	Products []string
}

type indexDocument struct {
	Index  map[string]json.RawMessage `json:"index"`
	Format string                     `json:"format"`
}

type indexEntry struct {
	DataType string   `json:"datatype"`
	Path     string   `json:"path"`
	Products []string `json:"products"`
}

// ParseIndex gives the documents of images that an index.json leads to, by their paths. Entries of other kinds, and those
// without products, are passed over, as clients do. The error says that it is no index at all.
func ParseIndex(data []byte) ([]Document, []Problem, error) {
	var index indexDocument
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, nil, fmt.Errorf("read the simplestreams index: %w", err)
	}
	if index.Index == nil {
		return nil, nil, fmt.Errorf("read the simplestreams index: it has no member \"index\"")
	}
	var documents []Document
	var problems []Problem
	for name, raw := range index.Index {
		var entry indexEntry
		where := "index entry " + name
		if err := json.Unmarshal(raw, &entry); err != nil {
			problems = append(problems, Problem{where, err.Error()})
			continue
		}
		if entry.DataType != "image-downloads" || len(entry.Products) == 0 {
			continue
		}
		if err := checkPath(entry.Path); err != nil {
			problems = append(problems, Problem{where, err.Error()})
			continue
		}
		documents = append(documents, Document{Path: entry.Path, Products: entry.Products})
	}
	slices.SortFunc(documents, func(a, b Document) int { return strings.Compare(a.Path, b.Path) })
	documents = slices.CompactFunc(documents, func(a, b Document) bool { return a.Path == b.Path })
	sortProblems(problems)
	return documents, problems, nil
}

func sortProblems(problems []Problem) {
	slices.SortFunc(problems, func(a, b Problem) int { return strings.Compare(a.String(), b.String()) })
}

// checkPath wants a clean relative path: it is joined to an address, or to a folder.
func checkPath(p string) error {
	switch {
	case p == "":
		return fmt.Errorf("its path is empty")
	case strings.HasPrefix(p, "/") || path.Clean(p) != p || p == ".." || strings.HasPrefix(p, "../") || p == ".",
		strings.Contains(p, "://") || strings.ContainsAny(p, "\\\x00\n\r"):
		return fmt.Errorf("the path %q is not a clean relative path", p)
	}
	return nil
}
