package deltas_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/deltas"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/testtool"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
	"github.com/imgsrv/imgsrv/store/blob"
)

// works is a log and a byte store in which versions are published.
type works struct {
	t     *testing.T
	root  string
	log   *jetstream.Log
	store *blob.Store
	at    time.Time
}

func newWorks(t *testing.T) *works {
	t.Helper()
	testtool.Need(t, vcdiff.Program)
	root := t.TempDir()
	store, err := blob.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return &works{t: t, root: root, log: natstest.Log(t), store: store, at: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
}

// run starts the consumer; stop ends it before the test does.
func (w *works) run(n int) (stop func()) {
	w.t.Helper()
	tool, err := vcdiff.Find()
	if err != nil {
		w.t.Fatal(err)
	}
	return w.runWith(n, tool, slog.New(slog.DiscardHandler))
}

func (w *works) runWith(n int, tool *vcdiff.Tool, log *slog.Logger) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	made := deltas.New(deltas.Config{Log: w.log, Store: w.store, Logger: log, Tool: tool,
		VersionsOf: func(context.Context, string) (int, error) { return n, nil }})
	go func() { done <- made.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("deltas ended: %v", err)
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

func random(seed uint64, n int) []byte {
	source := rand.New(rand.NewPCG(seed, 0))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(source.Uint32())
	}
	return data
}

func digestOf(data []byte) events.Digest {
	sum := sha256.Sum256(data)
	return events.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// keep makes a blob of some bytes, and says so.
func (w *works) keep(data []byte) events.Digest {
	w.t.Helper()
	digest := digestOf(data)
	if err := w.store.WriteIngress("test", "file", data); err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.Promote(w.t.Context(), "test", "file", digest.Hex(), int64(len(data))); err != nil {
		w.t.Fatal(err)
	}
	w.decide(func(ctx context.Context) ([]events.Change, error) {
		known, err := w.log.Blob(ctx, digest)
		return events.PromoteBlob(events.Blob{Digest: digest, Size: int64(len(data)), MediaType: "application/octet-stream"}, known), err
	})
	return digest
}

// publish takes a session for files that are all there to the published version. Roots are by variant.
func (w *works) publish(image, version string, roots map[events.Variant][]byte) {
	w.t.Helper()
	w.at = w.at.Add(time.Minute)
	metadata := []byte("metadata of " + image + " " + version)
	u := events.Upload{ID: uuid.Must(uuid.NewV7()).String(), Image: image, Version: version, Visibility: events.Public, InitiatedAt: w.at, InitiatedBy: "admin"}
	for variant, data := range roots {
		format := map[events.VariantType]string{events.VirtualMachine: "disk.qcow2", events.Container: "rootfs.squashfs"}[variant.Type]
		u.Variants = append(u.Variants, events.UploadVariant{Variant: variant, Files: []events.UploadFile{
			{Format: events.FormatMetadata, Size: int64(len(metadata)), State: events.FilePresent, Digest: w.keep(metadata)},
			{Format: format, Size: int64(len(data)), State: events.FilePresent, Digest: w.keep(data), Combined: digestOf(append(metadata, data...))},
		}})
	}
	job := events.JobIDFor(u.ID)
	w.decide(func(ctx context.Context) ([]events.Change, error) {
		held, err := w.log.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		described, err := w.log.Image(ctx, image)
		if err != nil {
			return nil, err
		}
		present := map[events.Digest]events.Current[events.Blob]{}
		for _, f := range u.Files() {
			if present[f.Digest], err = w.log.Blob(ctx, f.Digest); err != nil {
				return nil, err
			}
		}
		return events.Initiate(events.InitiateUpload{Session: u, Present: present, Version: held, Image: described, IsArchitecture: func(string) bool { return false }})
	})
	w.decide(func(ctx context.Context) ([]events.Change, error) {
		session, err := w.log.Upload(ctx, u.ID)
		if err != nil {
			return nil, err
		}
		return events.CompleteUpload(session, w.at)
	})
	for _, step := range events.Steps() {
		w.decide(func(ctx context.Context) ([]events.Change, error) {
			current, err := w.log.Job(ctx, job)
			if err != nil {
				return nil, err
			}
			return events.StartStep(current, step, w.at)
		})
		w.decide(func(ctx context.Context) ([]events.Change, error) {
			current, err := w.log.Job(ctx, job)
			if err != nil {
				return nil, err
			}
			if step != events.StepPublish {
				return events.CompleteStep(current, step, current.State.Files, w.at)
			}
			session, err := w.log.Upload(ctx, u.ID)
			if err != nil {
				return nil, err
			}
			held, err := w.log.Version(ctx, image, version)
			if err != nil {
				return nil, err
			}
			described, err := w.log.Image(ctx, image)
			if err != nil {
				return nil, err
			}
			return events.Publish(events.PublishVersion{Job: current, Upload: session.State, Version: held, Image: described, At: w.at})
		})
	}
}

func (w *works) decide(decide func(context.Context) ([]events.Change, error)) {
	w.t.Helper()
	if _, err := w.log.Decide(w.t.Context(), jetstream.Cause{Actor: "admin"}, decide); err != nil {
		w.t.Fatal(err)
	}
}

// made waits for the consumer to have handled all publications, and lists the deltas of an image by target and format.
func (w *works) made(image string) map[string]events.Derived {
	w.t.Helper()
	w.settle()
	head, err := w.log.Head(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	found := map[string]events.Derived{}
	err = w.log.Read(w.t.Context(), head, []string{events.SubjectOfKind(events.KindDerived)}, func(e events.Event) error {
		if d := e.Fact.(events.DerivedFact).After(); d.Image == image {
			found[d.Version+" "+d.Variant+" "+d.Format] = d
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// settle publishes two versions of an image of its own, and waits for the delta between them: the consumer takes one publication
// after the other.
func (w *works) settle() {
	w.t.Helper()
	image := "settled-" + uuid.NewString()
	data := random(99, 5000)
	w.publish(image, "1", map[events.Variant][]byte{amd64(events.Container): data})
	w.publish(image, "2", map[events.Variant][]byte{amd64(events.Container): append(data, "more"...)})
	tail, err := w.log.Tail(w.t.Context(), 0, events.SubjectOfDerived(image, "2"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer tail.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	if _, err := tail.Next(ctx, 1); err != nil {
		w.t.Fatalf("no delta of a small change: %v", err)
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
	w.t.Helper()
	dir := w.t.TempDir()
	from, to := filepath.Join(dir, "base"), filepath.Join(dir, "out")
	if err := os.WriteFile(from, base, 0o600); err != nil {
		w.t.Fatal(err)
	}
	delta, _, err := w.store.OpenBlob(d.Digest.Hex())
	if err != nil {
		w.t.Fatal(err)
	}
	defer delta.Close() //nolint:errcheck // only read
	if said, err := exec.CommandContext(w.t.Context(), "xdelta3", "-f", "-d", "-s", from, delta.Name(), to).CombinedOutput(); err != nil {
		w.t.Fatalf("xdelta3 -d: %v: %s", err, said)
	}
	out, err := os.ReadFile(to)
	if err != nil {
		w.t.Fatal(err)
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
		if d.BaseDigest != digestOf(base) || d.From.Digest != digestOf(target) || d.Size > 5000 || d.How.ToolVersion == "" {
			t.Errorf("%s: %+v", name, d)
		}
		if b, err := w.log.Blob(t.Context(), d.Digest); err != nil || b.State.Size != d.Size {
			t.Errorf("%s: its bytes are recorded as %+v (%v)", name, b.State, err)
		}
	}
	if entries, err := w.store.IngressJobs(); err != nil || len(entries) > 1 { // that of the test's own blobs
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
	base := digestOf(random(5, 90_000)).Hex()
	if err := os.Remove(filepath.Join(w.root, "cas", "sha256", base[:2], base)); err != nil {
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
		version, err := w.log.Version(ctx, "deb", "2")
		if err != nil {
			return nil, err
		}
		return events.RecordDerived(events.Derived{Image: "deb", Version: "2", Variant: variant, Format: format, Kind: events.DerivedDelta,
			Digest: w.keep([]byte("delta")), Size: 5, From: &events.DerivedSource{Format: "rootfs.squashfs", Digest: digestOf(data)}, BaseVersion: "1",
			BaseDigest: digestOf(data), How: &events.DerivedHow{Tool: "xdelta3"}}, version, events.Current[events.Derived]{})
	})
	w.decide(func(ctx context.Context) ([]events.Change, error) {
		current, err := w.log.Derived(ctx, "deb", "2", variant, format)
		if err != nil {
			return nil, err
		}
		return events.RemoveDerived(current, "admin", w.at)
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
