package streams

import (
	"container/list"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	projection "github.com/imgsrv/imgsrv/projections/streams"
)

// Bounds of what is kept for readers of private images. Who comes after that costs an assembly more.
const (
	maxReaders     = 256
	maxReaderBytes = 64 << 20 // the newest one is kept even if it alone is larger
)

// private makes the documents of those who may read private images. They are made once for each set of such images and revision
// of the tables, however many ask for them; principals who may read the same images share them.
type private struct {
	db *database

	mu      sync.Mutex
	readers map[readerKey]*list.Element // of *reader
	recent  *list.List                  // the last used one first
	bytes   int
}

// readerKey is the SHA-256 of the names of the private images that may be read.
type readerKey [sha256.Size]byte

// reader is the two documents for those who may read the same private images.
type reader struct {
	key   readerKey
	bytes int // guarded by the mutex of private

	mu        sync.Mutex // held while documents are made
	view      *projection.View
	number    int                 // of the state that they are of; -1: of none
	documents map[string]*content // by path
}

func newPrivate(db *database) *private {
	return &private{db: db, readers: map[readerKey]*list.Element{}, recent: list.New()}
}

// latest gives a document for a principal, of the state given or of a newer one; nil if there is no private image that it may read, and the
// public document is the one it gets.
func (p *private) latest(ctx context.Context, who access.Principal, of *state, path string) (*content, error) {
	var readable []string
	for _, image := range of.private {
		if who.May(events.RoleReader, image) {
			readable = append(readable, image)
		}
	}
	if len(readable) == 0 {
		return nil, nil
	}
	r := p.reader(keyOf(readable), readable)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.number >= of.number {
		return r.documents[path], nil
	}
	started := time.Now()
	shown, err := r.view.Show(of.tables, of.shown)
	if err != nil {
		return nil, fmt.Errorf("make the simplestreams documents of %d private images: %w", len(readable), err)
	}
	// Without a time: the set's is about what the public sees, and the entity tag says more.
	r.documents, r.number = documentsOf(shown, time.Time{}), of.number
	own := shown.OwnBytes(of.shown)
	p.account(r, own)
	p.db.log.DebugContext(ctx, "simplestreams documents made for readers of private images", "private_images", len(readable),
		"bytes", shown.Images.Len(), "own_bytes", own, "took", time.Since(started))
	return r.documents[path], nil
}

func keyOf(readable []string) readerKey {
	sum := sha256.New()
	for _, image := range readable {
		_, _ = io.WriteString(sum, image+"\n") // a hash takes everything, and no name has a line break
	}
	return readerKey(sum.Sum(nil))
}

// reader finds the documents of a set of images, or a place for them.
func (p *private) reader(key readerKey, readable []string) *reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	if element, ok := p.readers[key]; ok {
		p.recent.MoveToFront(element)
		return element.Value.(*reader)
	}
	r := &reader{key: key, number: -1, view: projection.NewView(func(image string) bool {
		_, ok := slices.BinarySearch(readable, image)
		return ok
	})}
	p.readers[key] = p.recent.PushFront(r)
	for p.recent.Len() > maxReaders {
		p.forget(p.recent.Back())
	}
	return r
}

// account notes what a reader takes now, and makes room for it.
func (p *private) account(r *reader, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	element, ok := p.readers[r.key]
	if !ok || element.Value != r {
		return // forgotten meanwhile
	}
	p.bytes += bytes - r.bytes
	r.bytes = bytes
	for p.bytes > maxReaderBytes && p.recent.Back() != p.recent.Front() {
		p.forget(p.recent.Back())
	}
}

// forget is called with mu held.
func (p *private) forget(element *list.Element) {
	r := p.recent.Remove(element).(*reader)
	delete(p.readers, r.key)
	p.bytes -= r.bytes
}
