package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// The states of a job.
const (
	JobQueued    = "queued"
	JobRunning   = "running"
	JobSucceeded = "succeeded"
	JobFailed    = "failed"
	JobCancelled = "cancelled"
)

// Job takes the files of an upload session to a published version.
type Job struct {
	ID         string    `json:"id"`
	Image      string    `json:"image"`
	Version    string    `json:"version"`
	UploadURL  string    `json:"upload_url,omitempty"`
	State      string    `json:"state"`
	Steps      []JobStep `json:"steps"`
	VersionURL string    `json:"version_url,omitempty"`
	Error      *JobError `json:"error,omitempty"`
	QueuedAt   time.Time `json:"queued_at,omitzero"`
	EndedAt    time.Time `json:"ended_at,omitzero"`
}

// Ended says that nothing more happens to the job by itself.
func (j *Job) Ended() bool {
	return j.State == JobSucceeded || j.State == JobFailed || j.State == JobCancelled
}

// JobStep is one step's progress.
type JobStep struct {
	Name       string    `json:"name"`
	State      string    `json:"state"`
	Attempt    int       `json:"attempt"` // from 1; 0 while pending
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	Error      string    `json:"error,omitempty"` // of the last attempt
	RetryAt    time.Time `json:"retry_at,omitzero"`
}

// JobError is why a job failed. Final: a retry would meet the same refusal.
type JobError struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
	Final  bool   `json:"final"`
}

// Job reads a job; ref is its job_url or its ID.
func (c *Client) Job(ctx context.Context, ref string) (*Job, error) {
	return ask[Job](ctx, c, http.MethodGet, refOr(ref, "api", "jobs"), nil)
}

// RetryJob begins a failed job again where it failed.
func (c *Client) RetryJob(ctx context.Context, id string) (*Job, error) {
	return ask[Job](ctx, c, http.MethodPost, route("api", "jobs", id, "retry"), nil)
}

// CancelJob ends a job that has not published; reason may be empty.
func (c *Client) CancelJob(ctx context.Context, id, reason string) (*Job, error) {
	return ask[Job](ctx, c, http.MethodPost, route("api", "jobs", id, "cancel"), map[string]string{"reason": reason})
}

// Jobs lists jobs, newest first, page by page as they are asked for; state "" means all. An error ends the list.
func (c *Client) Jobs(ctx context.Context, state string) iter.Seq2[Job, error] {
	query := url.Values{}
	if state != "" {
		query.Set("state", state)
	}
	return pages[Job](ctx, c, "/api/jobs", query, "jobs")
}

// maxUnknown is how often WaitJob takes a job for one that is about to be queued: a session's job_url is known before the
// fact that queues the job. With the waits of poll it is about ten seconds.
const maxUnknown = 16

// WaitJob asks for a job until it has ended, and gives it as it is then; changed, if set, is told each state seen. Failures
// that may pass, such as a server that starts anew, are waited out. A failed job is no error.
func (c *Client) WaitJob(ctx context.Context, ref string, changed func(*Job)) (*Job, error) {
	wait := poll{}
	for unknown := 0; ; {
		var j *Job
		err := c.again(ctx, func() (err error) {
			j, err = c.Job(ctx, ref)
			return err
		})
		if IsProblem(err, CodeNotFound) && unknown < maxUnknown {
			unknown++
			if err := wait.next(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if changed != nil {
			changed(j)
		}
		if j.Ended() {
			return j, nil
		}
		if err := wait.next(ctx); err != nil {
			return nil, err
		}
	}
}

// pageSize is how many entries are asked for at once.
const pageSize = 100

// pages reads a list that the server gives in pages {"<field>":[…],"next":"…"}.
func pages[T any](ctx context.Context, c *Client, list string, query url.Values, field string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		query.Set("limit", strconv.Itoa(pageSize))
		for {
			var page page[T]
			page.field = field
			if err := c.call(ctx, http.MethodGet, list+"?"+query.Encode(), nil, &page); err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, entry := range page.entries {
				if !yield(entry, nil) {
					return
				}
			}
			// The same cursor again would be an endless list.
			if page.next == "" || page.next == query.Get("after") {
				return
			}
			query.Set("after", page.next)
		}
	}
}
