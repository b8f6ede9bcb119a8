package publication

import (
	"context"
	"fmt"
	"time"

	"github.com/imgsrv/imgsrv/events"
)

// graceTime is how long the files of a failed job wait for a retry.
const graceTime = 24 * time.Hour

// cleanUp removes what a finished job left in ingress. The files of a job that may be retried stay.
func (p *Publication) cleanUp(job events.Job) error {
	if job.State == events.JobStateFailed && (job.Problem == nil || !job.Problem.Final) {
		return nil
	}
	return p.store.RemoveIngress(job.ID)
}

// sweepIngress removes, now and then, the ingress of failed jobs whose grace time is over, and of jobs
// that never were.
func (p *Publication) sweepIngress(ctx context.Context) {
	ticker := time.NewTicker(10 * time.Minute)
	defer ticker.Stop()
	for {
		if err := p.sweepOnce(ctx); err != nil && ctx.Err() == nil {
			p.logger.WarnContext(ctx, "old ingress not cleaned; tried again later", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (p *Publication) sweepOnce(ctx context.Context) error {
	entries, err := p.store.IngressJobs()
	if err != nil {
		return err
	}
	sessions, err := p.store.Sessions()
	if err != nil {
		return err
	}
	open := map[string]bool{} // jobs whose session still takes files
	for _, session := range sessions {
		open[events.JobIDFor(session.ID)] = true
	}
	for _, entry := range entries {
		if open[entry.ID] || p.now().Sub(entry.LastActivity) < graceTime {
			continue
		}
		job, err := p.log.Job(ctx, entry.ID)
		if err != nil {
			return err
		}
		if _, running := job.State.Next(); running {
			continue
		}
		if err := p.store.RemoveIngress(entry.ID); err != nil {
			return fmt.Errorf("remove ingress of job %s: %w", entry.ID, err)
		}
	}
	return nil
}
