package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/internal/powerlosstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// noSync syncs nothing: the recorder beside it keeps count, and no test here cuts the power for real.
type noSync struct{ blob.Disk }

func (noSync) Sync(*os.File) error     { return nil }
func (noSync) SyncData(*os.File) error { return nil }
func (noSync) SyncFolder(string) error { return nil }

// fact is what the store has acknowledged: it holds after a power failure too.
type fact func(*blob.Store) error

// world is a store on a recorded disk, and what it has acknowledged so far.
type world struct {
	dir     string // of this world alone
	rec     *powerlosstest.Recorder
	store   *blob.Store
	facts   map[string]fact
	history []moment
	crashes int
}

// moment says what had been acknowledged after so many operations.
type moment struct {
	ops   int
	facts map[string]fact
}

func newWorld(set func(*powerlosstest.Recorder)) (*world, error) {
	base := ""
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "imgsrv-powerloss-*")
	if err != nil {
		return nil, err
	}
	w := &world{dir: dir, facts: map[string]fact{}}
	root := filepath.Join(dir, "storage")
	if err := os.Mkdir(root, 0o750); err != nil {
		return nil, err
	}
	w.store, err = blob.OpenOver(root, func(real blob.Disk) blob.Disk {
		w.rec = powerlosstest.New(root, noSync{real})
		if set != nil {
			set(w.rec)
		}
		return w.rec
	})
	return w, err
}

// acknowledged says that the store has answered; revoked, that it was asked for something that ends what it had said.
func (w *world) acknowledged(key string, f fact) {
	w.facts[key] = f
	w.history = append(w.history, moment{w.rec.Ops(), maps.Clone(w.facts)})
}

func (w *world) revoked(keys ...string) {
	for _, key := range keys {
		delete(w.facts, key)
	}
	w.history = append(w.history, moment{w.rec.Ops(), maps.Clone(w.facts)})
}

// crash cuts the power after n operations, and looks at what is left.
func (w *world) crash(n int, choose powerlosstest.Choice) error {
	w.crashes++
	dir := filepath.Join(w.dir, fmt.Sprint("after", w.crashes))
	if err := os.Mkdir(dir, 0o750); err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // with all of the world, later
	if err := w.rec.Crash(n, dir, choose); err != nil {
		return fmt.Errorf("build the disk after %d operations: %w", n, err)
	}
	s, err := blob.OpenOver(dir, func(real blob.Disk) blob.Disk { return noSync{real} })
	if err != nil {
		return err
	}
	// What holds at a moment held from the last operation before it on.
	var facts map[string]fact
	for _, m := range w.history {
		if m.ops <= n {
			facts = m.facts
		}
	}
	for key, holds := range facts {
		if err := holds(s); err != nil {
			return fmt.Errorf("after operation %d: %s was acknowledged: %w", n, key, err)
		}
	}
	return w.sound(dir, n)
}

// sound says that each blob's bytes match its name, whatever was acknowledged.
func (w *world) sound(dir string, n int) error {
	blobs, err := filepath.Glob(filepath.Join(dir, "cas/sha256/*/*"))
	if err != nil {
		return err
	}
	for _, path := range blobs {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if digestOf(data) != filepath.Base(path) {
			return fmt.Errorf("after operation %d: blob %s has %d other bytes", n, filepath.Base(path), len(data))
		}
	}
	return nil
}

// everywhere cuts the power after each operation, at its worst and in a way of chance.
func (w *world) everywhere(random *rand.Rand) error {
	for n := range w.rec.Ops() + 1 {
		if err := errors.Join(w.crash(n, powerlosstest.Worst), w.crash(n, random.IntN)); err != nil {
			return err
		}
	}
	return nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

var prefix = []byte("metadata")

// dataOf are the bytes of a session's n-th file; the first ones of all sessions are the same.
func dataOf(session string, n int) []byte {
	if n == 0 {
		return bytes.Repeat([]byte("the same "), 6)
	}
	return []byte("file of " + session)
}

func specOf(session string, n int) blob.IntakeSpec {
	spec := blob.IntakeSpec{SizeBytes: int64(len(dataOf(session, n)))}
	if n > 0 {
		spec.Prefix = prefix
	}
	return spec
}

func (w *world) createSession(session string) {
	if w.store.CreateSession(session) == nil {
		w.acknowledged("session "+session, func(s *blob.Store) error {
			_, err := s.SessionActivity(session)
			return err
		})
	}
}

func intakeKey(session string, n int) string { return fmt.Sprintf("intake %s/%d", session, n) }

// goesOn says that an intake has at least so many bytes, that they are the right ones, and that the rest can follow.
func goesOn(session string, n int, least int64) fact {
	return func(s *blob.Store) error {
		in, err := s.OpenIntake(session, n)
		if err != nil {
			return err
		}
		data := dataOf(session, n)
		if in.Offset() < least {
			return fmt.Errorf("offset %d, acknowledged were %d bytes", in.Offset(), least)
		}
		if _, err := in.Append(context.Background(), bytes.NewReader(data[in.Offset():])); err != nil {
			return err
		}
		sum, combined, err := in.Sums()
		if err == nil && (sum != digestOf(data) || n > 0 && combined != digestOf(append(prefix[:len(prefix):len(prefix)], data...))) {
			err = fmt.Errorf("sums %s and %s", sum, combined)
		}
		return err
	}
}

func (w *world) createIntake(session string, n int) {
	if in, err := w.store.CreateIntake(context.Background(), session, n, specOf(session, n)); err == nil {
		w.acknowledged(intakeKey(session, n), goesOn(session, n, in.Offset()))
	}
}

// receive appends at most so many bytes; a line that breaks is no reason to forget them.
func (w *world) receive(session string, n, bytesAtMost int, breaks bool) {
	in, err := w.store.OpenIntake(session, n)
	if err != nil {
		return
	}
	rest := dataOf(session, n)[in.Offset():]
	var r io.Reader = bytes.NewReader(rest[:min(bytesAtMost, len(rest))])
	if breaks {
		r = io.MultiReader(r, brokenReader{})
	}
	_, _ = in.Append(context.Background(), r) // what the handle says then is acknowledged, also with an error
	w.acknowledged(intakeKey(session, n), goesOn(session, n, in.Offset()))
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func jobFile(n int) string { return fmt.Sprint("file", n) }

// jobOf has files of its own, which no session gives.
func jobOf(session string) string { return "job-" + session }

func ingressKey(job, name string) string { return "ingress " + job + "/" + name }

func inIngress(job, name string, data []byte) fact {
	return func(s *blob.Store) error {
		f, err := s.OpenIngress(job, name)
		if err != nil {
			return err
		}
		return has(f, data)
	}
}

func inCAS(data []byte) fact {
	return func(s *blob.Store) error {
		f, _, err := s.OpenBlob(digestOf(data))
		if err != nil {
			return err
		}
		return has(f, data)
	}
}

func has(f *os.File, want []byte) error {
	got, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("has %q, want %q", got, want)
	}
	return err
}

// handOver is what the last PATCH does: the link, then (after the event) the intake goes.
func (w *world) handOver(session string, n int) {
	job, name := jobOf(session), jobFile(n)
	if w.store.LinkToIngress(context.Background(), session, n, job, name) != nil {
		return
	}
	w.acknowledged(ingressKey(job, name), inIngress(job, name, dataOf(session, n)))
	w.revoked(intakeKey(session, n))
	_ = w.store.DropIntake(session, n) // the link is what counts
}

func (w *world) writeIngress(job string, data []byte) {
	w.revoked(ingressKey(job, "made"))
	if w.store.WriteIngress(job, "made", data) == nil {
		w.acknowledged(ingressKey(job, "made"), inIngress(job, "made", data))
	}
}

// admit makes a blob of a file that stays in ingress.
func (w *world) admit(job, name string, data []byte) {
	if _, acknowledged := w.facts[ingressKey(job, name)]; !acknowledged {
		return
	}
	if w.store.Admit(context.Background(), job, name, digestOf(data), int64(len(data))) == nil {
		w.acknowledged("blob "+digestOf(data), inCAS(data))
	}
}

// make makes a blob of a file that another program has written, which syncs nothing, in a scratch folder.
func (w *world) make(data []byte) {
	scratch, err := w.store.NewScratch()
	if err != nil {
		return
	}
	defer scratch.Close() //nolint:errcheck // with all of the world, later
	if os.WriteFile(filepath.Join(scratch.Dir(), "made"), data, 0o600) != nil {
		return
	}
	if scratch.Admit(context.Background(), "made", digestOf(data), int64(len(data))) == nil {
		w.acknowledged("blob "+digestOf(data), inCAS(data))
	}
}

// collect takes a blob out of the store, and puts it back or removes it for good. Until that is decided it can be put back.
func (w *world) collect(data []byte, forGood bool) {
	key, digest := "blob "+digestOf(data), digestOf(data)
	if _, acknowledged := w.facts[key]; !acknowledged {
		return
	}
	unlock, err := w.store.LockTrash()
	if err != nil {
		return
	}
	defer unlock() //nolint:errcheck // nobody else wants it
	w.acknowledged(key, func(s *blob.Store) error {
		if inCAS(data)(s) == nil {
			return nil
		}
		return errors.Join(s.Recover(digest), inCAS(data)(s))
	})
	if w.store.Discard(digest) != nil {
		return
	}
	if forGood {
		w.revoked(key)
		_, _ = w.store.Destroy(digest) // gone, or not yet
	} else if w.store.Recover(digest) == nil {
		w.acknowledged(key, inCAS(data))
	}
}

func (w *world) removeSession(session string) {
	w.revoked("session "+session, intakeKey(session, 0), intakeKey(session, 1))
	_ = w.store.RemoveSession(session) // not there, or gone
}

func (w *world) removeIngress(job string) {
	w.revoked(ingressKey(job, jobFile(0)), ingressKey(job, jobFile(1)), ingressKey(job, "made"))
	_ = w.store.RemoveIngress(job) // as above
}

// oneOfEach is each thing that happens to a publication's bytes.
func (w *world) oneOfEach() {
	w.createSession("a")
	w.createIntake("a", 0)
	w.receive("a", 0, 20, true)
	w.createIntake("a", 1)
	w.receive("a", 1, 100, false)
	w.handOver("a", 1)
	w.receive("a", 0, 100, false)
	w.handOver("a", 0)
	w.writeIngress(jobOf("a"), []byte("made"))
	for n := range 2 {
		w.admit(jobOf("a"), jobFile(n), dataOf("a", n))
	}
	w.admit(jobOf("a"), "made", []byte("made"))
	w.collect(dataOf("a", 0), false)
	w.collect(dataOf("a", 1), true)
	w.removeSession("a")
	w.removeIngress(jobOf("a"))
	// Bytes that are a blob already.
	w.createSession("b")
	w.createIntake("b", 0)
	w.receive("b", 0, 100, false)
	w.handOver("b", 0)
	w.admit(jobOf("b"), jobFile(0), dataOf("b", 0))
	w.createSession("c")
	w.createIntake("c", 1)
	w.receive("c", 1, 3, false)
	w.removeSession("c")
	w.make([]byte("delta"))
}

func TestAPublicationSurvivesAPowerFailureAtAnyOperation(t *testing.T) {
	t.Parallel()
	for name, set := range map[string]func(*powerlosstest.Recorder){
		"on one file system": nil, "across file systems": func(r *powerlosstest.Recorder) { r.Apart = true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, err := newWorld(set)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(w.dir) })
			w.oneOfEach()
			if err := inCAS(dataOf("a", 0))(w.store); err != nil {
				t.Fatalf("the store doesn't work: %v", err)
			}
			for way := range uint64(3) {
				if err := w.everywhere(rand.New(rand.NewPCG(way, 0))); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d operations, %d power failures", w.rec.Ops(), w.crashes)
		})
	}
}

// A test that couldn't fail would say nothing: here each kind of sync is left out.
func TestASyncLeftOutIsNoticed(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"Sync", "SyncData", "SyncFolder"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w, err := newWorld(func(r *powerlosstest.Recorder) { r.Lie = kind })
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(w.dir) })
			w.oneOfEach()
			if err := w.everywhere(rand.New(rand.NewPCG(1, 0))); err == nil {
				t.Error("nothing was lost")
			}
		})
	}
}

func TestWhatTheStoreAcknowledgesSurvivesPowerFailures(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		apart := rapid.Bool().Draw(t, "across file systems")
		w, err := newWorld(func(r *powerlosstest.Recorder) { r.Apart = apart })
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(w.dir) //nolint:errcheck // a temporary folder
		for range rapid.IntRange(1, 15).Draw(t, "steps") {
			session, n := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "session"), rapid.IntRange(0, 1).Draw(t, "file")
			switch rapid.SampledFrom([]string{"begin", "begin", "receive", "receive", "hand over", "made", "admit", "admit", "admit made", "collect", "remove session", "remove ingress"}).Draw(t, "what") {
			case "begin":
				w.createSession(session)
				w.createIntake(session, n)
			case "receive":
				w.receive(session, n, rapid.IntRange(0, 80).Draw(t, "bytes"), rapid.Bool().Draw(t, "breaks"))
			case "hand over":
				w.handOver(session, n)
			case "made":
				w.writeIngress(jobOf(session), []byte(rapid.SampledFrom([]string{"made", "made anew"}).Draw(t, "bytes")))
			case "admit":
				w.admit(jobOf(session), jobFile(n), dataOf(session, n))
			case "collect":
				w.collect(dataOf(session, n), rapid.Bool().Draw(t, "for good"))
			case "admit made":
				w.admitMade(jobOf(session))
			case "remove session":
				w.removeSession(session)
			case "remove ingress":
				w.removeIngress(jobOf(session))
			}
		}
		random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "chance"), 0))
		for range 12 {
			n := random.IntN(w.rec.Ops() + 1)
			if err := errors.Join(w.crash(n, powerlosstest.Worst), w.crash(n, random.IntN)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// admitMade makes a blob of what was made last, whichever bytes that were.
func (w *world) admitMade(job string) {
	f, err := w.store.OpenIngress(job, "made")
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	data, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err == nil {
		w.admit(job, "made", data)
	}
}
