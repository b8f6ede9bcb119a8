// Package tree reads a simplestreams tree of images from a folder: streams/v1/index.json, the documents it names, and the files at the
// paths of their items, as incus-simplestreams, simplestream-maintainer and images.linuxcontainers.org lay them out, and as imgsrv
// exports it. What counts as an image are the clients' rules (package clientrules names their sources). It reads files and hashes
// them, and knows nothing of what becomes of the images.
package tree

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/internal/incus"
)

// maxDocumentBytes bounds index.json and the documents of products. That of images.linuxcontainers.org has about 2 MB.
const maxDocumentBytes = 256 << 20

// Types of images, as clients and imgsrv name them.
const (
	Container      = "container"
	VirtualMachine = "virtual-machine"
)

// Image is what clients list as one image: a version of a product with one root.
type Image struct {
	Product string // its key in the document
	Serial  string // key of the version

	Fingerprint  string // SHA-256 of metadata followed by root, of a unified image that of the file; 64 lower-case hex digits
	Architecture string // canonical, such as amd64
	Type         string // Container or VirtualMachine

	OS           string
	Release      string
	ReleaseTitle string
	Version      string // of the operating system; in a tree of imgsrv's the version's name
	Variant      string // "" and "default" mean the same
	Label        string
	SupportEOL   string // YYYY-MM-DD, or ""
	Aliases      []string
	Requirements map[string]string

	Metadata File // of a unified image the one file it has
	Root     File // zero: the image is unified
}

// Unified says whether metadata and root are one file.
func (i *Image) Unified() bool { return i.Root == File{} }

// Files are the image's files, metadata first.
func (i *Image) Files() []File {
	if i.Unified() {
		return []File{i.Metadata}
	}
	return []File{i.Metadata, i.Root}
}

// File is a file of an image.
type File struct {
	Type   string // the item's ftype, such as disk-kvm.img
	Path   string // within the tree, with slashes
	SHA256 string // 64 lower-case hex digits
	Size   int64  // bytes
}

// Note is something about one product or version.
type Note struct{ Product, Serial, Text string }

func (n Note) String() string {
	if n.Serial == "" {
		return n.Product + ": " + n.Text
	}
	return n.Product + " " + n.Serial + ": " + n.Text
}

// Contents is what the documents of a tree list.
type Contents struct {
	Images []Image // by product, then version, oldest first
	Passed []Note  // what no client would list, or what another image stands for
	Bad    []Note  // what is listed, but can't be right: a file without a digest, a path out of the tree
}

// product is a product with the fields that clients read.
type product struct {
	Aliases         string             `json:"aliases"`
	Architecture    string             `json:"arch"`
	OS              string             `json:"os"`
	Release         string             `json:"release"`
	ReleaseTitle    string             `json:"release_title"`
	SupportEOL      string             `json:"support_eol"`
	Version         string             `json:"version"`
	Variant         string             `json:"variant"`
	Requirements    map[string]string  `json:"requirements"`
	LXDRequirements map[string]string  `json:"lxd_requirements"`
	Versions        map[string]version `json:"versions"`
}

type version struct {
	Items map[string]item `json:"items"`
	Label string          `json:"label"`
}

// item has the fields of incus.Item, and those that older generators write.
type item struct {
	incus.Item
	CombinedDisk1 string `json:"combined_disk1-img_sha256"`
	CombinedUEFI1 string `json:"combined_uefi1-img_sha256"`
	Combined      string `json:"combined_sha256"`
}

// Tree is an open folder. Close it.
type Tree struct{ root *os.Root }

// Open opens the folder of a tree. Nothing outside of it is ever read, wherever links in it lead.
func Open(dir string) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the tree: %w", err)
	}
	return &Tree{root}, nil
}

// Close closes the folder.
func (t *Tree) Close() error { return t.root.Close() }

// Read reads the documents; of the files it looks at nothing. The error says what is wrong with the documents as a whole.
func (t *Tree) Read() (*Contents, error) {
	var index struct {
		Index map[string]struct {
			DataType string   `json:"datatype"`
			Path     string   `json:"path"`
			Products []string `json:"products"`
		} `json:"index"`
	}
	if err := t.decode(incus.IndexPath, &index); err != nil {
		return nil, err
	}
	c := &Contents{}
	for _, name := range slices.Sorted(maps.Keys(index.Index)) {
		entry := index.Index[name]
		// As clients do: entries of another type and without products are passed over in silence.
		if entry.DataType != incus.DataType || len(entry.Products) == 0 {
			continue
		}
		if !local(entry.Path) {
			return nil, fmt.Errorf("%s: entry %s has the path %q, which leads out of the tree", incus.IndexPath, name, entry.Path)
		}
		var document struct {
			Products map[string]product `json:"products"`
		}
		if err := t.decode(entry.Path, &document); err != nil {
			return nil, err
		}
		for _, key := range slices.Sorted(maps.Keys(document.Products)) {
			c.product(key, document.Products[key])
		}
	}
	return c, nil
}

func (t *Tree) decode(name string, into any) (err error) {
	file, err := t.root.Open(name)
	if err != nil {
		return fmt.Errorf("open a document of the tree: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	data, err := io.ReadAll(io.LimitReader(file, maxDocumentBytes+1))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > maxDocumentBytes {
		return fmt.Errorf("%s has more than %d bytes", name, maxDocumentBytes)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("%s is no simplestreams document: %w", name, err)
	}
	return nil
}

// local says whether a path stays in the tree.
func local(p string) bool {
	return p != "" && !path.IsAbs(p) && path.Clean(p) != ".." && !strings.HasPrefix(path.Clean(p), "../") && !strings.Contains(p, "://") && !strings.ContainsAny(p, "\\\x00")
}
