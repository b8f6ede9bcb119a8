package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// JobRow is a publication job.
type JobRow struct {
	Job       events.Job      // its steps are in their order
	UpdatedAt time.Time       // of its last event
	Sequence  events.Sequence // of its last event
}

// JobFilter says which jobs a list has.
type JobFilter struct {
	State events.JobState // "" for all
	After string          // next of the page before; "" for the first page
	Limit int             // 0 means DefaultLimit
	Shown JobsShown
}

const jobColumns = `
SELECT j.job, j.updated_at, j.sequence
FROM jobs.jobs j`

// jobsStatement leaves filters out whose parameters are null: $8 the state, $9 and $10 the place to go on behind.
var jobsStatement = jobColumns + `
WHERE (` + matches("j.image", 4) + ` OR ` + matches("j.image", 6) + ` OR j.state = 'succeeded' AND EXISTS (
        SELECT FROM catalog.images i WHERE i.name = j.image AND ` + visible + `))
    AND ($8::text IS NULL OR j.state = $8)
    AND ($9::timestamptz IS NULL OR (j.queued_at, j.id) < ($9, $10::text))
ORDER BY j.queued_at DESC, j.id DESC
LIMIT $1`

const jobStatement = jobColumns + `
WHERE j.id = $1`

// JobsShown says which jobs somebody may see. The zero value is those that have published a version of a public image.
type JobsShown struct {
	Published Readable // of these private images too
	Publisher Readable // all of these images
	Operator  Readable // and all of these
}

// Jobs lists jobs, the one queued last first; a retried job keeps its place. The cursor is opaque: next is
// the After of the following page and "" at the end. Errors: ErrBadCursor, ErrUnavailable.
func (c *Catalog) Jobs(ctx context.Context, f JobFilter) (jobs []JobRow, next string, err error) {
	limit := pageSize(f.Limit)
	args := []any{limit + 1}
	for _, r := range []Readable{f.Shown.Published, f.Shown.Publisher, f.Shown.Operator} {
		outer, inner := r.args()
		args = append(args, outer, inner)
	}
	var state, after, tie any
	if f.State != "" {
		state = string(f.State)
	}
	if f.After != "" {
		place, err := parseCursor(f.After)
		if err != nil {
			return nil, "", fmt.Errorf("list jobs: %w", err)
		}
		after, tie = place.at, place.tie
	}
	jobs, more, err := list(ctx, c, limit, scanJob, jobsStatement, append(args, state, after, tie)...)
	if err != nil {
		return nil, "", explain(err, "list jobs")
	}
	if more {
		last := jobs[len(jobs)-1].Job
		next = cursor{at: last.QueuedAt, tie: last.ID}.String()
	}
	return jobs, next, nil
}

// Job reads a job. Errors: ErrNotFound, ErrUnavailable.
func (c *Catalog) Job(ctx context.Context, id string) (JobRow, error) {
	job, err := one(ctx, c, scanJob, jobStatement, id)
	if err != nil {
		return JobRow{}, explain(err, "read job %q", id)
	}
	return job, nil
}

func scanJob(row pgx.CollectableRow) (JobRow, error) {
	var j JobRow
	err := row.Scan(&j.Job, &j.UpdatedAt, &j.Sequence)
	j.UpdatedAt = j.UpdatedAt.UTC()
	return j, err
}

// UploadRow is an upload session, with its job where it has one.
type UploadRow struct {
	Session   events.Upload   // without the bytes of metadata that imgsrv made
	UpdatedAt time.Time       // of its last event
	Sequence  events.Sequence // of its last event
	Job       *events.Job     // nil until the session is complete
}

const uploadStatement = `
SELECT u.session, u.updated_at, u.sequence, j.job
FROM jobs.uploads u
LEFT JOIN jobs.jobs j ON j.id = u.job_id
WHERE u.id = $1`

// Upload reads an upload session. Errors: ErrNotFound, ErrUnavailable.
func (c *Catalog) Upload(ctx context.Context, id string) (UploadRow, error) {
	upload, err := one(ctx, c, func(row pgx.CollectableRow) (UploadRow, error) {
		var u UploadRow
		err := row.Scan(&u.Session, &u.UpdatedAt, &u.Sequence, &u.Job)
		u.UpdatedAt = u.UpdatedAt.UTC()
		return u, err
	}, uploadStatement, id)
	if err != nil {
		return UploadRow{}, explain(err, "read upload session %q", id)
	}
	return upload, nil
}
