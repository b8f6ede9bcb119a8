// Package tree reads a simplestreams tree from a folder: streams/v1/index.json, the documents it names, and the files at the paths of
// their items, as incus-simplestreams, simplestream-maintainer and images.linuxcontainers.org lay them out, and as imgsrv exports it. What the
// documents mean says package simplestreams; here they are found, and files are held against them. It knows nothing of what
// becomes of the images.
package tree

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// maxDocumentBytes bounds index.json and the documents of products. That of images.linuxcontainers.org has about 2 MB.
const maxDocumentBytes = 256 << 20

// Contents is what the documents of a tree list.
type Contents struct {
	Images []simplestreams.Image   // by document, product, version and type
	Passed []simplestreams.Problem // what was passed over, and why
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
	index, err := t.document(incus.IndexPath)
	if err != nil {
		return nil, err
	}
	documents, passed, err := simplestreams.ParseIndex(index)
	if err != nil {
		return nil, err
	}
	c := &Contents{Passed: passed}
	for _, entry := range documents {
		document, err := t.document(entry.Path)
		if err != nil {
			return nil, err
		}
		images, passed, err := simplestreams.ParseProducts(document)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", entry.Path, err)
		}
		c.Images, c.Passed = append(c.Images, images...), append(c.Passed, passed...)
	}
	return c, nil
}

func (t *Tree) document(name string) (data []byte, err error) {
	file, err := t.root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open a document of the tree: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if data, err = io.ReadAll(io.LimitReader(file, maxDocumentBytes+1)); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > maxDocumentBytes {
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxDocumentBytes)
	}
	return data, nil
}

// Files are an image's files in the order in which its fingerprint covers them.
func Files(i simplestreams.Image) []simplestreams.File {
	if i.Unified() {
		return []simplestreams.File{i.Root}
	}
	return []simplestreams.File{i.Metadata, i.Root}
}
