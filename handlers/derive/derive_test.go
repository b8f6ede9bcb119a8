package derive_test

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/derive"
	"github.com/imgsrv/imgsrv/internal/convert"
	"github.com/imgsrv/imgsrv/internal/testtool"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

const variant = "amd64.virtual-machine.default"

// works is where formats are made, of one published disk.
type works struct {
	*workstest.Works
	digest events.Digest // of the disk
}

func newWorks(t *testing.T) *works {
	t.Helper()
	testtool.Need(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "create", "-q", "-f", "qcow2", path, "8M").CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return worksOf(t, data)
}

// worksOf publishes a disk as version 1.
func worksOf(t *testing.T, data []byte) *works {
	t.Helper()
	w := &works{Works: workstest.New(t)}
	w.digest = w.Put(data)
	manifest := &events.Manifest{Image: "debian", Version: "1", Visibility: events.Public, Variants: []events.ManifestVariant{{
		Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: "default"}, Root: "disk.qcow2",
		Formats: []events.ManifestFormat{{Format: "disk.qcow2", Digest: w.digest, Size: int64(len(data)), MediaType: "application/x-qemu-disk", Disk: &events.DiskInfo{Version: 3}}},
	}}}
	w.Append(events.VersionPublished{Version: events.Version{Image: "debian", Version: "1", State: events.StatePublished, Manifest: manifest}})
	return w
}

func (w *works) ask(format string, optional bool) {
	w.T.Helper()
	err := w.Decide(func(ctx context.Context) ([]events.Change, error) {
		version, err := w.Log.Version(ctx, "debian", "1")
		if err != nil {
			return nil, err
		}
		current, err := w.Log.Derived(ctx, "debian", "1", variant, format)
		if err != nil {
			return nil, err
		}
		return events.Derive(events.RequestDerived{Image: "debian", Name: "1", Variant: variant, Format: format, Kind: events.DerivedFormat, Optional: optional,
			Version: version, By: "test", At: time.Now().UTC()}, current)
	})
	if err != nil {
		w.T.Fatal(err)
	}
}

// consumer is that of a node.
func (w *works) consumer(change func(*derive.Config)) *derive.Deriver {
	w.T.Helper()
	cfg := derive.Config{Log: w.Log, Store: w.Store, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Converter: convert.New(convert.Limits{Timeout: time.Minute}), Pause: time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	d, err := derive.New(cfg)
	if err != nil {
		w.T.Fatal(err)
	}
	return d
}

// run starts the consumer of a node; stop ends it before the test does.
func (w *works) run() (stop func()) { return workstest.Run(w.T, w.consumer(nil).Run) }

// await gives all facts of a format up to the one that leaves it in a state and without another try to come.
func (w *works) await(format string, state events.DerivedState) []events.Derived {
	w.T.Helper()
	facts, err := w.Await(events.DerivedEntity("debian", "1", variant, format), func(fact events.Fact) bool {
		d := fact.(events.DerivedFact).After()
		return d.State == state && d.RetryAt.IsZero()
	})
	if err != nil {
		w.T.Fatalf("waiting until %s is %s: %v", format, state, err)
	}
	var all []events.Derived
	for _, fact := range facts {
		all = append(all, fact.(events.DerivedFact).After())
	}
	return all
}

// scratch are the names of what is left of works.
func (w *works) scratch() (names []string) {
	w.T.Helper()
	err := filepath.WalkDir(filepath.Join(w.Root, "cas", "tmp"), func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			names = append(names, e.Name())
		}
		return err
	})
	if err != nil {
		w.T.Fatal(err)
	}
	return names[1:]
}

func TestAFormatIsMadePromotedAndRecorded(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	stop := w.run()
	w.ask("disk.raw", false)
	made := w.await("disk.raw", events.DerivedIsMade)
	last := made[len(made)-1]
	if last.RequestedBy != "test" || last.From == nil || last.From.Digest != w.digest || last.How == nil || last.How.Tool != "qemu-img" || last.Size != 8<<20 || last.MadeAt.IsZero() {
		t.Errorf("recorded %+v", last)
	}
	zeroes := w.await("disk.raw.map.json", events.DerivedIsMade)[0]
	for _, d := range []events.Derived{last, zeroes} {
		if there, err := w.Store.HasBlob(d.Digest.Hex(), d.Size); !there {
			t.Errorf("the bytes of %s aren't in the store (%v)", d.Format, err)
		}
		if known, err := w.Log.Blob(t.Context(), d.Digest); err != nil || known.State.Size != d.Size {
			t.Errorf("the blob of %s is recorded as %+v (%v)", d.Format, known.State, err)
		}
	}
	path, err := w.Store.BlobPath(last.Digest.Hex())
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
	stop()
	if left := w.scratch(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWithoutTheToolAFormatFailsOrIsSkipped(t *testing.T) {
	w := newWorks(t)
	t.Setenv("PATH", t.TempDir())
	w.run()
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
	w := worksOf(t, []byte("QFI\xfb\x00\x00\x00\x03 and no disk"))
	stop := w.run()
	w.ask("disk.vmdk", false)
	facts := w.await("disk.vmdk", events.DerivedHasFailed)
	last := facts[len(facts)-1]
	if last.Attempts != 3 || last.Problem.Code != convert.CodeToolFailed || strings.Contains(last.Problem.Detail, w.Root) {
		t.Errorf("given up with %+v, %+v", last, last.Problem)
	}
	stop()
	if left := w.scratch(); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestWhatCantBeMadeIsFinal(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	w.Append(events.DerivedRequested{Derived: events.Derived{Image: "debian", Version: "2", Variant: variant, Format: "disk.vmdk", Kind: events.DerivedFormat, State: events.DerivedIsRequested}})
	w.Append(events.DerivedRequested{Derived: events.Derived{Image: "debian", Version: "1", Variant: variant, Format: "disk.new", Kind: events.DerivedFormat, State: events.DerivedIsRequested}})
	// A delta is another consumer's.
	w.Append(events.DerivedRequested{Derived: events.Derived{Image: "debian", Version: "1", Variant: variant, Format: "disk.vcdiff", Kind: events.DerivedDelta, State: events.DerivedIsRequested}})
	w.run()
	w.ask("disk.vhdx", false)
	w.await("disk.vhdx", events.DerivedIsMade) // one at a time, in their order
	for _, want := range []struct{ version, format, state, code string }{
		{"2", "disk.vmdk", "failed", "not-published"}, {"1", "disk.new", "failed", "unknown-format"}, {"1", "disk.vcdiff", "requested", ""},
	} {
		current, err := w.Log.Derived(t.Context(), "debian", want.version, variant, want.format)
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
	d := w.consumer(func(cfg *derive.Config) {
		cfg.Started = func(events.Derived) {
			close(begun)
			<-ended
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	stop := workstest.Run(t, func(context.Context) error { return d.Run(ctx) })
	w.ask("disk.vmdk", false)
	<-begun
	cancel()
	close(ended)
	stop()
	w.run()
	facts := w.await("disk.vmdk", events.DerivedIsMade)
	if len(facts) != 2 || facts[1].Attempts != 0 {
		t.Errorf("the facts are %+v", facts)
	}
}
