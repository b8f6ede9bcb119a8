package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/imgsrv/imgsrv/internal/client"
)

// OperationsCmd shows the long works of a server.
type OperationsCmd struct {
	List   OperationsListCmd   `cmd:"" default:"withargs" help:"List what the server carries out, or has carried out since it started. The same as: imgsrv operations" example:"operations"`
	Follow OperationsFollowCmd `cmd:"" help:"Follow an operation to its end; fails where it does. Ctrl-C lets it go on." example:"operations follow 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"`
	Cancel OperationsCancelCmd `cmd:"" help:"Cancel an operation. What it has done stays done." example:"operations cancel 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b"`
}

// OperationsListCmd lists.
type OperationsListCmd struct {
	clientFlags `embed:""`
}

// Run lists.
func (cmd *OperationsListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	list, err := c.Operations(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, list)
	}
	table := newTable(t.Out)
	table.row("ID\tOPERATION\tSTATE\tBY\tSTARTED\tTOOK\tPROGRESS")
	for _, o := range list {
		end := o.EndedAt
		if end.IsZero() {
			end = time.Now()
		}
		detail := o.Error
		if o.State == client.OperationRunning {
			detail = operationProgress(o.Progress)
		}
		table.row("%s\t%s\t%s\t%s\t%s\t%s\t%s", o.ID, o.Kind, o.State, o.By, localTime(o.StartedAt), shortDuration(end.Sub(o.StartedAt)), orDash(detail))
	}
	return table.flush()
}

// OperationsFollowCmd follows.
type OperationsFollowCmd struct {
	clientFlags `embed:""`

	ID string `arg:"" help:"Operation, as imgsrv operations lists it."`
}

// Run follows.
func (cmd *OperationsFollowCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	bar := newOperationBar(newProgress(t, cmd.Quiet))
	o, err := c.FollowOperation(ctx, cmd.ID, bar.show)
	bar.stop()
	switch {
	case err != nil:
		return err
	case cmd.JSON:
		err = writeJSON(t.Out, o)
	case o.State == client.OperationSucceeded:
		_, err = fmt.Fprintf(t.Out, "%s is done after %s\n", o.Kind, shortDuration(o.EndedAt.Sub(o.StartedAt)))
	}
	if err == nil && o.State != client.OperationSucceeded {
		err = &client.OperationError{Operation: *o}
	}
	return err
}

// OperationsCancelCmd cancels.
type OperationsCancelCmd struct {
	clientFlags `embed:""`

	ID string `arg:"" help:"Operation, as imgsrv operations lists it."`
}

// Run cancels.
func (cmd *OperationsCancelCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.operator(t)
	if err != nil {
		return err
	}
	o, err := c.CancelOperation(ctx, cmd.ID)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, o)
	}
	text := "is told to stop"
	if o.State != client.OperationRunning {
		text = "had ended before: it " + map[string]string{client.OperationSucceeded: "succeeded", client.OperationFailed: "failed", client.OperationCancelled: "was cancelled"}[o.State]
	}
	_, err = fmt.Fprintf(t.Out, "%s %s\n", o.Kind, text)
	return err
}

// runOperation has the server carry out what a POST of input to path asks for, with its progress on the terminal, and reads the result.
// Ctrl-C cancels it.
func (f *clientFlags) runOperation(ctx context.Context, t Terminal, what, path string, input, result any) error {
	c, err := f.operator(t)
	if err != nil {
		return err
	}
	bar := newOperationBar(newProgress(t, f.Quiet))
	err = c.RunOperation(ctx, path, input, bar.show, result)
	bar.stop()
	var ended *client.OperationError
	switch {
	case ctx.Err() != nil && (err == nil || errors.As(err, &ended) && ended.State == client.OperationCancelled):
		return &interruptedError{what + " is cancelled; what was done stays done, and the same command goes on from there"}
	case client.IsProblem(err, client.CodeOperationRunning):
		return fmt.Errorf("%w: imgsrv operations", err)
	}
	return err
}

// operationBar draws how far an operation is: a bar for bytes, now and then a line for anything else.
type operationBar struct {
	*progress
	stage string
	last  time.Time
}

func newOperationBar(p *progress) *operationBar { return &operationBar{progress: p} }

func (b *operationBar) show(p client.OperationProgress) {
	if p.Stage == "" {
		return // nothing to tell yet
	}
	if p.Stage != b.stage {
		b.stop()
		b.stage, b.last = p.Stage, b.now()
		if p.Unit == "bytes" {
			b.start(p.Stage, p.Total)
		}
	}
	if p.Unit == "bytes" {
		b.set(p.Done)
		return
	}
	if b.now().Sub(b.last) >= lineEvery {
		b.last = b.now()
		b.note("%s", operationProgress(p))
	}
}

// operationProgress is a progress in a line.
func operationProgress(p client.OperationProgress) string {
	amount := func(n int64) string {
		if p.Unit == "bytes" {
			return size(n)
		}
		return humanize.Comma(n)
	}
	unit := " " + p.Unit
	if p.Unit == "bytes" {
		unit = ""
	}
	switch {
	case p.Stage == "":
		return ""
	case p.Done == 0 && p.Total == 0:
		return p.Stage
	case p.Total == 0:
		return fmt.Sprintf("%s: %s%s", p.Stage, amount(p.Done), unit)
	default:
		return fmt.Sprintf("%s: %s of %s%s (%d %%)", p.Stage, amount(p.Done), amount(p.Total), unit, p.Done*100/p.Total)
	}
}
