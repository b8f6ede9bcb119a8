package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/clearsign"

	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/tree"
	"github.com/imgsrv/imgsrv/internal/pause"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// ExportCmd writes what the server offers to Incus and LXD as files.
type ExportCmd struct {
	clientFlags `embed:""`

	Dir      string `arg:"" help:"Folder of the tree; it is made if it isn't there. A second export only fetches what is new." type:"path"`
	Delete   bool   `help:"Remove files from the tree that are no longer offered."`
	Private  bool   `help:"Export also the private images that the token may read. Whoever can read the folder can then read them."`
	Folders  bool   `help:"Export also the folders /images/IMAGE/VERSION/, as cloud images have them: all files of each version, formats and deltas that were made of it, and SHA256SUMS; aliases are symbolic links."`
	Check    bool   `help:"Read the files that are there already, and fetch those again whose bytes have changed."`
	Parallel int    `help:"So many downloads at once." default:"4" placeholder:"N"`
}

// exported is what the command writes with --json.
type exported struct {
	Dir        string `json:"dir"`
	Products   int    `json:"products"`
	Files      int    `json:"files"`      // all that the documents and the folders name
	Downloaded int    `json:"downloaded"` // of them
	Bytes      int64  `json:"bytes"`      // downloaded
	Linked     int    `json:"linked"`     // have the bytes of another file
	Kept       int    `json:"kept"`       // were there
	Deleted    int    `json:"deleted"`
	Signed     bool   `json:"signed"` // with .sjson documents
}

// Run exports.
func (cmd *ExportCmd) Run(ctx context.Context, t Terminal) error {
	if cmd.Parallel < 1 || cmd.Parallel > 64 {
		return usagef("--parallel is 1 to 64")
	}
	p := newProgress(t, cmd.Quiet)
	connect := cmd.anonymous
	if cmd.Private {
		if err := cmd.needToken(); err != nil {
			return err
		}
		connect = cmd.connect
	}
	c, err := connect(p)
	if err != nil {
		return err
	}
	if err := c.Exchange(ctx, ""); cmd.Private && err != nil {
		return interrupted(ctx, err, "nothing was exported")
	}
	set, err := readDocuments(ctx, c)
	if err != nil {
		return interrupted(ctx, err, "nothing was exported")
	}
	var plain *folders
	if cmd.Folders {
		if plain, err = readFolders(ctx, c); err != nil {
			return interrupted(ctx, err, "nothing was exported")
		}
		set.files = append(set.files, plain.files...)
	}
	run := &exportRun{dir: cmd.Dir, client: c, progress: p, parallel: cmd.Parallel, check: cmd.Check, folders: plain,
		result: exported{Dir: cmd.Dir, Products: set.products, Files: len(set.files), Signed: set.signed}}
	if err := run.run(ctx, set, cmd.Delete); err != nil {
		return interrupted(ctx, err, "the tree is as it was, beside files that the next run goes on from: "+resumeHint)
	}
	if cmd.JSON {
		return writeJSON(t.Out, run.result)
	}
	r := run.result
	_, err = fmt.Fprintf(t.Out, "%s: %d products, %d files: %d downloaded (%s), %d linked, %d kept; %d deleted\n",
		printable(r.Dir), r.Products, r.Files, r.Downloaded, size(r.Bytes), r.Linked, r.Kept, r.Deleted)
	return err
}

// documents is one state of all documents of a server.
type documents struct {
	byPath   map[string][]byte    // the index too
	files    []simplestreams.File // each path once
	products int
	signed   bool
}

// readDocuments reads documents of one state. A publication between two reads makes them differ; then all are read again.
func readDocuments(ctx context.Context, c *client.Client) (*documents, error) {
	const attempts = 20
	for attempt := 0; ; attempt++ {
		set, err := tryDocuments(ctx, c)
		if !errors.Is(err, errTorn) {
			return set, err
		}
		if attempt == attempts {
			return nil, fmt.Errorf("%w, %d times in a row: try again later", err, attempts)
		}
		if err := pause.For(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

// errTorn says that documents are of different states.
var errTorn = errors.New("the server's documents changed while they were read")

func tryDocuments(ctx context.Context, c *client.Client) (*documents, error) {
	index, err := c.StreamsDocument(ctx, incus.IndexPath)
	if err != nil {
		return nil, err
	}
	entries, err := tree.Entries(index)
	if err != nil {
		return nil, err
	}
	set := &documents{byPath: map[string][]byte{incus.IndexPath: index}}
	byPath := map[string]simplestreams.File{}
	for _, entry := range entries {
		document, err := c.StreamsDocument(ctx, entry.Path)
		if err != nil {
			return nil, err
		}
		files, products, err := tree.Named(document)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(products, entry.Products) {
			return nil, errTorn
		}
		set.byPath[entry.Path] = document
		set.products += len(products)
		for _, f := range files {
			if _, there := byPath[f.Path]; !there {
				set.files = append(set.files, f)
			}
			byPath[f.Path] = f
		}
	}
	if err := set.readSigned(ctx, c); err != nil {
		return nil, err
	}
	// The products alone don't tell of all changes.
	if again, err := c.StreamsDocument(ctx, incus.IndexPath); err != nil || !bytes.Equal(again, index) {
		return nil, errors.Join(errTorn, err)
	}
	return set, nil
}

// readSigned adds the clear-signed documents, where the server has them. Nobody here knows the key: they are compared with the
// plain ones.
func (set *documents) readSigned(ctx context.Context, c *client.Client) error {
	key, err := c.StreamsDocument(ctx, sjson.KeyPath)
	if client.IsProblem(err, client.CodeNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	signed := map[string][]byte{sjson.KeyPath: key}
	for path, plain := range set.byPath {
		if path == incus.IndexPath {
			if plain, err = sjson.Index(plain); err != nil {
				return err
			}
		}
		signedPath := strings.TrimSuffix(path, ".json") + ".sjson"
		document, err := c.StreamsDocument(ctx, signedPath)
		if err != nil {
			return err
		}
		block, _ := clearsign.Decode(document)
		if block == nil {
			return fmt.Errorf("%s is not clear-signed", signedPath)
		}
		if !bytes.Equal(bytes.TrimSpace(block.Plaintext), bytes.TrimSpace(plain)) {
			return errTorn
		}
		signed[signedPath] = document
	}
	for path, document := range signed {
		set.byPath[path] = document
	}
	set.signed = true
	return nil
}
