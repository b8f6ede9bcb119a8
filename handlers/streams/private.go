package streams

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/incus"
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

	known   atomic.Pointer[tables] // nil until PostgreSQL has answered
	reading sync.Mutex             // held while the tables are read, so that only one request does that

	mu      sync.Mutex
	readers map[readerKey]*list.Element // of *reader
	recent  *list.List                  // the last used one first
	bytes   int
}

// tables are one state of what documents are made of. It is never changed.
type tables struct {
	projection.Tables
	number  int      // counts states, the later one is higher
	private []string // names of private images, sorted
}

// readerKey is the SHA-256 of the names of the private images that may be read.
type readerKey [sha256.Size]byte

// reader is the two documents for those who may read the same private images.
type reader struct {
	key  readerKey
	of   *tables
	once sync.Once // makes what is below

	documents map[string]*content // by path
	err       error
	bytes     int
}

func newPrivate(db *database) *private {
	return &private{db: db, readers: map[readerKey]*list.Element{}, recent: list.New()}
}

// latest gives a document for a principal; nil if there is no private image that it may read, and the public document is the
// one it gets. While PostgreSQL is away it is made of the last tables known; it fails only if there are none or ctx has ended.
func (p *private) latest(ctx context.Context, who access.Principal, path string) (*content, error) {
	tables, err := p.tables(ctx)
	if err != nil {
		return nil, err
	}
	var readable []string
	for _, image := range tables.private {
		if who.May(events.RoleReader, image) {
			readable = append(readable, image)
		}
	}
	if len(readable) == 0 {
		return nil, nil
	}
	r := p.reader(keyOf(readable), tables)
	r.once.Do(func() {
		started := time.Now()
		r.err = errors.New("making the simplestreams documents of private images was broken off") // by a panic
		r.err = r.assemble(readable)
		p.account(r)
		p.db.log.DebugContext(ctx, "simplestreams documents made for readers of private images", "private_images", len(readable),
			"bytes", r.bytes, "took", time.Since(started))
	})
	return r.documents[path], r.err
}

func keyOf(readable []string) readerKey {
	sum := sha256.New()
	for _, image := range readable {
		_, _ = io.WriteString(sum, image+"\n") // a hash takes everything, and no name has a line break
	}
	return readerKey(sum.Sum(nil))
}

// tables asks PostgreSQL for the revision, and for the rows only if that is another one.
func (p *private) tables(ctx context.Context) (*tables, error) {
	known := p.known.Load()
	if known != nil && p.db.resting() {
		return known, nil
	}
	fresh, err := p.read(ctx, known)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		p.db.failed(err)
		if known == nil {
			return nil, err
		}
		return known, nil
	}
	p.db.answered()
	return fresh, nil
}

func (p *private) read(ctx context.Context, known *tables) (*tables, error) {
	ctx, cancel := context.WithTimeout(ctx, p.db.timeout)
	defer cancel()
	revision, err := projection.ReadRevision(ctx, p.db.pool)
	if err != nil || known != nil && known.Revision == revision {
		return known, err
	}
	p.reading.Lock()
	defer p.reading.Unlock()
	if read := p.known.Load(); read != known { // by another request meanwhile
		known = read
		revision, err := projection.ReadRevision(ctx, p.db.pool)
		if err != nil || known.Revision == revision {
			return known, err
		}
	}
	rows, err := projection.ReadTables(ctx, p.db.pool)
	if err != nil {
		return nil, err
	}
	fresh := &tables{Tables: rows}
	if known != nil {
		fresh.number = known.number + 1
	}
	for _, image := range rows.Images {
		if image.Visibility != events.Public {
			fresh.private = append(fresh.private, image.Name)
		}
	}
	slices.Sort(fresh.private)
	p.known.Store(fresh)
	return fresh, nil
}

// reader finds the documents of a set of images, or a place for them. They are of the tables given, or of newer ones.
func (p *private) reader(key readerKey, of *tables) *reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	if element, ok := p.readers[key]; ok {
		if r := element.Value.(*reader); r.of.number >= of.number {
			p.recent.MoveToFront(element)
			return r
		}
		p.forget(element)
	}
	r := &reader{key: key, of: of}
	p.readers[key] = p.recent.PushFront(r)
	for p.recent.Len() > maxReaders {
		p.forget(p.recent.Back())
	}
	return r
}

// account counts the bytes of a reader that has just been assembled, and makes room for them.
func (p *private) account(r *reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	element, ok := p.readers[r.key]
	if !ok || element.Value != r {
		return // replaced meanwhile
	}
	for _, c := range r.documents {
		r.bytes += len(c.body) + len(c.zipped)
	}
	p.bytes += r.bytes
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

func (r *reader) assemble(readable []string) error {
	set, err := projection.DocumentsFor(r.of.Products, r.of.Aliases, r.of.Images, func(image string) bool {
		_, ok := slices.BinarySearch(readable, image)
		return ok
	})
	if err != nil {
		return fmt.Errorf("make the simplestreams documents of %d private images: %w", len(readable), err)
	}
	documents := map[string]*content{}
	for path, body := range map[string][]byte{incus.IndexPath: set.Index, incus.ImagesPath: set.Images} {
		sum := sha256.Sum256(body)
		// Without a time: the set's is about what the public sees, and the entity tag says more.
		c, err := newContent(hex.EncodeToString(sum[:]), time.Time{}, body)
		if err != nil {
			return err
		}
		documents[path] = c
	}
	r.documents = documents
	return nil
}
