package deltas_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/deltas"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/testtool"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

// works is where versions are published and their deltas made.
type works struct {
	*workstest.Works
	history *eventstest.History // of the publications, as the rules decide them
}

func newWorks(t *testing.T) *works {
	t.Helper()
	testtool.Need(t, vcdiff.Program)
	return &works{workstest.New(t), eventstest.New()}
}

// run starts the consumer; stop ends it before the test does.
func (w *works) run(n int) (stop func()) {
	w.T.Helper()
	tool, err := vcdiff.Find()
	if err != nil {
		w.T.Fatal(err)
	}
	return w.runWith(n, tool, slog.New(slog.DiscardHandler))
}

func (w *works) runWith(n int, tool *vcdiff.Tool, log *slog.Logger) (stop func()) {
	w.T.Helper()
	made := deltas.New(deltas.Config{Log: w.Log, Store: w.Store, Logger: log, Tool: tool,
		VersionsOf: func(context.Context, string) (int, error) { return n, nil }})
	return workstest.Run(w.T, made.Run)
}

func random(seed uint64, n int) []byte {
	source := rand.New(rand.NewPCG(seed, 0))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(source.Uint32())
	}
	return data
}

// publish publishes a version of files that are all there. Roots are by variant.
func (w *works) publish(image, version string, roots map[events.Variant][]byte) {
	w.T.Helper()
	metadata := []byte("metadata of " + image + " " + version)
	u := eventstest.Session(image, version)
	u.Variants = nil
	for variant, data := range roots {
		format := map[events.VariantType]string{events.VirtualMachine: "disk.qcow2", events.Container: "rootfs.squashfs"}[variant.Type]
		u.Variants = append(u.Variants, events.UploadVariant{Variant: variant, Files: []events.UploadFile{
			{Format: events.FormatMetadata, Size: int64(len(metadata)), State: events.FilePresent, Digest: w.Put(metadata)},
			{Format: format, Size: int64(len(data)), State: events.FilePresent, Digest: w.Put(data), Combined: eventstest.Digest(metadata, data)},
		}})
	}
	before := len(w.history.Batches)
	w.history.Publish(w.T, u)
	for _, batch := range w.history.Batches[before:] {
		var facts []events.Fact
		for _, change := range batch {
			facts = append(facts, change.Fact)
		}
		w.Append(facts...)
	}
}

func (w *works) decide(decide func(context.Context) ([]events.Change, error)) {
	w.T.Helper()
	if err := w.Decide(decide); err != nil {
		w.T.Fatal(err)
	}
}

// made waits for the consumer to have handled all publications, and lists the deltas of an image by target and format.
func (w *works) made(image string) map[string]events.Derived {
	w.T.Helper()
	w.settle()
	head, err := w.Log.Head(w.T.Context())
	if err != nil {
		w.T.Fatal(err)
	}
	found := map[string]events.Derived{}
	err = w.Log.Read(w.T.Context(), head, []string{events.SubjectOfKind(events.KindDerived)}, func(e events.Event) error {
		if d := e.Fact.(events.DerivedFact).After(); d.Image == image {
			found[d.Version+" "+d.Variant+" "+d.Format] = d
		}
		return nil
	})
	if err != nil {
		w.T.Fatal(err)
	}
	return found
}

// settle publishes two versions of an image of its own, and waits for the delta between them: the consumer takes one publication
// after the other.
func (w *works) settle() {
	w.T.Helper()
	image := "settled-" + uuid.NewString()
	data := random(99, 5000)
	w.publish(image, "1", map[events.Variant][]byte{amd64(events.Container): data})
	w.publish(image, "2", map[events.Variant][]byte{amd64(events.Container): append(data, "more"...)})
	tail, err := w.Log.Tail(w.T.Context(), 0, events.SubjectOfDerived(image, "2"))
	if err != nil {
		w.T.Fatal(err)
	}
	defer tail.Close()
	ctx, cancel := context.WithTimeout(w.T.Context(), time.Minute)
	defer cancel()
	if _, err := tail.Next(ctx, 1); err != nil {
		w.T.Fatalf("no delta of a small change: %v", err)
	}
}

func amd64(kind events.VariantType) events.Variant {
	return events.Variant{Architecture: "amd64", Type: kind, Flavour: events.DefaultFlavour}
}

func names(found map[string]events.Derived) map[string]bool {
	out := map[string]bool{}
	for name := range found {
		out[name] = true
	}
	return out
}

// apply runs the client's own command.
func (w *works) apply(base []byte, d events.Derived) []byte {
	w.T.Helper()
	dir := w.T.TempDir()
	from, to := filepath.Join(dir, "base"), filepath.Join(dir, "out")
	if err := os.WriteFile(from, base, 0o600); err != nil {
		w.T.Fatal(err)
	}
	delta, _, err := w.Store.OpenBlob(d.Digest.Hex())
	if err != nil {
		w.T.Fatal(err)
	}
	defer delta.Close() //nolint:errcheck // only read
	if said, err := exec.CommandContext(w.T.Context(), "xdelta3", "-f", "-d", "-s", from, delta.Name(), to).CombinedOutput(); err != nil {
		w.T.Fatalf("xdelta3 -d: %v: %s", err, said)
	}
	out, err := os.ReadFile(to)
	if err != nil {
		w.T.Fatal(err)
	}
	return out
}

func TestEachVersionGetsDeltasFromTheLastOnes(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	w.run(2)
	disk, tree := random(1, 300_000), random(2, 200_000)
	var disks, trees [][]byte
	for i := range 4 {
		copy(disk[i*1000:], random(uint64(10+i), 500))
		copy(tree[i*1000:], random(uint64(20+i), 500))
		disks, trees = append(disks, bytes.Clone(disk)), append(trees, bytes.Clone(tree))
		w.publish("deb", fmt.Sprint("v", i), map[events.Variant][]byte{amd64(events.VirtualMachine): disks[i], amd64(events.Container): trees[i]})
	}
	found := w.made("deb")
	want := map[string]bool{}
	for _, pair := range [][2]int{{0, 1}, {1, 2}, {0, 2}, {2, 3}, {1, 3}} {
		for _, root := range []string{"virtual-machine.default disk.qcow2", "container.default rootfs.squashfs"} {
			want[fmt.Sprintf("v%d amd64.%s.from-v%d.vcdiff", pair[1], root, pair[0])] = true
		}
	}
	if diff := cmp.Diff(want, names(found)); diff != "" {
		t.Errorf("deltas (-want +got):\n%s", diff)
	}
	for name, d := range found {
		base, target := disks[d.BaseVersion[1]-'0'], disks[d.Version[1]-'0']
		if d.Variant == amd64(events.Container).Name() {
			base, target = trees[d.BaseVersion[1]-'0'], trees[d.Version[1]-'0']
		}
		if got := w.apply(base, d); !bytes.Equal(got, target) {
			t.Errorf("%s makes %d bytes of its base, not the target", name, len(got))
		}
		if d.BaseDigest != eventstest.Digest(base) || d.From.Digest != eventstest.Digest(target) || d.Size > 5000 || d.How.ToolVersion == "" {
			t.Errorf("%s: %+v", name, d)
		}
		if b, err := w.Log.Blob(t.Context(), d.Digest); err != nil || b.State.Size != d.Size {
			t.Errorf("%s: its bytes are recorded as %+v (%v)", name, b.State, err)
		}
	}
	if entries, err := w.Store.IngressJobs(); err != nil || len(entries) > 0 {
		t.Errorf("left in ingress: %v (%v)", entries, err)
	}
}

func TestWhatIsTooDifferentOrHasNoBaseGetsNoDelta(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	w.run(1)
	vm, container := amd64(events.VirtualMachine), amd64(events.Container)
	cloud := events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "cloud"}
	data := random(1, 90_000)

	w.publish("unlike", "1", map[events.Variant][]byte{vm: data})
	w.publish("unlike", "2", map[events.Variant][]byte{vm: append(bytes.Clone(data[:25_000]), random(2, 65_000)...)}) // a delta of more than two thirds
	w.publish("unlike", "3", map[events.Variant][]byte{vm: append(bytes.Clone(data[:25_000]), random(2, 65_000)...)}) // the same disk again

	w.publish("other-variant", "1", map[events.Variant][]byte{container: data})
	w.publish("other-variant", "2", map[events.Variant][]byte{cloud: data})
	w.publish("other-variant", "3", map[events.Variant][]byte{vm: data})

	w.publish("gone", "1", map[events.Variant][]byte{vm: random(5, 90_000)})
	if err := os.Remove(w.Path(eventstest.Digest(random(5, 90_000)))); err != nil {
		t.Fatal(err)
	}
	w.publish("gone", "2", map[events.Variant][]byte{vm: append(random(5, 90_000), "x"...)})

	for image, want := range map[string]map[string]bool{
		"unlike":        {"3 amd64.virtual-machine.default disk.qcow2.from-2.vcdiff": true},
		"other-variant": {},
		"gone":          {},
	} {
		if diff := cmp.Diff(want, names(w.made(image))); diff != "" {
			t.Errorf("%s (-want +got):\n%s", image, diff)
		}
	}
}

// What takes too long would do so again: it isn't tried five times, each as long.
func TestADeltaThatTakesTooLongIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	tool, err := vcdiff.Find()
	if err != nil {
		t.Fatal(err)
	}
	slowOnce := filepath.Join(t.TempDir(), "slow-once")
	script := fmt.Sprintf("#!/bin/sh\nif [ ! -e %[1]s.begun ]; then : > %[1]s.begun; exec /bin/sleep 60; fi\nexec %[2]s \"$@\"\n", slowOnce, tool.Path)
	if err := os.WriteFile(slowOnce, []byte(script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	var log bytes.Buffer
	stop := w.runWith(1, &vcdiff.Tool{Path: slowOnce, Timeout: 3 * time.Second}, slog.New(slog.NewTextHandler(&log, nil)))
	data, container := random(1, 50_000), amd64(events.Container)
	w.publish("deb", "1", map[events.Variant][]byte{container: data})
	w.publish("deb", "2", map[events.Variant][]byte{container: append(bytes.Clone(data), "more"...)})
	if found := w.made("deb"); len(found) != 0 {
		t.Errorf("deltas %v", names(found))
	}
	stop()
	if said := log.String(); !strings.Contains(said, "no delta: it took too long") || strings.Contains(said, "again") {
		t.Errorf("log: %s", said)
	}
}

func TestADeltaThatWasRemovedStaysAway(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	data, container := random(1, 50_000), amd64(events.Container)
	w.publish("deb", "1", map[events.Variant][]byte{container: data})
	stop := w.run(2)
	w.settle()
	stop()
	w.publish("deb", "2", map[events.Variant][]byte{container: append(bytes.Clone(data), "more"...)})
	w.publish("deb", "3", map[events.Variant][]byte{container: append(bytes.Clone(data), "else"...)})
	variant, format := container.Name(), "rootfs.squashfs.from-1.vcdiff"
	w.decide(func(ctx context.Context) ([]events.Change, error) { // another node has made it
		version, err := w.Log.Version(ctx, "deb", "2")
		if err != nil {
			return nil, err
		}
		return events.RecordDerived(events.Derived{Image: "deb", Version: "2", Variant: variant, Format: format, Kind: events.DerivedDelta,
			Digest: w.Put([]byte("delta")), Size: 5, From: &events.DerivedSource{Format: "rootfs.squashfs", Digest: eventstest.Digest(data)}, BaseVersion: "1",
			BaseDigest: eventstest.Digest(data), How: &events.DerivedHow{Tool: "xdelta3"}}, version, events.Current[events.Derived]{})
	})
	w.decide(func(ctx context.Context) ([]events.Change, error) {
		current, err := w.Log.Derived(ctx, "deb", "2", variant, format)
		if err != nil {
			return nil, err
		}
		return events.RemoveDerived(current, "admin", w.history.Now())
	})
	w.run(2)
	found := w.made("deb")
	if got := found["2 "+variant+" "+format]; got.State != events.DerivedIsRemoved {
		t.Errorf("the delta is %+v", got)
	}
	// The other versions have theirs, also from the one that was there before the consumer.
	if found["3 "+variant+" "+format].State != events.DerivedIsMade || len(found) != 3 {
		t.Errorf("deltas %v", names(found))
	}
}
