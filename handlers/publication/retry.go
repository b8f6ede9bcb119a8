package publication

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// kind is what the error of a step says about trying it again.
type kind string

const (
	waiting   kind = "waiting"   // the log doesn't answer, somebody was faster, or the node stops: says nothing against the step
	transient kind = "transient" // may pass: an I/O error, a step that took too long
	permanent kind = "permanent" // the content itself is at fault: no retry can help
	poison    kind = "poison"    // takes the code itself down: another release may do better, another attempt won't
)

// policy is what follows from an error of a kind.
type policy struct {
	counts bool // as an attempt
	again  bool // is tried again while attempts are left
	final  bool // a job that is given up for it can't be retried by hand either
}

// policies are for all errors of steps; docs/jobs.md repeats them, and a test compares.
func policies() map[kind]policy {
	return map[kind]policy{
		waiting:   {},
		transient: {counts: true, again: true},
		permanent: {counts: true, final: true},
		poison:    {counts: true},
	}
}

// Codes of the problems of jobs that were given up for something else than their content.
const (
	codeStepFailed = "step-failed"
	codeTimeout    = "step-timeout"
	codePanicked   = "step-panicked"
	codeNeverEnded = "never-ended"
)

// poisonError is what no further attempt of this release changes.
type poisonError struct {
	code string
	err  error
}

func (e *poisonError) Error() string { return e.err.Error() }

func (e *poisonError) Unwrap() error { return e.err }

// Errors by which a step is stopped from outside.
var (
	errMoved   = errors.New("the job has moved on")
	errTimeout = errors.New("the step took longer than it may")
)

// kindOf sorts an error. What nobody knows may pass.
func kindOf(ctx context.Context, err error) kind {
	var later *jetstream.RetryAfter
	var refusal *Refusal
	var bad *poisonError
	switch {
	case errors.As(err, &refusal):
		return permanent
	case errors.As(err, &bad):
		return poison
	case errors.As(err, &later), errors.Is(err, jetstream.ErrUnavailable), errors.Is(err, jetstream.ErrConflict), ctx.Err() != nil:
		return waiting
	}
	return transient
}

// problemOf is what a job that is given up says of its error.
func problemOf(k kind, err error) events.Problem {
	problem := events.Problem{Code: codeStepFailed, Detail: err.Error(), Final: policies()[k].final}
	var refusal *Refusal
	var bad *poisonError
	switch {
	case errors.As(err, &refusal):
		problem.Code = refusal.Code
	case errors.As(err, &bad):
		problem.Code = bad.code
	case errors.Is(err, errTimeout):
		problem.Code = codeTimeout
	}
	return problem
}

// pauseAfter is the time before the attempt after this one: it doubles up to longestPause, and jitter keeps jobs apart that failed together.
func (p *Publication) pauseAfter(attempt int) time.Duration {
	pause := min(p.pause<<min(attempt-1, 10), longestPause)
	return time.Duration(float64(pause) * (0.8 + 0.4*rand.Float64()))
}

type outcome struct {
	files []events.JobFile
	err   error
}

// perform does a step's work, for as long as it may take and the job stays where it is: a job that was cancelled, or that another node
// took over while this one was silent, ends the work within a moment, with errMoved.
//
// Work that doesn't heed its end, as one that hangs in a read of a network's file system, is left behind after abandonAfter:
// nothing can end it, and its job must go on. What it may still do is harmless, as each step can run twice.
func (p *Publication) perform(ctx context.Context, job events.Current[events.Job], step events.Step, do work, upload events.Upload) ([]events.JobFile, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	result := make(chan outcome, 1)
	go func() {
		files, err := guarded(ctx, p.logger, job.State, step, do, upload)
		result <- outcome{files, err}
	}()
	deadline := time.NewTimer(p.stepTimeout)
	defer deadline.Stop()
	look := time.NewTicker(lookAfter)
	defer look.Stop()
	var abandon <-chan time.Time
	ended := ctx.Done()
	for {
		select {
		case o := <-result:
			if cause := context.Cause(ctx); o.err != nil && cause != nil {
				o.err = cause
			}
			return o.files, o.err
		case <-look.C:
			if p.moved(ctx, job) {
				stop(errMoved)
			}
		case <-deadline.C:
			stop(fmt.Errorf("%w, %s", errTimeout, p.stepTimeout))
		case <-ended:
			ended, abandon = nil, time.After(p.abandonAfter)
		case <-abandon:
			p.logger.ErrorContext(ctx, "a step doesn't end although it was told to; it is left behind", "job", job.State.ID, "step", step, "why", context.Cause(ctx))
			p.meters.abandoned.Add(ctx, 1)
			return nil, context.Cause(ctx)
		}
	}
}

// moved says that the job is surely not where it was.
func (p *Publication) moved(ctx context.Context, job events.Current[events.Job]) bool {
	ctx, cancel := context.WithTimeout(ctx, lookAfter)
	defer cancel()
	current, err := p.log.Job(ctx, job.State.ID)
	return err == nil && current.Sequence != job.Sequence
}

// guarded turns a panic into an error: one job must not take the node down, and with it all others.
func guarded(ctx context.Context, log *slog.Logger, job events.Job, step events.Step, do work, upload events.Upload) (files []events.JobFile, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			log.ErrorContext(ctx, "step panicked", "job", job.ID, "step", step, "panic", cause, "stack", string(debug.Stack()))
			err = &poisonError{codePanicked, fmt.Errorf("step %s panicked; the server's log says where", step)}
		}
	}()
	return do(ctx, job, upload)
}
