package limits_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

const variant = "amd64.virtual-machine.default"

// parts are an event log and a storage, and the intakes of nodes that share them.
type parts struct {
	t     *testing.T
	log   *jetstream.Log
	store *blob.Store
	root  string
	now   time.Time
}

func newParts(t *testing.T) *parts {
	t.Helper()
	root := t.TempDir()
	store, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return &parts{t: t, log: natstest.Log(t), store: store, root: root, now: time.Now()}
}

// node is an intake that has read what there is and, with follow, keeps up.
func (p *parts) node(follow bool, change func(*limits.IntakeConfig)) *limits.Intake {
	p.t.Helper()
	cfg := limits.IntakeConfig{Events: p.log, Store: p.store, Clock: func() time.Time { return p.now }}
	if change != nil {
		change(&cfg)
	}
	in := limits.NewIntake(cfg)
	if err := in.Load(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
	if follow {
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() {
			if err := in.Follow(ctx); err != nil {
				p.t.Errorf("follow: %v", err)
			}
		})
		p.t.Cleanup(func() { cancel(); running.Wait() })
	}
	return in
}

func (p *parts) session(owner string, sizes ...int64) events.Upload {
	id := uuid.Must(uuid.NewV7()).String()
	u := events.Upload{ID: id, Image: "image", Version: id, Visibility: events.Public, InitiatedBy: owner, InitiatedAt: p.now, State: events.SessionOpen,
		Variants: []events.UploadVariant{{Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"}}}}
	for i, size := range sizes {
		u.Variants[0].Files = append(u.Variants[0].Files, events.UploadFile{Format: fmt.Sprint("file", i), Size: size, State: events.FilePending})
	}
	return u
}

// open goes the way of a request: the place, the folder, the event.
func (p *parts) open(in *limits.Intake, u events.Upload) error {
	p.t.Helper()
	admission, err := in.Admit(p.t.Context(), u)
	if err != nil {
		return err
	}
	defer admission.End()
	if err := p.store.CreateSession(u.ID); err != nil {
		p.t.Fatal(err)
	}
	present := map[events.Digest]events.Current[events.Blob]{}
	for _, f := range u.Variants[0].Files {
		if f.State == events.FilePresent {
			if present[f.Digest], err = p.log.Blob(p.t.Context(), f.Digest); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	changes, err := events.Initiate(events.InitiateUpload{Session: u, Present: present, IsArchitecture: func(string) bool { return false }})
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.log.Append(p.t.Context(), jetstream.Cause{Actor: u.InitiatedBy}, changes...); err != nil {
		p.t.Fatal(err)
	}
	admission.Opened()
	return nil
}

func (p *parts) abort(u events.Upload) {
	p.t.Helper()
	_, err := p.log.Decide(p.t.Context(), jetstream.Cause{}, func(ctx context.Context) ([]events.Change, error) {
		upload, err := p.log.Upload(ctx, u.ID)
		if err != nil {
			return nil, err
		}
		version, err := p.log.Version(ctx, u.Image, u.Version)
		if err != nil {
			return nil, err
		}
		return events.AbortUpload(upload, version, "")
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// refusal is what a client is told.
type refusal struct {
	status     int
	retryAfter string
	detail     string
}

func (p *parts) refused(what string, err error, code string) refusal {
	p.t.Helper()
	details := problem.From(err)
	if err == nil || details.Code != code {
		p.t.Fatalf("%s: %v, want %s", what, err, code)
	}
	return refusal{details.Status, details.GetHeaders().Get("Retry-After"), details.Detail}
}

func (p *parts) admitted(what string, err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
}

// arrive lets a whole file of a session arrive.
func (p *parts) arrive(u events.Upload, n int, size int64) {
	p.t.Helper()
	if err := p.store.DropIntake(u.ID, n); err != nil {
		p.t.Fatal(err)
	}
	_, err := p.log.Decide(p.t.Context(), jetstream.Cause{}, func(ctx context.Context) ([]events.Change, error) {
		upload, err := p.log.Upload(ctx, u.ID)
		if err != nil {
			return nil, err
		}
		return events.Complete(events.CompleteFile{File: events.FileRef{Variant: variant, Format: fmt.Sprint("file", n)}, Size: size,
			Digest: events.Digest("sha256:" + strings.Repeat("0", 64)), Ingress: "file", At: p.now}, upload)
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

func TestOpenSessionsAreCountedForEachPrincipal(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	two := func(c *limits.IntakeConfig) { c.MaxSessions = 2 }
	in := p.node(true, two)
	first, second := p.session("ci", 1), p.session("ci", 1, 1)
	p.admitted("first", p.open(in, first))
	p.admitted("second", p.open(in, second))
	if d := p.refused("third", p.open(in, p.session("ci", 1)), "too-many-sessions"); d.status != 429 || d.retryAfter == "" {
		t.Errorf("refused with %+v", d)
	}
	p.admitted("of another principal", p.open(in, p.session("cd", 1)))

	// After a restart, and on another node, the same holds.
	again := p.node(false, two)
	p.refused("third after a restart", p.open(again, p.session("ci", 1)), "too-many-sessions")

	// One ends: known at once, also where the events are not followed.
	p.abort(first)
	admission, err := again.Admit(t.Context(), p.session("ci", 1))
	p.admitted("after an abort, on the other node", err)
	admission.End()
	p.admitted("after an abort", p.open(in, p.session("ci", 1)))
	p.refused("fourth", p.open(in, p.session("ci", 1)), "too-many-sessions")
	// One that has all its files waits for nothing.
	p.arrive(second, 0, 1)
	p.refused("one of two files there", p.open(in, p.session("ci", 1)), "too-many-sessions")
	p.arrive(second, 1, 1)
	p.admitted("complete", p.open(in, p.session("ci", 1)))
}

func TestASessionThatWasNotOpenedTakesNoPlace(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	in := p.node(true, func(c *limits.IntakeConfig) { c.MaxSessions, c.MaxPerDay = 1, 100 })
	u := p.session("ci", 100)
	for range 3 { // as when the decision is made anew
		admission, err := in.Admit(t.Context(), u)
		p.admitted("a session that asks again", err)
		defer admission.End() // twice is once
		p.refused("another one meanwhile", p.open(in, p.session("ci", 1)), "too-many-sessions")
		admission.End()
	}
	p.admitted("after it was given up", p.open(in, p.session("ci", 100)))
}

func TestBytesOfADayAreCountedAndComeBack(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	quota := func(c *limits.IntakeConfig) { c.MaxPerDay = 1000 }
	begin := p.now
	// The events' own times are the log's, which is about now.
	in := p.node(true, quota)
	first := p.session("ci", 300, 300)
	p.admitted("600 of 1000", p.open(in, first))
	p.refused("500 more", p.open(in, p.session("ci", 500)), "quota-exhausted")
	p.refused("more than a day's", p.open(in, p.session("ci", 1001)), "too-large")
	p.refused("more than any number", p.open(in, p.session("ci", 1<<62, 1<<62, 1<<62)), "too-large")
	p.admitted("400 more", p.open(in, p.session("ci", 400)))
	p.admitted("of another principal", p.open(in, p.session("cd", 1000)))
	present := p.session("ci", 999)
	present.Variants[0].Files[0].State, present.Variants[0].Files[0].Digest = events.FilePresent, events.Digest("sha256:"+strings.Repeat("0", 64))
	if _, err := p.log.Append(t.Context(), jetstream.Cause{}, events.PromoteBlob(events.Blob{Digest: present.Variants[0].Files[0].Digest, Size: 999}, events.Current[events.Blob]{})...); err != nil {
		t.Fatal(err)
	}
	p.admitted("nothing but what is there already", p.open(in, present))

	p.abort(first)
	p.refused("after an abort, which gives nothing back", p.open(in, p.session("ci", 1)), "quota-exhausted")
	restarted := p.node(false, quota)
	d := p.refused("after a restart", p.open(restarted, p.session("ci", 1)), "quota-exhausted")
	if wait, err := time.ParseDuration(d.retryAfter + "s"); err != nil || wait < 23*time.Hour || wait > 24*time.Hour+time.Minute {
		t.Errorf("Retry-After %v (%v), want about a day", wait, err)
	}
	p.now = begin.Add(25 * time.Hour)
	p.admitted("a day later", p.open(restarted, p.session("ci", 1000)))
	p.admitted("a day later, after a restart", p.open(p.node(false, quota), p.session("cd", 1000)))
}

func TestTheStoragesRoomIsPromisedOnce(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	in, other := p.node(true, nil), p.node(true, nil)
	free, err := p.store.Free()
	if err != nil {
		t.Fatal(err)
	}
	part := free / 10 * 4 // room for two

	// Many at once get no more than there is.
	sessions, results := make([]events.Upload, 8), make([]error, 8)
	var asking sync.WaitGroup
	for i := range sessions {
		sessions[i] = p.session("ci", part)
		asking.Go(func() { results[i] = p.open(in, sessions[i]) })
	}
	asking.Wait()
	var opened []events.Upload
	for i, err := range results {
		if err == nil {
			opened = append(opened, sessions[i])
			continue
		}
		if d := p.refused("too many", err, "storage-full"); d.status != 507 || !strings.Contains(d.detail, fmt.Sprint(part)) {
			t.Errorf("refused with %+v", d)
		}
	}
	if len(opened) != 2 {
		t.Fatalf("%d sessions were opened, want 2", len(opened))
	}
	p.refused("after a restart", p.open(p.node(false, nil), p.session("cd", part)), "storage-full")
	// The other node knows as soon as it has seen the events.
	for deadline := time.Now().Add(20 * time.Second); ; {
		u := p.session("cd", part)
		admission, err := other.Admit(t.Context(), u)
		if err != nil {
			p.refused("on the other node", err, "storage-full")
			break
		}
		admission.End()
		if time.Now().After(deadline) {
			t.Fatal("the other node doesn't see the sessions")
		}
		time.Sleep(time.Millisecond)
	}
	// Whose folder is gone is over; so is what was aborted, though its folder may still be there.
	if err := p.store.RemoveSession(opened[0].ID); err != nil {
		t.Fatal(err)
	}
	again := p.session("ci", part)
	p.admitted("after one has expired", p.open(in, again))
	p.abort(opened[1])
	p.admitted("after one was aborted", p.open(in, p.session("ci", part)))
	// An arrived file takes its room on the disk, no longer beside it.
	p.arrive(again, 0, part)
	p.admitted("after a file has arrived", p.open(in, p.session("ci", part)))
	p.refused("more than any number", p.open(in, p.session("ci", 1<<62, 1<<62, 1<<62)), "storage-full")
}

// Many sessions may be open: as long as there is room for all that they declared, nobody looks into the folder of each.
func TestAPlaceCostsNoLookAtOtherSessionsWhileThereIsRoom(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	in := p.node(true, nil)
	other := p.session("ci", 1000)
	if err := p.open(in, other); err != nil {
		t.Fatal(err)
	}
	// In place of its folder something that can't be looked into.
	folder := filepath.Join(p.root, "uploads", other.ID)
	if err := errors.Join(os.RemoveAll(folder), os.WriteFile(folder, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := p.open(in, p.session("ci", 1000)); err != nil {
		t.Error(err)
	}
}

func TestTheReserveStaysFree(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	free, total, err := p.store.Space()
	if err != nil {
		t.Fatal(err)
	}
	in := p.node(false, func(c *limits.IntakeConfig) { c.Reserve = free / 2 })
	p.refused("into the reserve", p.open(in, p.session("ci", free/10*7)), "storage-full")
	p.refused("an upload into the reserve", in.RoomFor(t.Context(), free/10*7, "ci"), "storage-full")
	p.admitted("beside it", p.open(in, p.session("ci", free/10*3)))
	p.admitted("an upload beside it", in.RoomFor(t.Context(), free/10*3, "ci"))
	auto := p.node(false, func(c *limits.IntakeConfig) { c.Reserve = limits.AutoReserve })
	p.refused("an upload of all", auto.RoomFor(t.Context(), free, "ci"), "storage-full")
	if got := limits.ReserveRule(total); got <= 0 || got > total/20 {
		t.Errorf("a storage of %d bytes has a reserve of %d", total, got)
	}
	if small, large := limits.ReserveRule(2<<20), limits.ReserveRule(1<<50); small != 104857 || large != 1<<30 {
		t.Errorf("reserves %d and %d", small, large)
	}
}

// What has arrived lies on the disk, and is not kept free a second time.
func TestReceivedBytesAreNotPromisedTwice(t *testing.T) {
	t.Parallel()
	p := newParts(t)
	u := p.session("ci", 5_000_000)
	if err := p.store.CreateSession(u.ID); err != nil {
		t.Fatal(err)
	}
	if received, err := p.store.Received(u.ID); err != nil || len(received) != 0 {
		t.Fatalf("received %v (%v)", received, err)
	}
	intake, err := p.store.CreateIntake(t.Context(), u.ID, 0, blob.IntakeSpec{SizeBytes: 5_000_000})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := intake.Append(t.Context(), strings.NewReader(strings.Repeat("x", 3_000_000))); err != nil {
		t.Fatal(err)
	}
	if received, err := p.store.Received(u.ID); err != nil || len(received) != 1 || received[0] != 3_000_000 {
		t.Errorf("received %v (%v), want 3000000 of file 0", received, err)
	}
	if _, err := p.store.Received(filepath.Join("..", "x")); err == nil {
		t.Error("a path was taken for a session")
	}
}
