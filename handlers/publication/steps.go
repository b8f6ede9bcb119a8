package publication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/faults"
	"github.com/imgsrv/imgsrv/store/blob"
)

const (
	longestPause = 2 * time.Minute
	// maxDeliveries of one step_started: a step that ends the process each time is given up.
	maxDeliveries = 20
	// lookAfter is how often a step that runs looks whether its job is still where it was.
	lookAfter = time.Second
)

// Refusal says that the content itself is at fault: no retry can help.
type Refusal struct {
	Code string
	Err  error
}

func (r *Refusal) Error() string { return r.Err.Error() }

func (r *Refusal) Unwrap() error { return r.Err }

func refuse(code, format string, args ...any) error {
	return &Refusal{Code: code, Err: fmt.Errorf(format, args...)}
}

// handleJob takes a job one fact further. Only the job's last fact leads anywhere.
func (p *Publication) handleJob(ctx context.Context, d jetstream.Delivery) error {
	fact, ok := d.Fact.(events.JobFact)
	if !ok {
		return nil
	}
	job, err := p.log.Job(ctx, fact.After().ID)
	if err != nil {
		return err
	}
	if job.Sequence != d.Sequence {
		return nil
	}
	switch fact := d.Fact.(type) {
	case events.JobQueued, events.JobRetried, events.JobStepCompleted:
		return p.startNext(ctx, d, job)
	case events.JobStepFailed:
		if wait := d.Until(job.State.Step(fact.Step).RetryAt, p.now()); wait > 0 {
			return &jetstream.RetryAfter{Delay: wait}
		}
		return p.startNext(ctx, d, job)
	case events.JobStepStarted:
		return p.runStep(ctx, d, job)
	case events.JobSucceeded, events.JobFailed, events.JobCancelled:
		return p.cleanUp(job.State)
	}
	return nil
}

func (p *Publication) startNext(ctx context.Context, d jetstream.Delivery, job events.Current[events.Job]) error {
	step, ok := job.State.Next()
	if !ok {
		return nil
	}
	changes, err := events.StartStep(job, step, p.now().UTC())
	if err != nil {
		return err
	}
	return p.append(ctx, causeOf(d, "start"), changes)
}

// append stores what follows from the job's last fact. On a conflict somebody else has taken the job
// further, and the delivery is old.
func (p *Publication) append(ctx context.Context, cause jetstream.Cause, changes []events.Change) error {
	_, err := p.log.Append(ctx, cause, changes...)
	if errors.Is(err, jetstream.ErrConflict) {
		return &jetstream.RetryAfter{Delay: time.Duration(5+rand.IntN(50)) * time.Millisecond, Err: err}
	}
	return err
}

// work is a step's side effect; it answers with the files as it leaves them.
type work func(context.Context, events.Job, events.Upload) ([]events.JobFile, error)

// runStep does what a step_started asks for, and records what came of it. Where the job has moved on meanwhile, that is nothing.
func (p *Publication) runStep(ctx context.Context, d jetstream.Delivery, job events.Current[events.Job]) error {
	step, _ := job.State.Next()
	began := time.Now()
	result, err := p.tryStep(ctx, d, job, step)
	switch {
	case errors.Is(err, errMoved), errors.Is(err, jetstream.ErrConflict) && step != events.StepPublish:
		p.meters.attempted(ctx, step, resultStopped, time.Since(began))
		if tidied := p.tidy(ctx, job); tidied != nil || errors.Is(err, errMoved) {
			return tidied
		}
		return err // comes again in a moment, and is old then, or the version alone has moved
	case err != nil:
		return err
	}
	p.meters.attempted(ctx, step, result, time.Since(began))
	return nil
}

// tidy is for a step that lost its job while it ran: what it wrote after the job's end, and the cleaning then, is removed.
func (p *Publication) tidy(ctx context.Context, before events.Current[events.Job]) error {
	job, err := p.log.Job(ctx, before.State.ID)
	if err != nil {
		return err
	}
	if _, running := job.State.Next(); running {
		return nil // its files are another worker's now
	}
	return p.cleanUp(job.State)
}

// tryStep is one attempt; result is what was recorded of it.
func (p *Publication) tryStep(ctx context.Context, d jetstream.Delivery, job events.Current[events.Job], step events.Step) (result string, err error) {
	works := map[events.Step]work{
		events.StepVerify: p.verify, events.StepInspect: p.inspect, events.StepMaterialize: p.materialize, events.StepPromote: p.promote,
	}
	begin := func() {
		if p.started != nil {
			p.started(job.State.ID, step)
		}
		faults.Point("begin step", string(step))
	}
	defer faults.Point("end step", string(step))
	upload, err := p.log.Upload(ctx, job.State.UploadID)
	if err != nil {
		return "", err
	}
	// A publish step comes again for each conflict about an alias, which says nothing against it.
	if d.Attempt > maxDeliveries && step != events.StepPublish {
		return p.failed(ctx, d, job, step, &poisonError{codeNeverEnded, fmt.Errorf("the step was begun %d times and never ended", d.Attempt-1)})
	}
	if step == events.StepPublish {
		begin()
		err = p.publish(ctx, d, job, upload.State)
	} else {
		do := func(ctx context.Context, job events.Job, upload events.Upload) ([]events.JobFile, error) {
			begin()
			return works[step](ctx, job, upload)
		}
		var files []events.JobFile
		if files, err = p.whenStored(ctx, job, step, do, upload.State); err == nil {
			faults.Point("step done", string(step))
			var changes []events.Change
			if changes, err = events.CompleteStep(job, step, files, p.now().UTC()); err == nil {
				err = p.append(ctx, causeOf(d, "complete"), changes)
			}
		}
	}
	if err == nil {
		return resultSucceeded, nil
	}
	if errors.Is(err, errMoved) || !policies()[kindOf(ctx, err)].counts {
		return "", err
	}
	return p.failed(ctx, d, job, step, err)
}

// whenStored performs a step's work. A storage that is full or read-only is no fault of the job: it waits where it is, until there
// is room, and counts no attempt.
func (p *Publication) whenStored(ctx context.Context, job events.Current[events.Job], step events.Step, do work, upload events.Upload) ([]events.JobFile, error) {
	for pause := p.pause; ; pause = min(2*pause, longestPause) {
		files, err := p.perform(ctx, job, step, do, upload)
		if !blob.IsAway(err) {
			return files, err
		}
		p.logger.WarnContext(ctx, "job waits for the storage", "job", job.State.ID, "step", step, "error", err)
		if err := p.awaitStorage(ctx, job, pause); err != nil {
			return nil, err
		}
		p.logger.InfoContext(ctx, "the storage takes bytes again: job goes on", "job", job.State.ID, "step", step)
	}
}

// awaitStorage waits for the storage as long as the job stays where it is; else the error is errMoved.
func (p *Publication) awaitStorage(ctx context.Context, job events.Current[events.Job], pause time.Duration) error {
	ctx, stop := context.WithCancelCause(ctx)
	var looking sync.WaitGroup
	defer looking.Wait()
	defer stop(nil)
	looking.Go(func() {
		look := time.NewTicker(lookAfter)
		defer look.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
				if p.moved(ctx, job) {
					stop(errMoved)
					return
				}
			}
		}
	})
	return p.store.Await(ctx, pause)
}

// failed records a failed attempt, and gives the job up when its error says so or no attempt is left.
func (p *Publication) failed(ctx context.Context, d jetstream.Delivery, job events.Current[events.Job], step events.Step, cause error) (result string, err error) {
	now, k := p.now().UTC(), kindOf(ctx, cause)
	attempt := job.State.Step(step).Attempt
	if policies()[k].again && attempt < p.attempts {
		pause := p.pauseAfter(attempt)
		p.logger.WarnContext(ctx, "step failed, will be tried again", "job", job.State.ID, "step", step, "attempt", attempt, "in", pause, "error", cause)
		changes, err := events.FailStep(job, step, cause.Error(), now, now.Add(pause))
		if err != nil {
			return "", err
		}
		return resultRetried, p.append(ctx, causeOf(d, "fail"), changes)
	}
	problem := problemOf(k, cause)
	p.logger.WarnContext(ctx, "job failed", "job", job.State.ID, "image", job.State.Image, "version", job.State.Version, "step", step, "kind", k, "code", problem.Code, "final", problem.Final, "error", cause)
	version, err := p.log.Version(ctx, job.State.Image, job.State.Version)
	if err != nil {
		return "", err
	}
	changes, err := events.FailJob(job, version, step, problem, now)
	if err != nil {
		return "", err
	}
	if k == permanent {
		return resultRefused, p.append(ctx, causeOf(d, "give up"), changes)
	}
	return resultFailed, p.append(ctx, causeOf(d, "give up"), changes)
}
