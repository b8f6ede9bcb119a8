package scrub_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/promotion"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// works is a log and a storage, with nodes that scrub it.
type works struct {
	t      *testing.T
	root   string
	log    *jetstream.Log
	store  *blob.Store // of a node that doesn't scrub
	errors atomic.Int64
}

func newWorks(t *testing.T) *works {
	t.Helper()
	root := t.TempDir()
	store, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return &works{t: t, root: root, log: natstest.Log(t), store: store}
}

// Handle counts errors that are logged, which an operator is woken by.
func (w *works) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		w.errors.Add(1)
	}
	return nil
}

func (w *works) Enabled(context.Context, slog.Level) bool { return true }

func (w *works) WithAttrs([]slog.Attr) slog.Handler { return w }

func (w *works) WithGroup(string) slog.Handler { return w }

// node is a node that scrubs, with its view of the storage.
func (w *works) node(change func(*scrub.Config)) (*scrub.Scrubber, *blob.Store) {
	w.t.Helper()
	store, err := blob.Open(w.root)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := scrub.Config{Log: w.log, Store: store, Logger: slog.New(w), Meter: noop.Meter{}}
	if change != nil {
		change(&cfg)
	}
	s, err := scrub.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.CatchUp(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return s, store
}

// run lets a node work in the background until the returned function is called, at the latest until the test's end.
func (w *works) run(s *scrub.Scrubber) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("the scrub ended: %v", err)
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

func digestOf(data []byte) events.Digest {
	sum := sha256.Sum256(data)
	return events.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// promote is what a publication does with a file that has arrived at a node.
func (w *works) promote(store *blob.Store, data []byte) error {
	job := uuid.NewString()
	if err := store.WriteIngress(job, "f", data); err != nil {
		return err
	}
	b := events.Blob{Digest: digestOf(data), Size: int64(len(data)), MediaType: "text/plain"}
	_, err := w.log.Decide(w.t.Context(), jetstream.Cause{Actor: "imgsrv"}, func(ctx context.Context) ([]events.Change, error) {
		return promotion.Blob(ctx, w.log, store, b, func(ctx context.Context, _ events.Blob) error {
			return store.Admit(ctx, job, "f", b.Digest.Hex(), b.Size)
		})
	})
	return errors.Join(err, store.RemoveIngress(job))
}

func (w *works) put(data []byte) events.Digest {
	w.t.Helper()
	if err := w.promote(w.store, data); err != nil {
		w.t.Fatal(err)
	}
	return digestOf(data)
}

// publish publishes blobs as the formats of a version of an image.
func (w *works) publish(version, upload string, formats ...events.ManifestFormat) {
	w.t.Helper()
	manifest := &events.Manifest{Image: "image", Version: version, UploadID: upload, Variants: []events.ManifestVariant{{
		Variant: events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"}, Formats: formats}}}
	w.append(events.Change{Fact: events.VersionPublished{Version: events.Version{Image: "image", Version: version, State: events.StatePublished, Manifest: manifest}}})
}

func (w *works) append(changes ...events.Change) {
	w.t.Helper()
	if _, err := w.log.Append(w.t.Context(), jetstream.Cause{Actor: "test"}, changes...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *works) path(d events.Digest) string {
	return filepath.Join(w.root, "cas", "sha256", d.Hex()[:2], d.Hex())
}

// rot changes one bit of a blob where it lies.
func (w *works) rot(d events.Digest) {
	w.t.Helper()
	f := w.open(d)
	defer f.Close() //nolint:errcheck // the write is looked at
	one := make([]byte, 1)
	if _, err := f.ReadAt(one, 1); err != nil {
		w.t.Fatal(err)
	}
	one[0] ^= 16
	if _, err := f.WriteAt(one, 1); err != nil {
		w.t.Fatal(err)
	}
}

func (w *works) open(d events.Digest) *os.File {
	w.t.Helper()
	if err := os.Chmod(w.path(d), 0o644); err != nil {
		w.t.Fatal(err)
	}
	f, err := os.OpenFile(w.path(d), os.O_RDWR, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

func (w *works) damage(d events.Digest) *events.Damage {
	w.t.Helper()
	current, err := w.log.Blob(w.t.Context(), d)
	if err != nil {
		w.t.Fatal(err)
	}
	return current.State.Damage
}

// facts are the types of all facts about a blob, in order.
func (w *works) facts(d events.Digest) (types []events.Type) {
	w.t.Helper()
	head, err := w.log.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	err = w.log.Read(w.t.Context(), head, []string{events.BlobEntity(d).Subject()}, func(e events.Event) error {
		types = append(types, e.Type)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return types
}

// await waits for a fact of a type about a blob.
func (w *works) await(d events.Digest, typ events.Type) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	tail, err := w.log.Tail(ctx, 0, events.BlobEntity(d).Subject())
	if err != nil {
		w.t.Fatal(err)
	}
	defer tail.Close()
	for {
		batch, err := tail.Next(ctx, 10)
		if err != nil {
			w.t.Fatalf("wait for %s of %s: %v", typ, d, err)
		}
		if slices.ContainsFunc(batch, func(e events.Event) bool { return e.Type == typ }) {
			return
		}
	}
}

func (w *works) fsck(s *scrub.Scrubber, opt scrub.Options) *scrub.Report {
	w.t.Helper()
	var last int64
	report, err := s.Fsck(w.t.Context(), opt, func(done, total int64) {
		if done < 0 || done > total {
			w.t.Errorf("progress: %d of %d", done, total)
		}
		last = total - done
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if last != 0 {
		w.t.Errorf("the progress ends %d bytes before the end", last)
	}
	return report
}

// served says whether a node would send the blob's bytes, which are then the right ones.
func (w *works) served(store *blob.Store, d events.Digest) bool {
	w.t.Helper()
	f, _, err := store.OpenBlob(d.Hex())
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(f)
	if err != nil || digestOf(data) != d {
		w.t.Errorf("wrong bytes of %s are served: %v", d, err)
	}
	return true
}

const (
	promoted = events.Type("imgsrv.blob.promoted.v1")
	damaged  = events.Type("imgsrv.blob.damaged.v1")
	repaired = events.Type("imgsrv.blob.repaired.v1")
)

func TestFsckFindsWhatIsDamagedAndNobodyIsGivenIt(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	good, flipped, cut, gone, unnamed := w.put([]byte("good")), w.put([]byte("flipped")), w.put([]byte("cut short")), w.put([]byte("gone")), w.put([]byte("unnamed"))
	stray := digestOf([]byte("12345"))
	if err := errors.Join(os.MkdirAll(filepath.Dir(w.path(stray)), 0o750), os.WriteFile(w.path(stray), []byte("12345"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if s, _ := w.node(nil); w.fsck(s, scrub.Options{}).StrayCount != 0 {
		t.Error("what may be about to be recorded is a stray")
	}
	unrecorded := digestOf([]byte("published, and no blob"))
	w.publish("1", "", events.ManifestFormat{Format: "good", Digest: good, Size: 4}, events.ManifestFormat{Format: "flipped", Digest: flipped, Size: 7},
		events.ManifestFormat{Format: "cut", Digest: cut, Size: 9}, events.ManifestFormat{Format: "gone", Digest: gone, Size: 4})
	w.publish("2", "", events.ManifestFormat{Format: "flipped", Digest: flipped, Size: 7}, events.ManifestFormat{Format: "never", Digest: unrecorded, Size: 3, MediaType: "text/plain"})
	w.rot(flipped)
	if err := os.Truncate(w.path(cut), 8); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.path(gone)); err != nil {
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
			if _, err := os.Stat(filepath.Join(w.root, "cas", "quarantine", f.Quarantined)); err != nil {
				t.Error(err)
			}
		}
		var refused *blob.DamagedError
		if _, _, err := store.OpenBlob(f.Digest.Hex()); !errors.As(err, &refused) {
			t.Errorf("%s, %s: opened with %v", f.Digest, f.Reason, err)
		}
	}
	if diff := cmp.Diff([]scrub.Stray{{Digest: stray, Size: 5}}, report.Strays); diff != "" || report.StrayCount != 1 || report.StrayBytes != 5 {
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

func TestAnUploadOfTheSameBytesRepairs(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	data := []byte("uploaded twice")
	d := w.put(data)
	for name, spoil := range map[string]func(){
		"flipped": func() { w.rot(d) },
		"gone": func() {
			if err := os.Remove(w.path(d)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		spoil()
		s, _ := w.node(nil)
		if r := w.fsck(s, scrub.Options{}); r.Found != 1 {
			t.Fatalf("%s: %+v", name, r)
		}
		_, store := w.node(nil)
		if err := w.promote(store, data); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, store = w.node(nil)
		if w.damage(d) != nil || !w.served(store, d) {
			t.Errorf("%s: it isn't repaired", name)
		}
	}
	// Nobody has noticed that the file has lost a byte: whoever brings the bytes does.
	if err := os.Truncate(w.path(d), 3); err != nil {
		t.Fatal(err)
	}
	_, store := w.node(nil)
	if err := w.promote(store, data); err != nil {
		t.Fatal(err)
	}
	if _, store = w.node(nil); !w.served(store, d) {
		t.Error("it isn't repaired by who found it")
	}
	want := []events.Type{promoted, damaged, repaired, damaged, repaired, damaged, repaired}
	if diff := cmp.Diff(want, w.facts(d)); diff != "" {
		t.Error(diff)
	}
}

func TestAFileThatIsRightAgainEndsTheDamage(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	d := w.put([]byte("put back by hand"))
	s, store := w.node(nil)
	aside := w.path(d) + ".aside"
	if err := os.Rename(w.path(d), aside); err != nil {
		t.Fatal(err)
	}
	if r := w.fsck(s, scrub.Options{}); r.Found != 1 || w.served(store, d) {
		t.Fatalf("%+v", r)
	}
	if err := os.Rename(aside, w.path(d)); err != nil {
		t.Fatal(err)
	}
	if r := w.fsck(s, scrub.Options{}); len(r.Damaged) != 0 || len(r.Repaired) != 1 || r.Repaired[0].Digest != d || r.Repaired[0].Reason != "missing" {
		t.Errorf("%+v", r)
	}
	if w.damage(d) != nil || !w.served(store, d) {
		t.Error("it isn't served again")
	}
}

// elsewhere is a source that has some bytes under each digest, in the order in which it gives them.
type elsewhere map[events.Digest][][]byte

func (e elsewhere) Fetch(ctx context.Context, wanted []events.Blob, take scrub.Take) error {
	for _, b := range wanted {
		for i, data := range e[b.Digest] {
			if take(ctx, b, fmt.Sprint("server ", i), bytes.NewReader(data)) == nil {
				break
			}
		}
	}
	return nil
}

func TestRepairTakesOnlyTheRightBytes(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	data := []byte("mirrored")
	mirrored, lost := w.put(data), w.put([]byte("lost"))
	metadata := []byte("metadata that imgsrv made")
	made, upload := w.put(metadata), uuid.NewString()
	w.append(events.Change{Fact: events.UploadInitiated{Upload: events.Upload{ID: upload, Image: "image", Version: "1", Variants: []events.UploadVariant{{
		Variant:  events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"},
		Metadata: &events.MadeFile{Format: events.FormatMetadata, Digest: made, Data: metadata}}}}}})
	w.publish("1", upload, events.ManifestFormat{Format: events.FormatMetadata, Digest: made, Size: int64(len(metadata)), Origin: events.OriginMade},
		events.ManifestFormat{Format: "rootfs.squashfs", Digest: mirrored, Size: int64(len(data))})
	for _, d := range []events.Digest{mirrored, lost, made} {
		w.rot(d)
	}
	s, store := w.node(func(cfg *scrub.Config) {
		cfg.Sources = []scrub.Source{elsewhere{mirrored: {[]byte("mirroreD"), []byte("mirrored and more"), []byte("mir"), data}, lost: {[]byte("lust")}}}
	})
	report := w.fsck(s, scrub.Options{Repair: true})
	from := map[events.Digest]string{}
	for _, f := range report.Repaired {
		from[f.Digest] = f.From
	}
	if diff := cmp.Diff(map[events.Digest]string{mirrored: "server 3", made: "the event log"}, from); diff != "" {
		t.Error(diff)
	}
	if len(report.Damaged) != 1 || report.Damaged[0].Digest != lost {
		t.Errorf("still damaged: %+v", report.Damaged)
	}
	if !w.served(store, mirrored) || !w.served(store, made) || w.served(store, lost) {
		t.Error("served is not what is whole")
	}
	if left, err := filepath.Glob(filepath.Join(w.root, "cas", "tmp", "*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestTheBackgroundFindsAndRepairs(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	data := []byte("mirrored")
	d := w.put(data)
	w.rot(d)
	s, _ := w.node(func(cfg *scrub.Config) {
		cfg.Rate, cfg.Sources = 1<<30, []scrub.Source{elsewhere{d: {data}}}
	})
	w.run(s)
	w.await(d, repaired)
	if current, err := w.log.Blob(t.Context(), d); err != nil || current.State.Damage != nil || current.State.MediaType != "text/plain" {
		t.Errorf("%+v, %v", current.State, err)
	}
	if _, store := w.node(nil); !w.served(store, d) {
		t.Error("it isn't served")
	}
}

// Each blob is looked at once in a pass, also where a restart comes between.
func TestABackgroundPassGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	var all []events.Digest
	for i := range 20 {
		all = append(all, w.put(fmt.Appendf(nil, "blob %d", i)))
	}
	slices.Sort(all)
	stateFile := filepath.Join(t.TempDir(), "scrub.json")
	w.rot(all[3])  // behind where the pass is
	w.rot(all[15]) // before it
	began := time.Now().Add(-time.Hour).UTC()
	if err := os.WriteFile(stateFile, fmt.Appendf(nil, `{"started_at": %q, "after": %q, "blobs": 10}`, began.Format(time.RFC3339), all[9].Hex()), 0o600); err != nil {
		t.Fatal(err)
	}
	config := func(cfg *scrub.Config) { cfg.Rate, cfg.StateFile, cfg.Every = 1<<30, stateFile, 2*time.Hour }
	s, _ := w.node(config)
	if at := s.Status().Position; at != all[9].Hex() {
		t.Errorf("it goes on at %q", at)
	}
	stop := w.run(s)
	w.await(all[15], damaged)
	waitFor(t, func() bool { return !s.Status().LastPass.IsZero() })
	stop()
	if w.damage(all[3]) != nil {
		t.Error("the pass has begun anew")
	}
	// The pass began an hour ago, so that the next is due in an hour: not now.
	s, _ = w.node(config)
	if s.Status().LastPass.IsZero() || s.Status().Position != "" {
		t.Errorf("after the pass: %+v", s.Status())
	}
	s, _ = w.node(func(cfg *scrub.Config) { config(cfg); cfg.Every = time.Minute })
	w.run(s)
	w.await(all[3], damaged)

	if err := os.WriteFile(stateFile+".torn", []byte(`{"after`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, _ = w.node(func(cfg *scrub.Config) { cfg.StateFile = stateFile + ".torn" }); s.Status().Position != "" {
		t.Error("a torn state is taken up")
	}
}

// waitFor polls what makes no event.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it doesn't come")
		}
	}
}

func TestASuspectIsLookedAtAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	d, fine := w.put([]byte("suspect")), w.put([]byte("innocent"))
	w.rot(d)
	s, _ := w.node(nil) // no rate: nothing is read unasked
	w.run(s)
	for _, hexed := range []string{fine.Hex(), strings.Repeat("0", 64), "nonsense", d.Hex(), d.Hex()} {
		s.Suspect(hexed)
	}
	w.await(d, damaged)
	if w.damage(fine) != nil {
		t.Error("the innocent one is damaged")
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

// Whatever meets: no wrong bytes are served once damage is known, and what the log says is so.
func TestUploadsAndChecksOfOneBlobAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	a, storeA := w.node(nil)
	_, storeB := w.node(nil)
	for i := range 40 {
		data := fmt.Appendf(nil, "blob %d", i)
		d := w.put(data)
		w.rot(d)
		var at sync.WaitGroup
		at.Go(func() {
			if _, err := a.Fsck(t.Context(), scrub.Options{}, func(int64, int64) {}); err != nil {
				t.Error(err)
			}
		})
		for _, store := range []*blob.Store{storeA, storeB} {
			at.Go(func() {
				if err := w.promote(store, data); err != nil {
					t.Error(err)
				}
			})
		}
		at.Wait()
		fresh, store := w.node(nil)
		if w.damage(d) == nil {
			// The uploads may have come before the finding, and have met a file that looked fine.
			w.fsck(fresh, scrub.Options{})
		}
		if known := w.damage(d) != nil; known == w.served(store, d) {
			t.Errorf("round %d: damaged is %t, and so is served", i, known)
		}
		if err := w.promote(store, data); err != nil { // leaves nothing for the next round to find
			t.Fatal(err)
		}
	}
}

func TestAStorageThatIsAwayIsNoDamage(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	d := w.put([]byte("on a disk that isn't mounted"))
	s, _ := w.node(nil)
	blobs := filepath.Join(w.root, "cas", "sha256")
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
		current, err := w.log.Blob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		w.append(step(current)...)
	}
	if err := os.RemoveAll(filepath.Dir(w.path(d))); err != nil {
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
