package jobs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// Kinds implements projections.Bulk.
func (Projector) Kinds() []string { return []string{events.KindUpload, events.KindJob} }

// LastOnly implements projections.Bulk: each fact carries its whole session or job, and each makes the whole row.
func (Projector) LastOnly() bool { return true }

// Load implements projections.Bulk: the rows that the batch replaces are removed, and all go in by COPY.
func (Projector) Load(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	c := fold(batch)
	if err := c.loadUploads(ctx, tx); err != nil {
		return fmt.Errorf("load sessions: %w", err)
	}
	if err := c.loadJobs(ctx, tx); err != nil {
		return fmt.Errorf("load jobs: %w", err)
	}
	return nil
}

func (c *changes) loadUploads(ctx context.Context, tx pgx.Tx) error {
	if len(c.uploads) == 0 {
		return nil
	}
	ids := slices.Sorted(maps.Keys(c.uploads))
	if _, err := tx.Exec(ctx, `DELETE FROM uploads WHERE id = ANY($1)`, ids); err != nil {
		return err
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"uploads"},
		[]string{"id", "job_id", "image", "version", "state", "initiated_at", "updated_at", "sequence", "session"},
		pgx.CopyFromSlice(len(ids), func(n int) ([]any, error) {
			u := c.uploads[ids[n]]
			session, err := encode(withoutData(u.Upload))
			if err != nil {
				return nil, fmt.Errorf("encode upload session %s: %w", u.ID, err)
			}
			return []any{u.ID, u.JobID, u.Image, u.Version, string(u.State), u.InitiatedAt, u.updatedAt, int64(u.sequence), session}, nil
		}))
	return err
}

func (c *changes) loadJobs(ctx context.Context, tx pgx.Tx) error {
	if len(c.jobs) == 0 {
		return nil
	}
	ids := slices.Sorted(maps.Keys(c.jobs))
	if _, err := tx.Exec(ctx, `DELETE FROM jobs WHERE id = ANY($1)`, ids); err != nil {
		return err
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"jobs"},
		[]string{"id", "upload_id", "image", "version", "state", "queued_at", "ended_at", "updated_at", "problem_code", "problem_detail", "sequence", "job"},
		pgx.CopyFromSlice(len(ids), func(n int) ([]any, error) {
			j := c.jobs[ids[n]]
			text, err := encode(j.Job)
			if err != nil {
				return nil, fmt.Errorf("encode job %s: %w", j.ID, err)
			}
			var problem events.Problem
			if j.Problem != nil {
				problem = *j.Problem
			}
			var end *time.Time
			if !j.EndedAt.IsZero() {
				end = &j.EndedAt
			}
			return []any{j.ID, j.UploadID, j.Image, j.Version, string(j.State), j.QueuedAt, end, j.updatedAt,
				storable(problem.Code), storable(problem.Detail), int64(j.sequence), text}, nil
		}))
	return err
}
