package limits

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/store/blob"
)

const (
	// window is what a day's bytes are counted over.
	window = 24 * time.Hour
	// sessionsRetry is what a client with too many open sessions is told to wait: one may end at any moment, by its
	// last byte or by an abort.
	sessionsRetry = 30 * time.Second

	// AutoReserve is [ReserveRule] for the reserve of the storage.
	AutoReserve = -1
	maxReserve  = 1 << 30

	// mostPromised keeps sums of declared sizes, each of which may be anything, from overflowing.
	mostPromised = 1 << 61
)

// ReserveRule is how many bytes of a storage of a size stay free where nobody says another number: 1 GiB, but no more
// than a twentieth, so that small disks can be used too.
func ReserveRule(totalBytes int64) int64 { return min(maxReserve, totalBytes/20) }

// IntakeConfig says what upload sessions may take.
type IntakeConfig struct {
	Events      *jetstream.Log
	Store       *blob.Store
	MaxSessions int   // that one principal has open; 0: no limit
	MaxPerDay   int64 // bytes that one principal's sessions declare in 24 hours, those of present files apart; 0: no limit
	Reserve     int64 // bytes of the storage that no upload may take; [AutoReserve] for [ReserveRule]
	Refusals    *Refusals
	Clock       func() time.Time // nil: time.Now
}

// Intake knows the open upload sessions and what was declared lately, and admits new sessions. It folds the events of
// uploads, those of other nodes too; sessions that this node opens are known at once, those of others as soon as their
// events come, which is a matter of milliseconds. It reads no PostgreSQL.
type Intake struct {
	cfg      IntakeConfig
	follower *jetstream.Follower

	mu   sync.Mutex // held while a session is judged, so that two never get the same room
	open map[string]*session
	used map[string]map[string]declared // by principal and session; empty without MaxPerDay
}

// session is one that waits for bytes.
type session struct {
	owner    string
	files    map[int]int64   // bytes of the files that are pending, by events.Upload.Index
	sequence events.Sequence // of its last event known here; 0: admitted here, its event is on the way
	deciding bool            // being opened: it may have neither a folder nor an event yet
}

// declared are the bytes that a session declared.
type declared struct {
	at    time.Time
	bytes int64
}

// NewIntake makes an intake that knows of nothing yet: [Intake.Load] reads what there is, [Intake.Follow] keeps up.
func NewIntake(cfg IntakeConfig) *Intake {
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	in := &Intake{cfg: cfg, open: map[string]*session{}, used: map[string]map[string]declared{}}
	in.follower = cfg.Events.Follow(in.apply, events.SubjectOfKind(events.KindUpload))
	return in
}

// Admission is the place of a session that is being opened. End has to be called, whatever became of it.
type Admission struct {
	intake *Intake
	id     string
	opened bool
}

// Opened says that the session's event was appended, or may have been.
func (a *Admission) Opened() { a.opened = true }

// End keeps the place of an opened session, and gives up that of one that wasn't opened. The nil Admission has none.
func (a *Admission) End() {
	if a == nil {
		return
	}
	a.intake.mu.Lock()
	defer a.intake.mu.Unlock()
	s := a.intake.open[a.id]
	switch {
	case s == nil || !s.deciding: // its event came meanwhile, or it is over already
	case a.opened:
		s.deciding = false
	default:
		delete(a.intake.open, a.id)
		delete(a.intake.used[s.owner], a.id)
	}
}

// Admit takes a place for a session that is about to be opened, or refuses: with 429 where its principal has as many
// open as it may or has declared its day's bytes, with 507 where the storage has no room that isn't promised or
// reserved already. Asking again for the same session replaces its place.
func (in *Intake) Admit(ctx context.Context, u events.Upload) (*Admission, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	limit, err := in.judge(u, false)
	if limit == openSessions || limit == storageReserve {
		// Before a refusal look what has arrived, and whether an end, or an arrived file, is only not known here yet.
		if limit, err = in.judge(u, true); limit == openSessions || limit == storageReserve {
			if err := in.refresh(ctx); err != nil {
				return nil, err
			}
			limit, err = in.judge(u, true)
		}
	}
	if err != nil {
		if limit != "" {
			in.cfg.Refusals.note(ctx, limit, u.InitiatedBy)
		}
		return nil, err
	}
	in.open[u.ID] = &session{owner: u.InitiatedBy, files: pending(u), deciding: true}
	in.declare(u, in.cfg.Clock())
	return &Admission{intake: in, id: u.ID}, nil
}

// judge compares a session with the limits. limit says which one refused it. Without a look at the disk it may refuse what there is
// room for, and never the other way.
func (in *Intake) judge(u events.Upload, look bool) (limit limitName, err error) {
	sessions, promised, err := in.sum(u, look)
	if err != nil {
		return "", err
	}
	if in.cfg.MaxSessions > 0 && sessions >= in.cfg.MaxSessions {
		return openSessions, problem.New(problem.CodeTooManySessions, fmt.Sprintf("%s has %d upload sessions open and may not have more: upload their files, or abort those that aren't needed", u.InitiatedBy, sessions)).After(sessionsRetry)
	}
	wanted := total(pending(u))
	if err := in.judgeDay(u, wanted); err != nil {
		return bytesPerDay, err
	}
	free, reserve, err := in.space()
	if err != nil {
		return "", err
	}
	if room := free - reserve - promised; wanted > room {
		return storageReserve, problem.New(problem.CodeStorageFull, fmt.Sprintf("the storage has no room for %d bytes: %d are free, of which %d are promised to open upload sessions and %d stay free", wanted, free, promised, reserve))
	}
	return "", nil
}

func (in *Intake) judgeDay(u events.Upload, wanted int64) error {
	if in.cfg.MaxPerDay <= 0 || wanted == 0 {
		return nil
	}
	if wanted > in.cfg.MaxPerDay {
		return problem.New(problem.CodeTooLarge, fmt.Sprintf("the session declares %d bytes, and %s may upload %d in 24 hours", wanted, u.InitiatedBy, in.cfg.MaxPerDay))
	}
	used, wait := in.usedBy(u.InitiatedBy, u.ID, in.cfg.MaxPerDay-wanted)
	if wait == 0 {
		return nil
	}
	return problem.New(problem.CodeQuota, fmt.Sprintf("%s has declared %d bytes in the last 24 hours and may %d: %d more fit when Retry-After says", u.InitiatedBy, used, in.cfg.MaxPerDay, wanted)).After(wait)
}

// sum counts the open sessions of a session's owner, that session itself apart, and the bytes that all open sessions
// were promised and have not brought yet. Where it isn't to look at the disk, which it would do for each session, these are all that
// they were promised.
func (in *Intake) sum(u events.Upload, look bool) (sessions int, promised int64, err error) {
	for id, s := range in.open {
		if id == u.ID {
			continue
		}
		var received map[int]int64
		if look && !s.deciding {
			received, err = in.cfg.Store.Received(id)
			if errors.Is(err, fs.ErrNotExist) {
				delete(in.open, id) // over: its folder went, with its end or by hand
				continue
			}
			if err != nil {
				return 0, 0, err
			}
		}
		if s.owner == u.InitiatedBy {
			sessions++
		}
		for n, size := range s.files {
			promised = min(promised+max(0, min(size, mostPromised)-received[n]), mostPromised)
		}
	}
	return sessions, promised, nil
}

// RoomFor refuses bytes that would take the reserve: for an upload that begins, or goes on, after others have filled
// the disk. What open sessions were promised is not looked at: who comes first may still finish.
func (in *Intake) RoomFor(ctx context.Context, bytes int64, who string) error {
	free, reserve, err := in.space()
	if err != nil || bytes <= free-reserve {
		return err
	}
	in.cfg.Refusals.note(ctx, storageReserve, who)
	return problem.New(problem.CodeStorageFull, fmt.Sprintf("the storage has no room for %d bytes: %d are free, of which %d stay free", bytes, free, reserve))
}

func (in *Intake) space() (free, reserve int64, err error) {
	free, size, err := in.cfg.Store.Space()
	if err != nil {
		return 0, 0, err
	}
	if reserve = in.cfg.Reserve; reserve == AutoReserve {
		reserve = ReserveRule(size)
	}
	return free, reserve, nil
}

// pending are the bytes of the files that have to be uploaded.
func pending(u events.Upload) map[int]int64 {
	files := map[int]int64{}
	n := 0
	for _, f := range u.Files() {
		if f.State == events.FilePending {
			files[n] = f.Size
		}
		n++
	}
	return files
}

// total is the sum, at most mostPromised.
func total(files map[int]int64) (sum int64) {
	for _, size := range files {
		sum = min(sum+min(size, mostPromised), mostPromised)
	}
	return sum
}
