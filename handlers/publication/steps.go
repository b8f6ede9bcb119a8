package publication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/blob"
)

const (
	longestPause = 2 * time.Minute
	// maxDeliveries of one step_started: a step that ends the process each time is given up.
	maxDeliveries = 20
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
	job, err := p.log.Job(ctx, fact.JobState().ID)
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
	case events.JobSucceeded, events.JobFailed:
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

func (p *Publication) runStep(ctx context.Context, d jetstream.Delivery, job events.Current[events.Job]) error {
	step, _ := job.State.Next()
	works := map[events.Step]work{
		events.StepVerify: p.verify, events.StepInspect: p.inspect, events.StepMaterialize: p.materialize, events.StepPromote: p.promote,
	}
	if p.started != nil {
		p.started(job.State.ID, step)
	}
	upload, err := p.log.Upload(ctx, job.State.UploadID)
	if err != nil {
		return err
	}
	// A publish step comes again for each conflict about an alias, which says nothing against it.
	if d.Attempt > maxDeliveries && step != events.StepPublish {
		return p.failed(ctx, d, job, step, fmt.Errorf("the step was begun %d times and never ended", d.Attempt-1))
	}
	if step == events.StepPublish {
		err = p.publish(ctx, d, job, upload.State)
	} else {
		var files []events.JobFile
		if files, err = p.whenStored(ctx, works[step], job.State, step, upload.State); err == nil {
			var changes []events.Change
			if changes, err = events.CompleteStep(job, step, files, p.now().UTC()); err == nil {
				return p.append(ctx, causeOf(d, "complete"), changes)
			}
		}
	}
	var later *jetstream.RetryAfter
	switch {
	case err == nil, errors.As(err, &later), errors.Is(err, jetstream.ErrUnavailable), ctx.Err() != nil:
		return err
	}
	return p.failed(ctx, d, job, step, err)
}

// whenStored does a step's work. A storage that is full or read-only is no fault of the job: it waits where it is, until there
// is room, and counts no attempt.
func (p *Publication) whenStored(ctx context.Context, do work, job events.Job, step events.Step, upload events.Upload) ([]events.JobFile, error) {
	for pause := p.pause; ; pause = min(2*pause, longestPause) {
		files, err := do(ctx, job, upload)
		if !blob.IsAway(err) {
			return files, err
		}
		p.logger.WarnContext(ctx, "job waits for the storage", "job", job.ID, "step", step, "error", err)
		if err := p.store.Await(ctx, pause); err != nil {
			return nil, err
		}
		p.logger.InfoContext(ctx, "the storage takes bytes again: job goes on", "job", job.ID, "step", step)
	}
}

// failed records a failed attempt, and gives the job up when its content is refused or no attempt is left.
func (p *Publication) failed(ctx context.Context, d jetstream.Delivery, job events.Current[events.Job], step events.Step, cause error) error {
	now := p.now().UTC()
	attempt := job.State.Step(step).Attempt
	var refusal *Refusal
	refused := errors.As(cause, &refusal)
	if !refused && attempt < p.attempts && (d.Attempt <= maxDeliveries || step == events.StepPublish) {
		pause := min(p.pause<<min(attempt-1, 10), longestPause)
		pause = time.Duration(float64(pause) * (0.8 + 0.4*rand.Float64()))
		p.logger.WarnContext(ctx, "step failed, will be tried again", "job", job.State.ID, "step", step, "attempt", attempt, "in", pause, "error", cause)
		changes, err := events.FailStep(job, step, cause.Error(), now, now.Add(pause))
		if err != nil {
			return err
		}
		return p.append(ctx, causeOf(d, "fail"), changes)
	}
	problem := events.Problem{Code: "step-failed", Detail: cause.Error()}
	if refused {
		problem.Code, problem.Final = refusal.Code, true
	}
	p.logger.WarnContext(ctx, "job failed", "job", job.State.ID, "image", job.State.Image, "version", job.State.Version, "step", step, "code", problem.Code, "final", problem.Final, "error", cause)
	version, err := p.log.Version(ctx, job.State.Image, job.State.Version)
	if err != nil {
		return err
	}
	changes, err := events.FailJob(job, version, step, problem, now)
	if err != nil {
		return err
	}
	return p.append(ctx, causeOf(d, "give up"), changes)
}
