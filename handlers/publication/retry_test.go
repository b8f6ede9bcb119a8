package publication_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/publication"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

// cancel cancels the job of a session.
func (w *works) cancel(upload string) {
	w.T.Helper()
	_, err := w.Log.Decide(w.T.Context(), jetstream.Cause{}, func(ctx context.Context) ([]events.Change, error) {
		job, err := w.Log.Job(ctx, events.JobIDFor(upload))
		if err != nil {
			return nil, err
		}
		version, err := w.Log.Version(ctx, job.State.Image, job.State.Version)
		if err != nil {
			return nil, err
		}
		return events.CancelJob(job, version, "operator", "", time.Now())
	})
	if err != nil {
		w.T.Fatal(err)
	}
}

// awaitNoIngress waits until nothing of a job is left in ingress.
func (w *works) awaitNoIngress(upload string) {
	w.T.Helper()
	folder := filepath.Join(w.Root, "ingress", "jobs", events.JobIDFor(upload))
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := os.Stat(folder)
		if os.IsNotExist(err) {
			return
		}
		if time.Now().After(deadline) {
			w.T.Fatalf("%s is still there (%v)", folder, err)
		}
	}
}

// The step writes on after the cleaning, as one on another node may: what it wrote goes too, and nothing is published.
func TestACancelledJobsStepIsStoppedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	upload := w.upload("1", []string{"latest"}, workstest.Root("x"), nil)
	reached, release := make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	var stopped atomic.Bool
	w.run(func(c *publication.Config) {
		c.StepStarted = func(_ string, step events.Step) {
			if step == events.StepMaterialize && once.CompareAndSwap(false, true) {
				close(reached)
				<-release
				stopped.Store(true)
			}
		}
	})
	<-reached
	w.cancel(upload)
	w.awaitNoIngress(upload)
	close(release) // materialize now writes the tarball
	w.awaitNoIngress(upload)
	next := w.upload("1", []string{"latest"}, workstest.Root("y"), nil) // the name is free
	w.await(next, "succeeded", ended(events.JobStateSucceeded))
	job, err := w.Log.Job(t.Context(), events.JobIDFor(upload))
	if err != nil || job.State.State != events.JobStateCancelled || !stopped.Load() {
		t.Errorf("job is %s (%v), its step went on: %v", job.State.State, err, stopped.Load())
	}
	w.awaitNoIngress(upload)
	if m := w.published("1"); m.UploadID != next {
		t.Errorf("version 1 is of session %s, want %s", m.UploadID, next)
	}
}

// Work that heeds its context ends within a moment of the cancellation; the worker is free for the next job.
func TestAStepSeesThatItsJobWasCancelled(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	upload := w.upload("1", nil, workstest.Root("x"), nil)
	reached := make(chan struct{})
	hang := make(chan struct{})
	defer close(hang)
	var once atomic.Bool
	w.run(func(c *publication.Config) {
		c.Workers, c.AbandonAfter = 1, time.Millisecond
		c.StepStarted = func(string, events.Step) {
			if once.CompareAndSwap(false, true) {
				close(reached)
				<-hang // as in a read of a file system that doesn't answer
			}
		}
	})
	<-reached
	w.cancel(upload)
	next := w.upload("2", nil, workstest.Root("y"), nil)
	w.await(next, "succeeded", ended(events.JobStateSucceeded)) // on the one worker
}

// A step that hangs while its heartbeat goes on has a deadline, and is tried again.
func TestAStepThatHangsIsGivenUpAndTriedAgain(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	upload := w.upload("1", nil, workstest.Root("x"), nil)
	hang := make(chan struct{})
	defer close(hang)
	var times atomic.Int32
	w.run(func(c *publication.Config) {
		c.StepTimeout, c.AbandonAfter = time.Second, time.Millisecond // that the other steps have, too
		c.StepStarted = func(_ string, step events.Step) {
			if step == events.StepInspect && times.Add(1) == 1 {
				<-hang
			}
		}
	})
	failed := w.await(upload, "failed at inspect", func(j events.Job) bool { return j.Step(events.StepInspect).State == events.StepFailed })
	if s := failed.Step(events.StepInspect); s.Error != "the step took longer than it may, 1s" {
		t.Errorf("step %+v", s)
	}
	w.await(upload, "succeeded", ended(events.JobStateSucceeded))
}

// A step that panics takes neither the node down nor another attempt; an operator may retry it.
func TestAStepThatPanicsFailsItsJobAlone(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	bad := w.upload("1", nil, workstest.Root("x"), nil)
	good := w.upload("2", nil, workstest.Root("y"), nil)
	w.run(func(c *publication.Config) {
		c.StepStarted = func(job string, step events.Step) {
			if job == events.JobIDFor(bad) && step == events.StepInspect {
				panic("a fault of ours")
			}
		}
	})
	job := w.await(bad, "failed", ended(events.JobStateFailed))
	if job.Problem == nil || job.Problem.Code != "step-panicked" || job.Problem.Final || job.Step(events.StepInspect).Attempt != 1 {
		t.Errorf("problem %+v, step %+v", job.Problem, job.Step(events.StepInspect))
	}
	w.await(good, "succeeded", ended(events.JobStateSucceeded))
}
