package scrub_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

func TestFsckFindsWhatIsDamagedAndNobodyIsGivenIt(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	good, flipped, cut, gone, unnamed := w.put([]byte("good")), w.put([]byte("flipped")), w.put([]byte("cut short")), w.put([]byte("gone")), w.put([]byte("unnamed"))
	stray := eventstest.Digest([]byte("12345"))
	if err := errors.Join(os.MkdirAll(filepath.Dir(w.Path(stray)), 0o750), os.WriteFile(w.Path(stray), []byte("12345"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if s, _ := w.node(nil); w.fsck(s, scrub.Options{}).StrayCount != 0 {
		t.Error("what may be about to be recorded is a stray")
	}
	unrecorded := eventstest.Digest([]byte("published, and no blob"))
	w.publish("1", "", events.ManifestFormat{Format: "good", Digest: good, Size: 4}, events.ManifestFormat{Format: "flipped", Digest: flipped, Size: 7},
		events.ManifestFormat{Format: "cut", Digest: cut, Size: 9}, events.ManifestFormat{Format: "gone", Digest: gone, Size: 4})
	w.publish("2", "", events.ManifestFormat{Format: "flipped", Digest: flipped, Size: 7}, events.ManifestFormat{Format: "never", Digest: unrecorded, Size: 3, MediaType: "text/plain"})
	w.rot(flipped)
	if err := os.Truncate(w.Path(cut), 8); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.Path(gone)); err != nil {
		t.Fatal(err)
	}
	s, store := w.node(func(cfg *scrub.Config) { cfg.StrayAge = time.Nanosecond })
	report := w.fsck(s, scrub.Options{})
	const at = "/amd64.container.default/"
	want := map[events.Digest]struct {
		reason string
		named  []string
	}{
		flipped:    {"digest", []string{"image/1" + at + "flipped", "image/2" + at + "flipped"}},
		cut:        {"size", []string{"image/1" + at + "cut"}},
		gone:       {"missing", []string{"image/1" + at + "gone"}},
		unrecorded: {"missing", []string{"image/2" + at + "never"}},
	}
	if report.Found != len(want) || len(report.Damaged) != len(want) || report.Blobs != 6 || report.Versions != 2 || len(report.Errors) != 0 {
		t.Errorf("the report: %+v", report)
	}
	for _, f := range report.Damaged {
		if diff := cmp.Diff(want[f.Digest].named, f.NamedBy); f.Reason != want[f.Digest].reason || diff != "" {
			t.Errorf("%+v\n%s", f, diff)
		}
		if d := w.damage(f.Digest); d == nil || string(d.Reason) != f.Reason || d.Quarantined != f.Quarantined {
			t.Errorf("%s is recorded as %+v", f.Digest, d)
		}
		if kept := f.Reason == "digest" || f.Reason == "size"; kept != (f.Quarantined != "") {
			t.Errorf("%s, %s: quarantined as %q", f.Digest, f.Reason, f.Quarantined)
		} else if kept {
			if _, err := os.Stat(filepath.Join(w.Root, "cas", "quarantine", f.Quarantined)); err != nil {
				t.Error(err)
			}
		}
		var refused *blob.DamagedError
		if _, _, err := store.OpenBlob(f.Digest.Hex()); !errors.As(err, &refused) {
			t.Errorf("%s, %s: opened with %v", f.Digest, f.Reason, err)
		}
	}
	if diff := cmp.Diff([]scrub.StrayFile{{Digest: stray, Size: 5}}, report.Strays); diff != "" || report.StrayCount != 1 || report.StrayBytes != 5 {
		t.Errorf("strays (%d, %d bytes): %s", report.StrayCount, report.StrayBytes, diff)
	}
	if !w.served(store, good) || !w.served(store, unnamed) {
		t.Error("a good blob isn't served")
	}

	again := w.fsck(s, scrub.Options{})
	if again.Found != 0 || len(again.Damaged) != len(want) || w.errors.Load() != int64(len(want)) || s.Status().Damaged != len(want) {
		t.Errorf("the second time: %d found, %d damaged, %d errors logged", again.Found, len(again.Damaged), w.errors.Load())
	}
	// A node that starts now serves none of it either, before it has looked at anything.
	_, other := w.node(nil)
	for digest := range want {
		if w.served(other, digest) {
			t.Errorf("%s is served by another node", digest)
		}
	}
}

func TestAFileThatIsRightAgainEndsTheDamage(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	d := w.put([]byte("put back by hand"))
	s, store := w.node(nil)
	aside := w.Path(d) + ".aside"
	if err := os.Rename(w.Path(d), aside); err != nil {
		t.Fatal(err)
	}
	if r := w.fsck(s, scrub.Options{}); r.Found != 1 || w.served(store, d) {
		t.Fatalf("%+v", r)
	}
	if err := os.Rename(aside, w.Path(d)); err != nil {
		t.Fatal(err)
	}
	if r := w.fsck(s, scrub.Options{}); len(r.Damaged) != 0 || len(r.Repaired) != 1 || r.Repaired[0].Digest != d || r.Repaired[0].Reason != "missing" {
		t.Errorf("%+v", r)
	}
	if w.damage(d) != nil || !w.served(store, d) {
		t.Error("it isn't served again")
	}
}

func TestNodesThatLookAtOneStorageRecordAFindingOnce(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	var all []events.Digest
	for i := range 30 {
		all = append(all, w.put(fmt.Appendf(nil, "blob %d", i)))
		w.rot(all[i])
	}
	var nodes sync.WaitGroup
	found := atomic.Int64{}
	for range 3 {
		s, _ := w.node(nil)
		nodes.Go(func() {
			report, err := s.Fsck(t.Context(), scrub.Options{}, func(int64, int64) {})
			if err != nil || len(report.Errors) > 0 {
				t.Errorf("%+v, %v", report, err)
				return
			}
			found.Add(int64(report.Found))
			if len(report.Damaged) != len(all) {
				t.Errorf("one node knows of %d damaged blobs", len(report.Damaged))
			}
		})
	}
	nodes.Wait()
	for _, d := range all {
		if diff := cmp.Diff([]events.Type{promoted, damaged}, w.facts(d)); diff != "" {
			t.Errorf("%s:\n%s", d, diff)
		}
	}
	if found.Load() != int64(len(all)) || w.errors.Load() != int64(len(all)) {
		t.Errorf("%d found, %d logged", found.Load(), w.errors.Load())
	}
}

func TestAStorageThatIsAwayIsNoDamage(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	d := w.put([]byte("on a disk that isn't mounted"))
	s, _ := w.node(nil)
	blobs := filepath.Join(w.Root, "cas", "sha256")
	if err := errors.Join(os.Rename(blobs, blobs+".away"), os.Mkdir(blobs, 0o750)); err != nil {
		t.Fatal(err)
	}
	report, err := s.Fsck(t.Context(), scrub.Options{}, func(int64, int64) {})
	if err != nil || len(report.Damaged) != 0 || len(report.Errors) != 1 || !strings.Contains(report.Errors[0], "mounted") || w.damage(d) != nil {
		t.Errorf("%+v, %v", report, err)
	}
}

// A version that can't be restored any more names what has been collected: that is neither damage nor a storage that is away.
func TestWhatWasCollectedIsNotLookedFor(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	data := []byte("of a version that is gone")
	d := w.put(data)
	w.publish("1", uuid.NewString(), events.ManifestFormat{Format: "disk.raw", Digest: d, Size: int64(len(data)), Origin: events.OriginUploaded})
	for _, step := range []func(events.Current[events.Blob]) []events.Change{
		func(b events.Current[events.Blob]) []events.Change { return events.BeginCollecting(b.State, b) }, events.EndCollecting} {
		current, err := w.Log.Blob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range step(current) {
			w.Append(change.Fact)
		}
	}
	if err := os.RemoveAll(filepath.Dir(w.Path(d))); err != nil {
		t.Fatal(err)
	}
	s, _ := w.node(nil)
	if r := w.fsck(s, scrub.Options{}); r.Versions != 1 || r.Blobs != 0 || len(r.Damaged)+len(r.Errors) != 0 {
		t.Errorf("%+v", r)
	}
}

// Each finding is logged; the versions that it concerns, which costs a pass over the log to find, only of the first ones.
func TestADyingDiskDoesntReadTheLogForEachFinding(t *testing.T) {
	t.Parallel()
	const blobs = 12
	w := newWorks(t)
	var formats []events.ManifestFormat
	for i := range blobs {
		data := []byte(fmt.Sprint("content ", i))
		formats = append(formats, events.ManifestFormat{Format: fmt.Sprintf("f%d", i), Digest: w.put(data), Size: int64(len(data)), Origin: events.OriginUploaded})
		w.rot(formats[i].Digest)
	}
	w.publish("1", uuid.NewString(), formats...)
	var log bytes.Buffer
	s, _ := w.node(func(cfg *scrub.Config) { cfg.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	report := w.fsck(s, scrub.Options{})
	if told, named := strings.Count(log.String(), "blob damaged"), strings.Count(log.String(), "image/1/"); report.Found != blobs || told != blobs || named == 0 || named > blobs/2 {
		t.Errorf("%d found, %d logged, %d with names", report.Found, told, named)
	}
	for _, f := range report.Damaged {
		if len(f.NamedBy) != 1 {
			t.Errorf("%s is named by %v", f.Digest, f.NamedBy)
		}
	}
}

// A node that hasn't read yet which blobs are damaged asks the log about the one that is to be opened.
func TestANodeThatHasJustStartedOpensNoDamagedBlob(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	good, bad := w.put([]byte("good")), w.put([]byte("bad"))
	w.rot(bad)
	s, _ := w.node(nil)
	w.fsck(s, scrub.Options{})
	store := w.OpenStore()
	late, err := scrub.New(scrub.Config{Log: w.Log, Store: store, Logger: slog.New(w), Meter: noop.Meter{}, RepairEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	look := func(when string) {
		t.Helper()
		f, _, err := store.OpenBlob(good.Hex())
		if err != nil {
			t.Fatalf("%s: a good blob: %v", when, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		var damaged *blob.DamagedError
		if _, _, err := store.OpenBlob(bad.Hex()); !errors.As(err, &damaged) || damaged.Reason != "digest" {
			t.Errorf("%s: a damaged blob: %v", when, err)
		}
	}
	look("before it has read the log")
	if err := late.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	look("afterwards")
}
