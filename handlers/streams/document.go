package streams

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/pieces"
	projection "github.com/imgsrv/imgsrv/projections/streams"
)

// loadTimeout bounds reading the tables, all of them after a start or a rebuild.
const loadTimeout = 30 * time.Second

// content is one state of a document. It is never changed.
type content struct {
	etag     string    // hex, without what is added for a coding
	modified time.Time // zero for a document that never had anything in it
	body     pieces.Body
	plain    *pieces.Parts // of body
	coded    [2]coded      // of body, by coding

	mediaType string // "": JSON
	next      string // where the next page is, relative; "": this is the last one, or there are no pages
}

func newContent(modified time.Time, body pieces.Body) *content {
	return &content{etag: body.Tag(), modified: modified, body: body, plain: body.Parts()}
}

// coded is a compressed body, made when the first asks for it.
type coded struct {
	once  sync.Once
	parts *pieces.Parts // nil: it isn't smaller
	err   error
}

// as is the body in a coding; nil where it would not be smaller.
func (c *content) as(coding pieces.Coding, coder *pieces.Coder) (*pieces.Parts, error) {
	of := &c.coded[coding]
	of.once.Do(func() {
		if of.parts, of.err = coder.Compress(c.body, coding); of.err == nil && of.parts.Size() >= c.plain.Size() {
			of.parts = nil
		}
	})
	return of.parts, of.err
}

// state is the tables at one moment, with what everybody may see of them. It is never changed.
type state struct {
	tables  *projection.Tables
	number  int // counts states, the later one is higher
	private []string
	shown   *projection.Shown

	documents map[string]*content // by path
}

func documentsOf(shown *projection.Shown, modified time.Time) map[string]*content {
	return map[string]*content{
		incus.IndexPath:  newContent(modified, shown.Index),
		incus.ImagesPath: newContent(modified, shown.Images),
	}
}

// source gives states, each as soon as a request asks for it. While PostgreSQL is away it gives the last one known.
type source struct {
	db    *database
	known atomic.Pointer[state] // nil until PostgreSQL has answered
	turn  chan struct{}         // holds the right to read a new state and to use view, so that only one request does
	view  *projection.View

	revision *shared[projection.Revision]
	edition  func() (uint64, bool)
	checked  atomic.Uint64 // edition in which known was right
}

func newSource(db *database, edition func() (uint64, bool)) *source {
	if edition == nil {
		edition = func() (uint64, bool) { return 0, false }
	}
	return &source{db: db, edition: edition, turn: make(chan struct{}, 1), view: projection.NewView(func(string) bool { return false }),
		revision: newShared(func(ctx context.Context) (projection.Revision, error) { return projection.ReadRevision(ctx, db.pool) })}
}

// latest gives what is known, where it was right in this edition of the tables. Else it asks PostgreSQL for the revision, and for what has changed only if that is another one. It fails only if nothing is known
// or ctx has ended.
func (s *source) latest(ctx context.Context) (*state, error) {
	edition, ok := s.edition()
	checked := ok && s.checked.Load() == edition // before known: what is known then is as new
	known := s.known.Load()
	if known != nil && (checked || s.db.resting()) {
		return known, nil
	}
	fresh, err := s.read(ctx, known)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		s.db.failed(err)
		if known == nil {
			return nil, err
		}
		return known, nil
	}
	s.db.answered()
	if ok {
		s.check(edition)
	}
	return fresh, nil
}

// check notes that known is right in an edition. Of requests that overtake each other the later edition counts.
func (s *source) check(edition uint64) {
	for {
		checked := s.checked.Load()
		if checked >= edition || s.checked.CompareAndSwap(checked, edition) {
			return
		}
	}
}

// read gives a state that is at least as new as the revision at the time of the call.
func (s *source) read(ctx context.Context, known *state) (*state, error) {
	short, cancel := context.WithTimeout(ctx, s.db.timeout)
	defer cancel()
	revision, err := s.revision.get(short)
	if err != nil || known != nil && known.tables.Revision == revision {
		return known, err
	}
	wait := short
	if known == nil { // there is nothing better to do
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, loadTimeout)
		defer cancel()
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-wait.Done():
		return nil, fmt.Errorf("wait for another request that reads the simplestreams tables: %w", wait.Err())
	}
	if read := s.known.Load(); read != known { // by another request meanwhile
		known = read
		short, cancel := context.WithTimeout(ctx, s.db.timeout)
		defer cancel()
		revision, err := s.revision.get(short)
		if err != nil || known.tables.Revision == revision {
			return known, err
		}
	}
	// The next request wants it too, should this one's client have gone.
	long, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	return s.load(long, known)
}

// load is called with the turn taken.
func (s *source) load(ctx context.Context, known *state) (*state, error) {
	started := time.Now()
	var earlier *projection.Tables
	fresh := &state{}
	if known != nil {
		earlier, fresh.number = known.tables, known.number+1
	}
	var err error
	if fresh.tables, err = projection.ReadTables(ctx, s.db.pool, earlier); err != nil {
		return nil, err
	}
	read := time.Since(started)
	if fresh.shown, err = s.view.Show(fresh.tables, nil); err != nil {
		return nil, fmt.Errorf("make the simplestreams documents: %w", err)
	}
	fresh.private = fresh.tables.Private()
	fresh.documents = documentsOf(fresh.shown, fresh.shown.Changed.At)
	s.known.Store(fresh)
	s.db.log.DebugContext(ctx, "simplestreams documents made", "bytes", fresh.shown.Images.Len(), "reading", read, "took", time.Since(started))
	return fresh, nil
}

// database is PostgreSQL with what is known of its health, so that its absence is logged once and doesn't slow each request.
type database struct {
	pool           *pgxpool.Pool
	log            *slog.Logger
	pause, timeout time.Duration

	mu    sync.Mutex
	away  bool
	since time.Time // of the last failure
}

func (db *database) resting() bool {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.away && time.Since(db.since) < db.pause
}

func (db *database) failed(err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if !db.away {
		db.log.Warn("PostgreSQL doesn't give the simplestreams documents: the last known ones are served", "error", err)
	}
	db.away, db.since = true, time.Now()
}

func (db *database) answered() {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.away {
		db.log.Info("PostgreSQL gives the simplestreams documents again")
	}
	db.away = false
}
