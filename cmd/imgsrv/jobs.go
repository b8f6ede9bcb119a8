package main

import (
	"context"
	"io"

	"github.com/dustin/go-humanize"

	"github.com/imgsrv/imgsrv/internal/client"
)

// JobsCmd shows publication jobs, retries failed ones and cancels those that haven't published.
type JobsCmd struct {
	List   JobsListCmd   `cmd:"" default:"withargs" help:"List jobs, newest first, or show one in full. The same as: imgsrv jobs" example:"jobs --state failed"`
	Retry  JobsRetryCmd  `cmd:"" help:"Begin a failed job again at the step that failed." example:"jobs retry 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b --wait"`
	Cancel JobsCancelCmd `cmd:"" help:"End a job that has not published: its version is free again and its files are removed, for good." example:"jobs cancel 0199a1b2-3c4d-7e5f-8a6b-7c8d9e0f1a2b --reason 'wrong image'"`
}

// JobsListCmd lists jobs or shows one.
type JobsListCmd struct {
	clientFlags `embed:""`

	ID    string `arg:"" optional:"" help:"Job to show with its steps."`
	State string `help:"Only jobs in this state: queued, running, succeeded, failed or cancelled." enum:",queued,running,succeeded,failed,cancelled" default:"" placeholder:"STATE"`
	Limit int    `help:"At most so many jobs; 0 for all." default:"50" placeholder:"N"`
}

// Run lists.
func (cmd *JobsListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	if cmd.ID != "" {
		job, err := c.Job(ctx, cmd.ID)
		if err != nil {
			return err
		}
		if cmd.JSON {
			return writeJSON(t.Out, job)
		}
		return printJob(t.Out, job)
	}
	jobs := []client.Job{}
	for job, err := range c.Jobs(ctx, cmd.State) {
		if err != nil {
			return err
		}
		jobs = append(jobs, job)
		if len(jobs) == cmd.Limit {
			break
		}
	}
	if cmd.JSON {
		return writeJSON(t.Out, jobs)
	}
	return printJobs(t.Out, jobs)
}

// JobsRetryCmd retries a failed job.
type JobsRetryCmd struct {
	clientFlags `embed:""`

	ID   string `arg:"" help:"Job to retry."`
	Wait bool   `help:"Wait for the job's end."`
}

// Run retries.
func (cmd *JobsRetryCmd) Run(ctx context.Context, t Terminal) error {
	if err := cmd.needToken(); err != nil {
		return err
	}
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	job, err := c.RetryJob(ctx, cmd.ID)
	if err != nil {
		return err
	}
	if cmd.Wait {
		if job, err = c.WaitJob(ctx, cmd.ID, nil); err != nil {
			return interrupted(ctx, err, "the job goes on; see: imgsrv jobs "+cmd.ID)
		}
		if job.State != client.JobSucceeded {
			return failureOf(job)
		}
	}
	if cmd.JSON {
		return writeJSON(t.Out, job)
	}
	return printJob(t.Out, job)
}

// JobsCancelCmd cancels a job.
type JobsCancelCmd struct {
	clientFlags `embed:""`

	ID     string `arg:"" help:"Job to cancel."`
	Reason string `help:"Why; whoever looks at the job is told." placeholder:"TEXT"`
}

// Run cancels.
func (cmd *JobsCancelCmd) Run(ctx context.Context, t Terminal) error {
	if err := cmd.needToken(); err != nil {
		return err
	}
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	job, err := c.CancelJob(ctx, cmd.ID, cmd.Reason)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, job)
	}
	return printJob(t.Out, job)
}

func printJobs(w io.Writer, jobs []client.Job) error {
	t := newTable(w)
	t.row("JOB\tSTATE\tIMAGE\tVERSION\tQUEUED\tERROR")
	for _, j := range jobs {
		reason := ""
		if j.Error != nil {
			reason = j.Error.Detail
		}
		queued := "-"
		if !j.QueuedAt.IsZero() {
			queued = humanize.Time(j.QueuedAt)
		}
		t.row("%s\t%s\t%s\t%s\t%s\t%s", j.ID, j.State, orDash(j.Image), orDash(j.Version), queued, orDash(reason))
	}
	return t.flush()
}

func printJob(w io.Writer, j *client.Job) error {
	t := newTable(w)
	t.row("job\t%s", j.ID)
	t.row("state\t%s", j.State)
	t.row("image\t%s %s", orDash(j.Image), j.Version)
	t.row("queued\t%s", localTime(j.QueuedAt))
	if j.VersionURL != "" {
		t.row("version\t%s", j.VersionURL)
	}
	if j.Error != nil {
		t.row("error\t%s", j.Error.Detail)
	}
	if err := t.flush(); err != nil {
		return err
	}
	t = newTable(w)
	t.row("\nSTEP\tSTATE\tATTEMPT\tSTARTED\tTOOK\tERROR")
	for _, s := range j.Steps {
		took := "-"
		if !s.FinishedAt.IsZero() {
			took = shortDuration(s.FinishedAt.Sub(s.StartedAt))
		}
		t.row("%s\t%s\t%d\t%s\t%s\t%s", s.Name, s.State, s.Attempt, localTime(s.StartedAt), took, orDash(s.Error))
	}
	return t.flush()
}
