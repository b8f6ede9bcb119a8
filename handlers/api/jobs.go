package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/catalog"
)

type jobsInput struct {
	State string `query:"state" enum:"queued,running,succeeded,failed,cancelled" doc:"Only jobs in this state"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Jobs on a page"`
	After string `query:"after" doc:"next of the page before"`
}

type jobsOutput struct {
	Link string `header:"Link" doc:"The next page, rel=next (RFC 8288)"`
	Body jobsPage
}

type jobsPage struct {
	Jobs []jobStatus `json:"jobs" nullable:"false"`
	Next string      `json:"next,omitempty" doc:"after of the next page; absent on the last one"`
}

type jobOutput struct {
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the job's last event"`
	Body     jobStatus
}

type changedJobOutput struct {
	Location string `header:"Location" doc:"The job"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event; send it as Imgsrv-Min-Sequence to read your own write"`
	Body     jobStatus
}

type cancelInput struct {
	ID   string `path:"id" doc:"UUID" example:"0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"`
	Body *struct {
		Reason string `json:"reason,omitempty" maxLength:"500" doc:"Why; whoever looks at the job is told" example:"wrong image"`
	}
}

// jobStatus is a publication job.
type jobStatus struct {
	ID         string       `json:"id" format:"uuid"`
	State      string       `json:"state" enum:"queued,running,succeeded,failed,cancelled"`
	Image      string       `json:"image" example:"debian-bookworm"`
	Version    string       `json:"version" example:"12.5.0"`
	UploadURL  string       `json:"upload_url" format:"uri" doc:"The session whose files it publishes"`
	URL        string       `json:"url" format:"uri"`
	QueuedAt   time.Time    `json:"queued_at"`
	EndedAt    *time.Time   `json:"ended_at,omitempty"`
	Steps      []stepStatus `json:"steps" nullable:"false" doc:"In their order"`
	Retries    int          `json:"retries" doc:"How often the job was retried by hand"`
	VersionURL string       `json:"version_url,omitempty" format:"uri" doc:"The version, once the job has succeeded"`
	Error      *jobError    `json:"error,omitempty" doc:"Why the job failed"`
}

type stepStatus struct {
	Name       string     `json:"name" enum:"verify,inspect,materialize,promote,publish"`
	State      string     `json:"state" enum:"pending,running,succeeded,failed"`
	Attempt    int        `json:"attempt" doc:"From 1; 0 while pending"`
	StartedAt  *time.Time `json:"started_at,omitempty"`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
	Error      string     `json:"error,omitempty" doc:"Of the last attempt"`
	RetryAt    *time.Time `json:"retry_at,omitempty" doc:"When a failed step is tried again"`
}

type jobError struct {
	Code   string `json:"code" example:"wrong-format"`
	Detail string `json:"detail"`
	Final  bool   `json:"final" doc:"The content itself was refused: a retry can't help"`
}

// jobs registers GET /api/jobs: 200 a page, newest first, 400 a wrong cursor, 401, 422, 503;
// GET /api/jobs/{id}: 200, 401, 404, 503; POST /api/jobs/{id}/retry: 202 with Location and Imgsrv-Sequence,
// 401, 403, 404, 409 the job has not failed, its content was refused or its version is taken, 503;
// POST /api/jobs/{id}/cancel: 200 with Imgsrv-Sequence, 400, 401, 403, 404, 409 it has published, or failed for good, 413, 415, 422, 503.
func (s *server) jobs() {
	read(s, huma.Operation{
		OperationID: "list-jobs", Path: pathJobs, Tags: []string{tagPublish}, Summary: "List publication jobs, newest first",
		Description: "Publishers and operators see all jobs of their images, others those that have published a version of an image that they may see.",
		Errors:      []int{http.StatusBadRequest, http.StatusUnprocessableEntity},
	}, []*projections.Runner{s.JobsProjection}, s.listJobs)
	read(s, huma.Operation{
		OperationID: "get-job", Path: pathJob, Tags: []string{tagPublish}, Summary: "Follow a publication job",
		Description: "Read from the event log: works while the database is away. `succeeded` is said once the version can be read.",
		Errors:      []int{http.StatusNotFound},
	}, nil, func(ctx context.Context, in *idInput) (*jobOutput, error) {
		job, upload, err := s.visibleJob(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		if job.State.State == events.JobStateSucceeded {
			s.waitVisible(ctx, job, len(upload.Aliases))
		}
		return &jobOutput{Sequence: uint64(job.Sequence), Body: jobStatusOf(ctx, job.State)}, nil
	})
	write(s, events.RoleReader, huma.Operation{
		OperationID: "retry-job", Method: http.MethodPost, Path: pathRetry, DefaultStatus: http.StatusAccepted, Tags: []string{tagPublish},
		Summary: "Retry a failed job",
		Description: "Goes on at the step that failed, with the files that were uploaded. Refused content stays refused. Takes the role publisher or operator of the job's image, and that of a" +
			" reader to find it.",
		Errors: []int{http.StatusNotFound, http.StatusConflict},
	}, s.retryJob)
	write(s, events.RoleReader, huma.Operation{
		OperationID: "cancel-job", Method: http.MethodPost, Path: pathCancel, DefaultStatus: http.StatusOK, Tags: []string{tagPublish},
		Summary: "Cancel a job that has not published",
		Description: "Stops what runs of it, on whatever node, within a few seconds, frees its version at once and removes its files. A cancelled job can't be retried. One that waits for a" +
			" retry after a failure can be cancelled too; cancelling twice is once. Takes the role publisher or operator of the job's image, and that of a reader to find it.",
		Errors: []int{http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge,
			http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity},
	}, s.cancelJob)
}

func (s *server) listJobs(ctx context.Context, in *jobsInput) (*jobsOutput, error) {
	p := access.From(ctx)
	jobs, next, err := s.Catalog.Jobs(ctx, catalog.JobFilter{State: events.JobState(in.State), After: in.After, Limit: in.Limit, Shown: catalog.JobsShown{
		Published: readable(ctx), Publisher: catalog.ReadableBy(p.Holds(events.RolePublisher)), Operator: catalog.ReadableBy(p.Holds(events.RoleOperator))}})
	if err != nil {
		return nil, err
	}
	out := &jobsOutput{Body: jobsPage{Jobs: []jobStatus{}, Next: next}}
	for _, row := range jobs {
		out.Body.Jobs = append(out.Body.Jobs, jobStatusOf(ctx, row.Job))
	}
	out.Link = nextLink(ctx, pathJobs, next, in.Limit, "state", in.State)
	return out, nil
}

// visibleJob reads a job that the caller may see, and its session.
func (s *server) visibleJob(ctx context.Context, id string) (job events.Current[events.Job], upload events.Upload, err error) {
	if !events.IsID(id) {
		return job, upload, missing("there is no job %q", id)
	}
	if job, err = s.Events.Job(ctx, id); err != nil {
		return job, upload, err
	}
	if job.Sequence == 0 {
		return job, upload, missing("there is no job %s", id)
	}
	current, err := s.Events.Upload(ctx, job.State.UploadID)
	if err != nil {
		return job, upload, err
	}
	shown, err := s.showsSession(ctx, current.State)
	if err == nil && !shown {
		err = missing("there is no job %s", id)
	}
	return job, current.State, err
}

func (s *server) retryJob(ctx context.Context, in *idInput) (*changedJobOutput, error) {
	return s.changeJob(ctx, in.ID, events.RetryJob)
}

func (s *server) cancelJob(ctx context.Context, in *cancelInput) (*changedJobOutput, error) {
	reason := ""
	if in.Body != nil {
		reason = in.Body.Reason
	}
	return s.changeJob(ctx, in.ID, func(job events.Current[events.Job], _ events.Current[events.Upload], version events.Current[events.Version]) ([]events.Change, error) {
		return events.CancelJob(job, version, access.From(ctx).Name, reason, s.Clock().UTC())
	})
}

// jobRule decides about a job, its session and its version.
type jobRule func(events.Current[events.Job], events.Current[events.Upload], events.Current[events.Version]) ([]events.Change, error)

// changeJob applies a rule for whoever may publish or operate the job's image. The first change is the job's.
func (s *server) changeJob(ctx context.Context, id string, rule jobRule) (*changedJobOutput, error) {
	if !events.IsID(id) {
		return nil, missing("there is no job %q", id)
	}
	var current events.Current[events.Job]
	cause := jetstream.Cause{Actor: access.From(ctx).Name}
	sequence, err := s.Events.Decide(ctx, cause, func(ctx context.Context) (changes []events.Change, err error) {
		if current, err = s.Events.Job(ctx, id); err != nil {
			return nil, err
		}
		if current.Sequence == 0 {
			return nil, missing("there is no job %s", id)
		}
		upload, err := s.Events.Upload(ctx, current.State.UploadID)
		if err != nil {
			return nil, err
		}
		if shown, err := s.showsSession(ctx, upload.State); err != nil || !shown {
			return nil, errors.Join(err, missing("there is no job %s", id))
		}
		if err := access.Need(access.From(ctx), upload.State.Image, events.RolePublisher, events.RoleOperator); err != nil {
			return nil, err
		}
		version, err := s.Events.Version(ctx, current.State.Image, current.State.Version)
		if err != nil {
			return nil, err
		}
		if changes, err = rule(current, upload, version); err == nil && len(changes) > 0 {
			current.State = events.Fold(current.State, changes[0].Fact)
		}
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	return &changedJobOutput{Location: jobURL(ctx, id), Sequence: uint64(max(sequence, current.Sequence)), Body: jobStatusOf(ctx, current.State)}, nil
}

func jobStatusOf(ctx context.Context, j events.Job) jobStatus {
	status := jobStatus{ID: j.ID, State: string(j.State), Image: j.Image, Version: j.Version, UploadURL: uploadURL(ctx, j.UploadID),
		URL: jobURL(ctx, j.ID), QueuedAt: j.QueuedAt.UTC(), EndedAt: timeOrNone(j.EndedAt), Steps: []stepStatus{}, Retries: j.Retries, Error: errorOf(j)}
	for _, step := range j.Steps {
		status.Steps = append(status.Steps, stepStatus{Name: string(step.Name), State: string(step.State), Attempt: step.Attempt,
			StartedAt: timeOrNone(step.StartedAt), FinishedAt: timeOrNone(step.FinishedAt), Error: step.Error, RetryAt: timeOrNone(step.RetryAt)})
	}
	if j.State == events.JobStateSucceeded {
		status.VersionURL = versionURL(ctx, j.Image, j.Version)
	}
	return status
}

func errorOf(j events.Job) *jobError {
	if j.Problem == nil {
		return nil
	}
	return &jobError{Code: j.Problem.Code, Detail: j.Problem.Detail, Final: j.Problem.Final}
}

func timeOrNone(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
