package derive_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/derive"
	"github.com/imgsrv/imgsrv/internal/convert"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/testtool"
	"github.com/imgsrv/imgsrv/store/blob"
)

const variant = "amd64.virtual-machine.default"

// works is where formats are made: a log, and a byte store with one published disk.
type works struct {
	t      *testing.T
	root   string
	log    *jetstream.Log
	store  *blob.Store
	digest events.Digest // of the disk
}

func newWorks(t *testing.T) *works {
	t.Helper()
	testtool.Need(t, "qemu-img")
	w := &works{t: t, root: t.TempDir(), log: natstest.Log(t)}
	var err error
	if w.store, err = blob.Open(w.root); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", path, "8M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	w.publish(data)
	return w
}

// publish makes a disk the one of version 1, as the publication would leave it.
func (w *works) publish(data []byte) {
	w.t.Helper()
	sum := sha256.Sum256(data)
	w.digest = events.Digest("sha256:" + hex.EncodeToString(sum[:]))
	if err := w.store.WriteIngress("job", "disk", data); err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Promote(w.t.Context(), "job", "disk", w.digest.Hex(), int64(len(data))); err != nil {
		w.t.Fatal(err)
	}
	manifest := &events.Manifest{Image: "debian", Version: "1", Visibility: events.Public, Variants: []events.ManifestVariant{{
		Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"}, Root: "disk.qcow2",
		Formats: []events.ManifestFormat{{Format: "disk.qcow2", Digest: w.digest, Size: int64(len(data)), MediaType: "application/x-qemu-disk", Disk: &events.DiskInfo{Version: 3}}},
	}}}
	w.append(events.Change{Fact: events.VersionPublished{Version: events.Version{Image: "debian", Version: "1", State: events.StatePublished, Manifest: manifest}}})
}

func (w *works) append(changes ...events.Change) {
	w.t.Helper()
	if _, err := w.log.Append(w.t.Context(), jetstream.Cause{}, changes...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *works) ask(format string, optional bool) {
	w.t.Helper()
	_, err := w.log.Decide(w.t.Context(), jetstream.Cause{}, func(ctx context.Context) ([]events.Change, error) {
		version, err := w.log.Version(ctx, "debian", "1")
		if err != nil {
			return nil, err
		}
		current, err := w.log.Derived(ctx, "debian", "1", variant, format)
		if err != nil {
			return nil, err
		}
		return events.Derive(events.RequestDerived{Image: "debian", Name: "1", Variant: variant, Format: format, Kind: events.DerivedFormat, Optional: optional,
			Version: version, By: "test", At: time.Now().UTC()}, current)
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// run starts the consumer of a node; stop ends it before the test does, and does something once it has been told to end.
func (w *works) run(change func(*derive.Config)) (stop func(meanwhile func())) {
	w.t.Helper()
	cfg := derive.Config{Log: w.log, Store: w.store, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Converter: convert.New(convert.Limits{Timeout: time.Minute}), Pause: time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	d, err := derive.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	var once sync.Once
	stop = func(meanwhile func()) {
		once.Do(func() {
			cancel()
			meanwhile()
			if err := <-done; err != nil {
				w.t.Errorf("the consumer ended: %v", err)
			}
		})
	}
	w.t.Cleanup(func() { stop(func() {}) })
	return stop
}

// await gives all facts of a format up to the one that leaves it in a state and without another try to come.
func (w *works) await(format string, state events.DerivedState) []events.Derived {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	tail, err := w.log.Tail(ctx, 0, events.DerivedEntity("debian", "1", variant, format).Subject())
	if err != nil {
		w.t.Fatal(err)
	}
	defer tail.Close()
	var all []events.Derived
	for {
		batch, err := tail.Next(ctx, 100)
		if err != nil {
			w.t.Fatalf("waiting until %s is %s: %v; so far %+v", format, state, err, all)
		}
		for _, e := range batch {
			d := e.Fact.(events.DerivedFact).After()
			all = append(all, d)
			if d.State == state && d.RetryAt.IsZero() {
				return all
			}
		}
	}
}

// scratch are the names of what is left of works.
func (w *works) scratch() (names []string) {
	w.t.Helper()
	err := filepath.WalkDir(filepath.Join(w.root, "cas", "tmp"), func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			names = append(names, e.Name())
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return names[1:]
}

func TestAFormatIsMadePromotedAndRecorded(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	stop := w.run(nil)
	w.ask("disk.raw", false)
	made := w.await("disk.raw", events.DerivedIsMade)
	last := made[len(made)-1]
	if last.RequestedBy != "test" || last.From == nil || last.From.Digest != w.digest || last.How == nil || last.How.Tool != "qemu-img" || last.Size != 8<<20 || last.MadeAt.IsZero() {
		t.Errorf("recorded %+v", last)
	}
	zeroes := w.await("disk.raw.map.json", events.DerivedIsMade)[0]
	for _, d := range []events.Derived{last, zeroes} {
		if there, err := w.store.HasBlob(d.Digest.Hex(), d.Size); !there {
			t.Errorf("the bytes of %s aren't in the store (%v)", d.Format, err)
		}
		if known, err := w.log.Blob(t.Context(), d.Digest); err != nil || known.State.Size != d.Size {
			t.Errorf("the blob of %s is recorded as %+v (%v)", d.Format, known.State, err)
		}
	}
	path, err := w.store.BlobPath(last.Digest.Hex())
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("the blob is %v (%v)", info, err)
	}
	// Asked for again, it stays as it is.
	w.ask("disk.raw", false)
	if again := w.await("disk.raw", events.DerivedIsMade); len(again) != len(made) {
		t.Errorf("asked for again: %+v", again)
	}
	stop(func() {})
	if left := w.scratch(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWithoutTheToolAFormatFailsOrIsSkipped(t *testing.T) {
	w := newWorks(t)
	t.Setenv("PATH", t.TempDir())
	w.run(nil)
	w.ask("disk.vmdk", false)
	failed := w.await("disk.vmdk", events.DerivedHasFailed)
	if p := failed[len(failed)-1].Problem; len(failed) != 2 || p.Code != convert.CodeToolAbsent || p.Final || !strings.Contains(p.Detail, "qemu-img is not installed") {
		t.Errorf("without qemu-img: %+v", failed)
	}
	w.ask("disk.vhdx", true)
	skipped := w.await("disk.vhdx", events.DerivedIsSkipped)
	if p := skipped[len(skipped)-1].Problem; len(skipped) != 2 || p.Code != convert.CodeToolAbsent {
		t.Errorf("an optional format without qemu-img: %+v", skipped)
	}
}

// The disk isn't one, though it was published as one: a few tries, and then it waits to be asked for again.
func TestABrokenDiskIsTriedAFewTimesAndThenGivenUp(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "qemu-img")
	w := &works{t: t, root: t.TempDir(), log: natstest.Log(t)}
	var err error
	if w.store, err = blob.Open(w.root); err != nil {
		t.Fatal(err)
	}
	w.publish([]byte("QFI\xfb\x00\x00\x00\x03 and no disk"))
	stop := w.run(nil)
	w.ask("disk.vmdk", false)
	facts := w.await("disk.vmdk", events.DerivedHasFailed)
	last := facts[len(facts)-1]
	if last.Attempts != 3 || last.Problem.Code != convert.CodeToolFailed || strings.Contains(last.Problem.Detail, w.root) {
		t.Errorf("given up with %+v, %+v", last, last.Problem)
	}
	stop(func() {})
	if left := w.scratch(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatCantBeMadeIsFinal(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	w.append(events.Change{Fact: events.DerivedRequested{Derived: events.Derived{Image: "debian", Version: "2", Variant: variant, Format: "disk.vmdk", Kind: events.DerivedFormat, State: events.DerivedIsRequested}}})
	w.append(events.Change{Fact: events.DerivedRequested{Derived: events.Derived{Image: "debian", Version: "1", Variant: variant, Format: "disk.new", Kind: events.DerivedFormat, State: events.DerivedIsRequested}}})
	// A delta is another consumer's.
	w.append(events.Change{Fact: events.DerivedRequested{Derived: events.Derived{Image: "debian", Version: "1", Variant: variant, Format: "disk.vcdiff", Kind: events.DerivedDelta, State: events.DerivedIsRequested}}})
	w.run(nil)
	w.ask("disk.vhdx", false)
	w.await("disk.vhdx", events.DerivedIsMade) // one at a time, in their order
	for _, want := range []struct{ version, format, state, code string }{
		{"2", "disk.vmdk", "failed", "not-published"}, {"1", "disk.new", "failed", "unknown-format"}, {"1", "disk.vcdiff", "requested", ""},
	} {
		current, err := w.log.Derived(t.Context(), "debian", want.version, variant, want.format)
		if err != nil {
			t.Fatal(err)
		}
		code := ""
		if current.State.Problem != nil {
			code = current.State.Problem.Code
		}
		if string(current.State.State) != want.state || code != want.code || current.State.Pending() != (want.code == "") {
			t.Errorf("%s is %+v with problem %+v", want.format, current.State, current.State.Problem)
		}
	}
}

// A node that stops in the middle leaves the work to the next one, which does it once.
func TestAWorkCutShortIsDoneOnceByTheNext(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	begun := make(chan struct{})
	ended := make(chan struct{})
	stop := w.run(func(cfg *derive.Config) {
		cfg.Started = func(events.Derived) {
			close(begun)
			<-ended
		}
	})
	w.ask("disk.vmdk", false)
	<-begun
	stop(func() { close(ended) })
	w.run(nil)
	facts := w.await("disk.vmdk", events.DerivedIsMade)
	if len(facts) != 2 || facts[1].Attempts != 0 {
		t.Errorf("the facts are %+v", facts)
	}
}
