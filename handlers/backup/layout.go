// Package backup copies a server's truth, the event stream and the blobs that it names, to a folder or bucket while the server
// runs, and makes a server's stores from such a copy. docs/backup.md describes the layout. It knows neither HTTP nor PostgreSQL.
//
// In a backup:
//
//	backup.json                          which stream it is of
//	points/<sequence>.json               one for each backup that was made: written last, so that it is there only for a whole one
//	events/<first>-<last>.jsonl.zst      the events, one jetstream.Record a line, zstd
//	cas/sha256/<2 hex>/<64 hex>          blobs
//	secrets/<sequence>/<name>            keys of the server, where they were asked for
//
// Sequences have 20 digits. A file never changes once it is there; what no point names is the leftover of a backup that was killed.
package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/vault"
)

// formatVersion is the layout's. A reader refuses a greater one.
const formatVersion = 1

const (
	identityName  = "backup.json"
	pointsFolder  = "points"
	eventsFolder  = "events"
	blobsFolder   = "cas/sha256"
	secretsFolder = "secrets"

	maxDocument = 64 << 20 // bytes of a JSON document that is read
)

// identityDocument says what a backup is of.
type identityDocument struct {
	Format  int       `json:"format"`
	Stream  string    `json:"stream"` // jetstream.Log.Identity
	BegunAt time.Time `json:"begun_at"`
}

// pointDocument is one backup that was made: the whole of the server's truth as of one event.
type pointDocument struct {
	Format   int             `json:"format"`
	Stream   string          `json:"stream"`
	Sequence events.Sequence `json:"sequence"` // of the last event
	MadeAt   time.Time       `json:"made_at"`
	Release  string          `json:"release"` // of imgsrv, that made it
	Segments []segmentEntry  `json:"segments"`
	Blobs    Amount          `json:"blobs"` // that the events name
	// Missing are blobs that the events name and that the server itself didn't have, or not as they should be.
	Missing []Missing `json:"missing,omitempty"`
	// Readers are how far the consumers had come before the backup began: none has handled anything that isn't in it.
	Readers []jetstream.Reader `json:"readers"`
	Secrets []secretEntry      `json:"secrets,omitempty"`
}

// segmentEntry is a file of events without gaps.
type segmentEntry struct {
	File   string          `json:"file"`
	First  events.Sequence `json:"first"`
	Last   events.Sequence `json:"last"`
	Bytes  int64           `json:"bytes"`
	SHA256 string          `json:"sha256"`
}

// Amount is a number of blobs.
type Amount struct {
	Count int   `json:"count"`
	Bytes int64 `json:"bytes"`
}

// Missing is a blob that isn't where it should be.
type Missing struct {
	Digest events.Digest `json:"digest"`
	Reason string        `json:"reason"`
}

// secretEntry is a file of the server's data folder.
type secretEntry struct {
	Name   string `json:"name"` // in the data folder
	File   string `json:"file"`
	SHA256 string `json:"sha256"`
}

// Errors that a caller decides on.
var (
	// ErrNoBackup: the place holds no backup, or none that was ended.
	ErrNoBackup = errors.New("there is no whole backup there")
	// ErrForeign: the place holds something else, or the backup of another stream.
	ErrForeign = errors.New("the place is taken")
)

func pointName(sequence events.Sequence) string {
	return fmt.Sprintf("%s/%020d.json", pointsFolder, sequence)
}

func blobName(sha256hex string) string {
	return blobsFolder + "/" + sha256hex[:2] + "/" + sha256hex
}

func readDocument(ctx context.Context, v vault.Vault, name string, into any) (err error) {
	r, err := v.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	text, err := io.ReadAll(io.LimitReader(r, maxDocument))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

func writeDocument(ctx context.Context, v vault.Vault, name string, document any) error {
	text, err := json.MarshalIndent(document, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return putBytes(ctx, v, name, append(text, '\n'))
}

func putBytes(ctx context.Context, v vault.Vault, name string, data []byte) error {
	return v.Put(ctx, name, int64(len(data)), hexSum(data), bytes.NewReader(data))
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// readIdentity says what the place is a backup of; ErrNoBackup where it is none.
func readIdentity(ctx context.Context, v vault.Vault) (identityDocument, error) {
	var id identityDocument
	err := readDocument(ctx, v, identityName, &id)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return id, fmt.Errorf("%w: %s has no %s", ErrNoBackup, v, identityName)
	case err != nil:
		return id, err
	case id.Format > formatVersion:
		return id, fmt.Errorf("%s is a backup in form %d, and this release knows up to %d: use a newer one", v, id.Format, formatVersion)
	}
	return id, nil
}

// pointsIn are the backups at a place, oldest first. ErrNoBackup where there is none.
func pointsIn(ctx context.Context, v vault.Vault) ([]pointDocument, error) {
	id, err := readIdentity(ctx, v)
	if err != nil {
		return nil, err
	}
	var names []string
	err = v.List(ctx, pointsFolder, func(name string, _ int64) error {
		if strings.HasSuffix(name, ".json") {
			names = append(names, name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	points := make([]pointDocument, len(names))
	for i, name := range names {
		if err := readDocument(ctx, v, name, &points[i]); err != nil {
			return nil, err
		}
		if err := points[i].check(id, name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if len(points) == 0 {
		return nil, fmt.Errorf("%w: none that was begun in %s was ended", ErrNoBackup, v)
	}
	return points, nil
}

func (p *pointDocument) check(id identityDocument, name string) error {
	switch {
	case p.Format > formatVersion:
		return fmt.Errorf("it is in form %d, and this release knows up to %d: use a newer one", p.Format, formatVersion)
	case p.Stream != id.Stream:
		return fmt.Errorf("it is of stream %s, and the backup of %s", p.Stream, id.Stream)
	case name != pointName(p.Sequence):
		return fmt.Errorf("it says that it is of event %d", p.Sequence)
	}
	next := events.Sequence(1)
	for _, s := range p.Segments {
		if s.First != next || s.Last < s.First {
			return fmt.Errorf("its segments have a gap: %s comes where event %d is due", s.File, next)
		}
		next = s.Last + 1
	}
	if next != p.Sequence+1 {
		return fmt.Errorf("its segments end at event %d", next-1)
	}
	return nil
}
