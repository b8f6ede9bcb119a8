package publication_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/publication"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/store/blob"
)

// works is where publications happen: a log and a byte store.
type works struct {
	t     *testing.T
	root  string
	log   *jetstream.Log
	store *blob.Store
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

// run starts the consumers of a node; stop ends them before the test does.
func (w *works) run(change func(*publication.Config)) (stop func()) {
	w.t.Helper()
	cfg := publication.Config{Log: w.log, Store: w.store, Logger: slog.New(slog.DiscardHandler), Pause: 20 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error, 1)
	publications, err := publication.New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	go func() { done <- publications.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("publications ended: %v", err)
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

func hexSum(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// content is a squashfs as far as its magic goes.
func content(text string) []byte { return append([]byte("hsqs"), text...) }

var metadata = append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, "metadata"...)

// upload takes a container's root all the way to its job; it gives the session's id.
func (w *works) upload(version string, aliases []string, root []byte, change func(*events.Upload)) string {
	w.t.Helper()
	id := uuid.Must(uuid.NewV7()).String()
	u := events.Upload{ID: id, Image: "image", Version: version, Visibility: events.Public, Aliases: aliases, InitiatedAt: time.Now().UTC(), InitiatedBy: "admin",
		Variants: []events.UploadVariant{{Variant: events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"},
			Files:    []events.UploadFile{{Format: "rootfs.squashfs", Size: int64(len(root)), State: events.FilePending}},
			Metadata: &events.MadeFile{Format: events.FormatMetadata, Digest: events.Digest("sha256:" + hexSum(metadata)), Data: metadata}}}}
	if change != nil {
		change(&u)
	}
	held, err := w.log.Version(w.t.Context(), u.Image, u.Version)
	if err != nil {
		w.t.Fatal(err)
	}
	changes, err := events.Initiate(events.InitiateUpload{Session: u, Version: held, IsArchitecture: func(string) bool { return false }})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.CreateSession(id); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.log.Append(w.t.Context(), jetstream.Cause{Correlation: id}, changes...); err != nil {
		w.t.Fatal(err)
	}
	intake, err := w.store.CreateIntake(w.t.Context(), id, 0, blob.IntakeSpec{SizeBytes: int64(len(root))})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := intake.Append(w.t.Context(), bytes.NewReader(root)); err != nil {
		w.t.Fatal(err)
	}
	job, name := events.JobIDFor(id), "amd64.container.default.rootfs.squashfs"
	if err := w.store.LinkToIngress(w.t.Context(), id, 0, job, name); err != nil {
		w.t.Fatal(err)
	}
	_, err = w.log.Decide(w.t.Context(), jetstream.Cause{Correlation: id}, func(ctx context.Context) ([]events.Change, error) {
		current, err := w.log.Upload(ctx, id)
		if err != nil {
			return nil, err
		}
		return events.Complete(events.CompleteFile{File: events.FileRef{Variant: "amd64.container.default", Format: "rootfs.squashfs"}, Size: int64(len(root)),
			Digest: events.Digest("sha256:" + hexSum(root)), Ingress: name, At: time.Now().UTC()}, current)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// await waits until the job of a session satisfies a condition.
func (w *works) await(upload string, what string, ok func(events.Job) bool) events.Job {
	w.t.Helper()
	tail, err := w.log.Tail(w.t.Context(), 0, events.JobEntity(events.JobIDFor(upload)).Subject())
	if err != nil {
		w.t.Fatal(err)
	}
	defer tail.Close()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	var last events.Job
	for {
		batch, err := tail.Next(ctx, 1)
		if err != nil {
			w.t.Fatalf("job never %s: %v; last %+v", what, err, last)
		}
		if last = events.Fold(last, batch[0].Fact); ok(last) {
			return last
		}
	}
}

func ended(state events.JobState) func(events.Job) bool {
	return func(j events.Job) bool { return j.State == state }
}

func (w *works) published(version string) *events.Manifest {
	w.t.Helper()
	current, err := w.log.Version(w.t.Context(), "image", version)
	if err != nil || current.State.State != events.StatePublished {
		w.t.Fatalf("version %s is %s (%v)", version, current.State.State, err)
	}
	return current.State.Manifest
}

func TestFilesBecomeAVersion(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	root := content("root file system")
	upload := w.upload("1", []string{"latest"}, root, nil)
	w.run(nil)
	job := w.await(upload, "succeeded", ended(events.JobStateSucceeded))
	for _, step := range job.Steps {
		if step.State != events.StepSucceeded || step.Attempt != 1 {
			t.Errorf("step %+v", step)
		}
	}
	v := w.published("1").Variants[0]
	// The metadata came with the session and the root's intake didn't know it: the job has read the bytes.
	if v.Fingerprint != hexSum(metadata, root) || len(v.Formats) != 2 {
		t.Errorf("variant %+v", v)
	}
	for _, f := range v.Formats {
		if ok, err := w.store.HasBlob(f.Digest.Hex(), f.Size); err != nil || !ok {
			t.Errorf("format %s is no blob (%v)", f.Format, err)
		}
		if b, err := w.log.Blob(t.Context(), f.Digest); err != nil || b.State.Size != f.Size || f.MediaType == "" {
			t.Errorf("blob of %s: %+v (%v)", f.Format, b.State, err)
		}
	}
}

func TestAPassingFaultIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	cas := filepath.Join(w.root, "cas", "sha256")
	break_ := func() { // a file in the place of the folder: what a broken mount may look like
		if err := os.Rename(cas, cas+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(cas, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mend := func() {
		if err := os.Remove(cas); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(cas+".away", cas); err != nil {
			t.Fatal(err)
		}
	}
	break_()
	upload := w.upload("1", nil, content("x"), nil)
	w.run(nil)
	failed := w.await(upload, "failed at promote", func(j events.Job) bool { return j.Step(events.StepPromote).State == events.StepFailed })
	if s := failed.Step(events.StepPromote); s.Error == "" || !s.RetryAt.After(s.FinishedAt) || failed.State != events.JobStateRunning {
		t.Errorf("job %s, step %+v", failed.State, s)
	}
	mend()
	job := w.await(upload, "succeeded", ended(events.JobStateSucceeded))
	if s := job.Step(events.StepPromote); s.Attempt < 2 || s.Error != "" {
		t.Errorf("step %+v", s)
	}
}

func TestAJobThatRanOutOfAttemptsCanBeRetriedWhereItFailed(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	cas := filepath.Join(w.root, "cas", "sha256")
	if err := os.Rename(cas, cas+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cas, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	upload := w.upload("1", nil, content("x"), nil)
	w.run(func(c *publication.Config) { c.Attempts = 2; c.Pause = time.Millisecond })
	job := w.await(upload, "failed", ended(events.JobStateFailed))
	if job.Problem == nil || job.Problem.Final || job.Step(events.StepPromote).Attempt != 2 {
		t.Fatalf("job %+v", job)
	}
	version, err := w.log.Version(t.Context(), "image", "1")
	if err != nil || version.State.State != events.StateReleased {
		t.Errorf("version is %s (%v)", version.State.State, err)
	}
	if err := os.Remove(cas); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(cas+".away", cas); err != nil {
		t.Fatal(err)
	}
	_, err = w.log.Decide(t.Context(), jetstream.Cause{}, func(ctx context.Context) ([]events.Change, error) {
		j, err := w.log.Job(ctx, job.ID)
		if err != nil {
			return nil, err
		}
		u, err := w.log.Upload(ctx, upload)
		if err != nil {
			return nil, err
		}
		v, err := w.log.Version(ctx, "image", "1")
		if err != nil {
			return nil, err
		}
		return events.RetryJob(j, u, v)
	})
	if err != nil {
		t.Fatal(err)
	}
	job = w.await(upload, "succeeded", ended(events.JobStateSucceeded))
	if s := job.Step(events.StepVerify); s.Attempt != 1 {
		t.Errorf("verify ran again: %+v", s)
	}
	w.published("1")
}

func TestRefusedContentIsFinalAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	for version, test := range map[string]struct {
		root   []byte
		change func(*events.Upload)
		code   string
	}{
		"format": {[]byte("no squashfs"), nil, "wrong-format"},
		"digest": {content("x"), func(u *events.Upload) {
			u.Variants[0].Files[0].Declared = events.Digest("sha256:" + hexSum([]byte("y")))
		}, "wrong-digest"},
	} {
		upload := w.upload(version, nil, test.root, test.change)
		w.run(nil)
		job := w.await(upload, "failed", ended(events.JobStateFailed))
		if job.Problem == nil || job.Problem.Code != test.code || !job.Problem.Final {
			t.Errorf("%s: %+v", version, job.Problem)
		}
	}
}

// Many jobs of two nodes move one alias: each publication is made once, and the alias ends at the newest.
func TestPublicationsThatMoveOneAliasAllSucceed(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	const count = 30
	var uploads []string
	for i := range count {
		uploads = append(uploads, w.upload(fmt.Sprint("v", i), []string{"latest"}, content(fmt.Sprint(i)), nil))
	}
	w.run(nil)
	w.run(nil)
	for _, upload := range uploads {
		w.await(upload, "succeeded", ended(events.JobStateSucceeded))
	}
	alias, err := w.log.Alias(t.Context(), "image", "latest")
	if err != nil || alias.State.Version != fmt.Sprint("v", count-1) {
		t.Errorf("latest is %s (%v), want the newest upload's v%d", alias.State.Version, err, count-1)
	}
	succeeded := map[string]int{}
	head, err := w.log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tail, err := w.log.Tail(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	for last := events.Sequence(0); last < head; {
		batch, err := tail.Next(t.Context(), 500)
		if err != nil {
			t.Fatal(err)
		}
		for _, event := range batch {
			last = event.Sequence
			if f, ok := event.Fact.(events.JobSucceeded); ok {
				succeeded[f.ID]++
			}
		}
	}
	for id, n := range succeeded {
		if n != 1 {
			t.Errorf("job %s succeeded %d times", id, n)
		}
	}
	if len(succeeded) != count {
		t.Errorf("%d jobs succeeded, want %d", len(succeeded), count)
	}
}

// A node stops in the middle of a step; the next one takes it over, and the step runs again.
func TestAStepThatWasCutIsTakenOver(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	upload := w.upload("1", nil, content("x"), nil)
	reached, cut := make(chan struct{}), atomic.Bool{}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stop := w.run(func(c *publication.Config) {
		c.StepStarted = func(_ string, step events.Step) {
			if step == events.StepPromote && cut.CompareAndSwap(false, true) {
				close(reached)
				<-ctx.Done()
			}
		}
	})
	<-reached
	go cancel()
	stop()
	w.run(nil)
	w.await(upload, "succeeded", ended(events.JobStateSucceeded))
	w.published("1")
}
