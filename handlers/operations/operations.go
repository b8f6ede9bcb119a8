// Package operations carries out the long works that operators ask a running server for, such as the collection of garbage, a check of
// all bytes or a backup: one of a kind at a time, each with a progress that can be followed and an end that can be read. They live in the
// memory of one node. The package doesn't know what the works are; what they do is written down by themselves, in events or files.
package operations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/handlers/problem"
)

// State is where an operation is.
type State string

// States of an operation. It is running until it has ended in one of the others.
const (
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// kept is how many ended operations are remembered.
const kept = 50

// Progress is how far a work is.
type Progress struct {
	Stage string `json:"stage" doc:"What it is at" example:"sweep"`
	Done  int64  `json:"done" doc:"Of the stage, in its unit"`
	Total int64  `json:"total,omitempty" doc:"0 where it isn't known"`
	Unit  string `json:"unit,omitempty" example:"bytes"`
}

// Operation is one work, as it is or ended. Input and Result belong to its kind.
type Operation struct {
	ID        string     `json:"id"`
	Kind      string     `json:"kind" example:"gc"`
	State     State      `json:"state" enum:"running,succeeded,failed,cancelled"`
	By        string     `json:"by" doc:"Who asked for it; imgsrv for what it does by itself"`
	Input     any        `json:"input,omitempty" doc:"What was asked for"`
	Progress  Progress   `json:"progress"`
	Result    any        `json:"result,omitempty" doc:"What came of it, also of one that broke off where there is something to tell"`
	Error     string     `json:"error,omitempty"`
	Code      string     `json:"code,omitempty" doc:"Of the problem that ended it"`
	StartedAt time.Time  `json:"started_at"`
	EndedAt   *time.Time `json:"ended_at,omitempty"`
}

// Work does an operation until it is done or ctx ends, and may tell how far it is as often as it likes. What it gives as its result is
// shown as JSON, also beside an error.
type Work func(ctx context.Context, report func(Progress)) (result any, err error)

// Runner starts works and waits for them. It is safe for concurrent use.
type Runner struct {
	log  *slog.Logger
	now  func() time.Time
	ctx  context.Context //nolint:containedctx // of all works, until Close
	stop context.CancelCauseFunc
	work sync.WaitGroup

	mu     sync.Mutex
	closed bool
	all    []*running // in the order of their start
}

type running struct {
	Operation
	cancel  context.CancelCauseFunc
	changed chan struct{} // closed at the next change
}

var (
	errCancelled = errors.New("somebody cancelled it")
	errClosed    = errors.New("the server stops")
)

// NewRunner makes a Runner, which Close ends.
func NewRunner(log *slog.Logger, now func() time.Time) *Runner {
	ctx, stop := context.WithCancelCause(context.Background())
	return &Runner{log: log, now: now, ctx: ctx, stop: stop}
}

// Start begins a work and gives the operation as it begins. While one of the same kind runs it is refused as
// [problem.CodeOperationRunning].
func (r *Runner) Start(kind, by string, input any, work Work) (Operation, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return Operation{}, problem.New(problem.CodeUnavailable, errClosed.Error())
	}
	for _, o := range r.all {
		if o.Kind == kind && o.State == Running {
			refused := problem.New(problem.CodeOperationRunning, fmt.Sprintf("%s began one at %s: follow it, wait for its end, or cancel it", o.By, o.StartedAt.Format(time.RFC3339)))
			refused.StatusURL = Path(o.ID)
			return Operation{}, refused
		}
	}
	id, err := uuid.NewV7()
	if err != nil {
		return Operation{}, fmt.Errorf("name the operation: %w", err)
	}
	ctx, cancel := context.WithCancelCause(r.ctx)
	o := &running{cancel: cancel, changed: make(chan struct{}),
		Operation: Operation{ID: id.String(), Kind: kind, State: Running, By: by, Input: input, StartedAt: r.now().UTC()}}
	r.all = append(r.all, o)
	r.forget()
	r.work.Go(func() {
		defer cancel(nil)
		result, err := r.carryOut(ctx, o, work)
		r.end(ctx, o, result, err)
	})
	r.log.Info("operation begins", "operation", kind, "id", o.ID, "by", by)
	return o.Operation, nil
}

// Path is where the API shows an operation.
func Path(id string) string { return "/api/operations/" + id }

// carryOut makes an error of a panic: other works and requests have nothing to do with it.
func (r *Runner) carryOut(ctx context.Context, o *running, work Work) (result any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return work(ctx, func(p Progress) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if o.State == Running {
			o.Progress = p
			o.change()
		}
	})
}

func (o *running) change() {
	close(o.changed)
	o.changed = make(chan struct{})
}

func (r *Runner) end(ctx context.Context, o *running, result any, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ended := r.now().UTC()
	o.EndedAt, o.Result, o.State = &ended, result, Succeeded
	took := slog.Duration("took", ended.Sub(o.StartedAt))
	switch cause := context.Cause(ctx); {
	case err == nil:
		r.log.Info("operation succeeded", "operation", o.Kind, "id", o.ID, took)
	case cause != nil && errors.Is(err, ctx.Err()):
		o.State, o.Error = Cancelled, cause.Error()
		r.log.Info("operation cancelled", "operation", o.Kind, "id", o.ID, took, "reason", o.Error)
	default:
		// Operators alone see it: the whole error, where a request would be told an internal one.
		o.State, o.Error, o.Code = Failed, err.Error(), problem.From(err).Code
		r.log.Error("operation failed", "operation", o.Kind, "id", o.ID, took, "error", err)
	}
	o.change()
}

// forget lets go of the oldest that have ended, past those that are kept.
func (r *Runner) forget() {
	over := len(r.all) - kept
	r.all = slices.DeleteFunc(r.all, func(o *running) bool {
		if over > 0 && o.State != Running {
			over--
			return true
		}
		return false
	})
}

// List gives the operations that run or are remembered, the latest first.
func (r *Runner) List() []Operation {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Operation, 0, len(r.all))
	for _, o := range slices.Backward(r.all) {
		out = append(out, o.Operation)
	}
	return out
}

// Get gives an operation; changed is closed when there is more to tell of it. ok is false where none has the id.
func (r *Runner) Get(id string) (o Operation, changed <-chan struct{}, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.find(id)
	if found == nil {
		return Operation{}, nil, false
	}
	return found.Operation, found.changed, true
}

func (r *Runner) find(id string) *running {
	for _, o := range r.all {
		if o.ID == id {
			return o
		}
	}
	return nil
}

// Cancel ends an operation's context and gives the operation as it is then: it may run a little longer. Of one that has ended nothing
// changes. ok is false where none has the id.
func (r *Runner) Cancel(id string) (o Operation, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	found := r.find(id)
	if found == nil {
		return Operation{}, false
	}
	found.cancel(errCancelled)
	return found.Operation, true
}

// Close cancels what runs, waits for it, and lets nothing begin any more.
func (r *Runner) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.stop(errClosed)
	r.work.Wait()
}
