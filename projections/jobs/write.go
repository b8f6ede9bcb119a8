package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// changes are the rows that a batch leaves behind.
type changes struct {
	uploads map[string]upload
	jobs    map[string]job
}

type upload struct {
	events.Upload
	updatedAt time.Time
	sequence  events.Sequence
}

type job struct {
	events.Job
	updatedAt time.Time
	sequence  events.Sequence
}

// One statement per table and batch, its rows as parallel arrays.
const (
	upsertUploads = `
INSERT INTO uploads (id, job_id, image, version, state, initiated_at, updated_at, sequence, session)
SELECT r.id, r.job_id, r.image, r.version, r.state, r.initiated_at, r.updated_at, r.sequence, r.session::jsonb
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::bigint[], $9::text[])
    AS r (id, job_id, image, version, state, initiated_at, updated_at, sequence, session)
ON CONFLICT (id) DO UPDATE SET job_id = excluded.job_id, image = excluded.image, version = excluded.version, state = excluded.state,
    initiated_at = excluded.initiated_at, updated_at = excluded.updated_at, sequence = excluded.sequence, session = excluded.session`

	upsertJobs = `
INSERT INTO jobs (id, upload_id, image, version, state, queued_at, ended_at, updated_at, problem_code, problem_detail, sequence, job)
SELECT r.id, r.upload_id, r.image, r.version, r.state, r.queued_at, r.ended_at, r.updated_at, r.problem_code, r.problem_detail, r.sequence, r.job::jsonb
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[], $8::timestamptz[],
        $9::text[], $10::text[], $11::bigint[], $12::text[])
    AS r (id, upload_id, image, version, state, queued_at, ended_at, updated_at, problem_code, problem_detail, sequence, job)
ON CONFLICT (id) DO UPDATE SET upload_id = excluded.upload_id, image = excluded.image, version = excluded.version, state = excluded.state,
    queued_at = excluded.queued_at, ended_at = excluded.ended_at, updated_at = excluded.updated_at, problem_code = excluded.problem_code,
    problem_detail = excluded.problem_detail, sequence = excluded.sequence, job = excluded.job`
)

// write sends all statements in one round trip. Rows go in the order of their keys, whatever Go's maps say.
func (c *changes) write(ctx context.Context, tx pgx.Tx) error {
	var statements pgx.Batch
	if err := c.queueUploads(&statements); err != nil {
		return err
	}
	if err := c.queueJobs(&statements); err != nil {
		return err
	}
	if statements.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, &statements).Close(); err != nil {
		return fmt.Errorf("write sessions and jobs: %w", err)
	}
	return nil
}

func (c *changes) queueUploads(statements *pgx.Batch) error {
	if len(c.uploads) == 0 {
		return nil
	}
	var ids, jobs, images, versions, states, sessions []string
	var initiated, updated []time.Time
	var sequences []int64
	for _, id := range slices.Sorted(maps.Keys(c.uploads)) {
		u := c.uploads[id]
		session, err := encode(withoutData(u.Upload))
		if err != nil {
			return fmt.Errorf("encode upload session %s: %w", id, err)
		}
		ids, jobs = append(ids, id), append(jobs, u.JobID)
		images, versions, states = append(images, u.Image), append(versions, u.Version), append(states, string(u.State))
		initiated, updated = append(initiated, u.InitiatedAt), append(updated, u.updatedAt)
		sequences, sessions = append(sequences, int64(u.sequence)), append(sessions, session)
	}
	statements.Queue(upsertUploads, ids, jobs, images, versions, states, initiated, updated, sequences, sessions)
	return nil
}

func (c *changes) queueJobs(statements *pgx.Batch) error {
	if len(c.jobs) == 0 {
		return nil
	}
	var ids, uploads, images, versions, states, codes, details, encoded []string
	var queued, updated []time.Time
	var ended []*time.Time
	var sequences []int64
	for _, id := range slices.Sorted(maps.Keys(c.jobs)) {
		j := c.jobs[id]
		text, err := encode(j.Job)
		if err != nil {
			return fmt.Errorf("encode job %s: %w", id, err)
		}
		var problem events.Problem
		if j.Problem != nil {
			problem = *j.Problem
		}
		var end *time.Time
		if !j.EndedAt.IsZero() {
			end = &j.EndedAt
		}
		ids, uploads = append(ids, id), append(uploads, j.UploadID)
		images, versions, states = append(images, j.Image), append(versions, j.Version), append(states, string(j.State))
		queued, ended, updated = append(queued, j.QueuedAt), append(ended, end), append(updated, j.updatedAt)
		codes, details = append(codes, storable(problem.Code)), append(details, storable(problem.Detail))
		sequences, encoded = append(sequences, int64(j.sequence)), append(encoded, text)
	}
	statements.Queue(upsertJobs, ids, uploads, images, versions, states, queued, ended, updated, codes, details, sequences, encoded)
	return nil
}

// withoutData leaves out the bytes of made metadata: kilobytes in each session, of use to publications only,
// which read them from the log.
func withoutData(u events.Upload) events.Upload {
	u.Variants = slices.Clone(u.Variants)
	for i, v := range u.Variants {
		if v.Metadata != nil {
			made := *v.Metadata
			made.Data = nil
			u.Variants[i].Metadata = &made
		}
	}
	return u
}

// encode writes v as JSON that the type jsonb takes: PostgreSQL has no character 0, also not escaped
// (documentation, section 8.14). One may come in with the error of a step.
func encode(v any) (string, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	text := string(data)
	if !strings.Contains(text, `\u0000`) {
		return text, nil
	}
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case strings.HasPrefix(text[i:], `\u0000`):
			out.WriteString("\uFFFD")
			i += len(`\u0000`) - 1
		case text[i] == '\\' && i+1 < len(text): // what is escaped begins no escape of its own
			out.WriteString(text[i : i+2])
			i++
		default:
			out.WriteByte(text[i])
		}
	}
	return out.String(), nil
}

// storable is encode for a column of type text.
func storable(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", "\uFFFD"), "\uFFFD")
}
