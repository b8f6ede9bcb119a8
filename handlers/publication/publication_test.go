package publication_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/publication"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

// works is where publications happen.
type works struct{ *workstest.Works }

func newWorks(t *testing.T) *works {
	t.Helper()
	return &works{workstest.New(t)}
}

// node has the consumers of one.
func (w *works) node(change func(*publication.Config)) *publication.Publication {
	w.T.Helper()
	cfg := publication.Config{Log: w.Log, Store: w.Store, Logger: slog.New(slog.DiscardHandler), Pause: 20 * time.Millisecond}
	if change != nil {
		change(&cfg)
	}
	publications, err := publication.New(cfg)
	if err != nil {
		w.T.Fatal(err)
	}
	return publications
}

// run starts the consumers of a node; stop ends them before the test does.
func (w *works) run(change func(*publication.Config)) (stop func()) {
	return workstest.Run(w.T, w.node(change).Run)
}

// upload takes a container's root all the way to its job; it gives the session's id.
func (w *works) upload(version string, aliases []string, root []byte, change func(*events.Upload)) string {
	w.T.Helper()
	u := workstest.Session("image", version, int64(len(root)))
	u.Aliases = aliases
	if change != nil {
		change(&u)
	}
	err := w.Decide(func(ctx context.Context) ([]events.Change, error) {
		held, err := w.Log.Version(ctx, u.Image, u.Version)
		if err != nil {
			return nil, err
		}
		return events.Initiate(events.InitiateUpload{Session: u, Version: held, IsArchitecture: workstest.NoArchitecture})
	})
	if err := errors.Join(err, w.Bring(u.ID, root)); err != nil {
		w.T.Fatal(err)
	}
	return u.ID
}

// await waits until the job of a session satisfies a condition.
func (w *works) await(upload string, what string, ok func(events.Job) bool) events.Job {
	w.T.Helper()
	job, err := w.AwaitJob(upload, ok)
	if err != nil {
		w.T.Fatalf("job never %s: %v", what, err)
	}
	return job
}

func ended(state events.JobState) func(events.Job) bool {
	return func(j events.Job) bool { return j.State == state }
}

func (w *works) published(version string) *events.Manifest {
	w.T.Helper()
	current, err := w.Log.Version(w.T.Context(), "image", version)
	if err != nil || current.State.State != events.StatePublished {
		w.T.Fatalf("version %s is %s (%v)", version, current.State.State, err)
	}
	return current.State.Manifest
}

func TestFilesBecomeAVersion(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	root := workstest.Root("root file system")
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
	if v.Fingerprint != eventstest.Digest(workstest.Metadata, root).Hex() || len(v.Formats) != 2 {
		t.Errorf("variant %+v", v)
	}
	for _, f := range v.Formats {
		if ok, err := w.Store.HasBlob(f.Digest.Hex(), f.Size); err != nil || !ok {
			t.Errorf("format %s is no blob (%v)", f.Format, err)
		}
		if b, err := w.Log.Blob(t.Context(), f.Digest); err != nil || b.State.Size != f.Size || f.MediaType == "" {
			t.Errorf("blob of %s: %+v (%v)", f.Format, b.State, err)
		}
	}
}

func TestAPassingFaultIsTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	cas := filepath.Join(w.Root, "cas", "sha256")
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
	upload := w.upload("1", nil, workstest.Root("x"), nil)
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
	cas := filepath.Join(w.Root, "cas", "sha256")
	if err := os.Rename(cas, cas+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cas, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	upload := w.upload("1", nil, workstest.Root("x"), nil)
	w.run(func(c *publication.Config) { c.Attempts = 2; c.Pause = time.Millisecond })
	job := w.await(upload, "failed", ended(events.JobStateFailed))
	if job.Problem == nil || job.Problem.Final || job.Step(events.StepPromote).Attempt != 2 {
		t.Fatalf("job %+v", job)
	}
	version, err := w.Log.Version(t.Context(), "image", "1")
	if err != nil || version.State.State != events.StateReleased {
		t.Errorf("version is %s (%v)", version.State.State, err)
	}
	if err := os.Remove(cas); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(cas+".away", cas); err != nil {
		t.Fatal(err)
	}
	_, err = w.Log.Decide(t.Context(), jetstream.Cause{}, func(ctx context.Context) ([]events.Change, error) {
		j, err := w.Log.Job(ctx, job.ID)
		if err != nil {
			return nil, err
		}
		u, err := w.Log.Upload(ctx, upload)
		if err != nil {
			return nil, err
		}
		v, err := w.Log.Version(ctx, "image", "1")
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
		"digest": {workstest.Root("x"), func(u *events.Upload) {
			u.Variants[0].Files[0].Declared = eventstest.Digest("y")
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
		uploads = append(uploads, w.upload(fmt.Sprint("v", i), []string{"latest"}, workstest.Root(fmt.Sprint(i)), nil))
	}
	w.run(nil)
	w.run(nil)
	for _, upload := range uploads {
		w.await(upload, "succeeded", ended(events.JobStateSucceeded))
	}
	alias, err := w.Log.Alias(t.Context(), "image", "latest")
	if err != nil || alias.State.Version != fmt.Sprint("v", count-1) {
		t.Errorf("latest is %s (%v), want the newest upload's v%d", alias.State.Version, err, count-1)
	}
	succeeded := map[string]int{}
	head, err := w.Log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tail, err := w.Log.Tail(t.Context(), 0)
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
	upload := w.upload("1", nil, workstest.Root("x"), nil)
	reached, cut := make(chan struct{}), atomic.Bool{}
	ctx, cancel := context.WithCancel(t.Context())
	node := w.node(func(c *publication.Config) {
		c.StepStarted = func(_ string, step events.Step) {
			if step == events.StepPromote && cut.CompareAndSwap(false, true) {
				close(reached)
				<-ctx.Done()
			}
		}
	})
	stop := workstest.Run(t, func(context.Context) error { return node.Run(ctx) })
	<-reached
	cancel()
	stop()
	w.run(nil)
	w.await(upload, "succeeded", ended(events.JobStateSucceeded))
	w.published("1")
}
