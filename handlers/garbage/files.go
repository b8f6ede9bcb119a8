package garbage

import (
	"context"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/operations"
)

// uploads removes the folders of sessions that take no more files: they ended, and nobody cleaned up. Open ones expire by
// themselves.
func (r *run) uploads(ctx context.Context) error {
	sessions, err := r.Store.Sessions()
	if err != nil {
		return err
	}
	for i, session := range sessions {
		r.report(operations.Progress{Stage: "uploads", Done: int64(i), Total: int64(len(sessions)), Unit: "folders"})
		// A folder is made before its session's first fact.
		if r.Clock().Sub(session.LastActivity) < max(r.request.Grace, LeastGrace) {
			continue
		}
		upload, err := r.Log.Upload(ctx, session.ID)
		if err != nil {
			return err
		}
		if upload.State.State == events.SessionOpen {
			continue
		}
		reason := "there is no such upload session"
		if upload.Sequence != 0 {
			reason = "its upload session is " + string(upload.State.State)
		}
		bytes, err := r.Store.SessionBytes(session.ID)
		if err == nil && !r.request.DryRun {
			err = r.Store.RemoveSession(session.ID)
		}
		if err != nil {
			return err
		}
		r.result.add(Item{Kind: ItemUpload, Name: session.ID, Bytes: bytes, Reason: reason})
	}
	return nil
}

// ingress removes the folders of jobs that have ended and won't be retried, and of such as never were.
func (r *run) ingress(ctx context.Context) error {
	folders, err := r.Store.IngressJobs()
	if err != nil {
		return err
	}
	sessions, err := r.Store.Sessions()
	if err != nil {
		return err
	}
	open := map[string]bool{} // jobs whose session still takes files
	for _, session := range sessions {
		open[events.JobIDFor(session.ID)] = true
	}
	for i, folder := range folders {
		r.report(operations.Progress{Stage: "ingress", Done: int64(i), Total: int64(len(folders)), Unit: "folders"})
		if open[folder.ID] {
			continue
		}
		reason, goes, err := r.ended(ctx, folder.ID, r.Clock().Sub(folder.LastActivity))
		if err != nil {
			return err
		}
		if !goes {
			continue
		}
		bytes, err := r.Store.IngressBytes(folder.ID)
		if err == nil && !r.request.DryRun {
			err = r.Store.RemoveIngress(folder.ID)
		}
		if err != nil {
			return err
		}
		r.result.add(Item{Kind: ItemIngress, Name: folder.ID, Bytes: bytes, Reason: reason})
	}
	return nil
}

// ended says whether nobody comes back to an ingress folder that has rested for some time.
func (r *run) ended(ctx context.Context, id string, rested time.Duration) (reason string, goes bool, err error) {
	if rested < max(r.request.Grace, LeastGrace) {
		return "", false, nil
	}
	if strings.Contains(id, ".") || !events.IsID(id) {
		return "there is no such job", rested >= jobGrace, nil // what makes deltas has such folders
	}
	job, err := r.Log.Job(ctx, id)
	if err != nil {
		return "", false, err
	}
	if job.Sequence == 0 {
		return "there is no such job", rested >= jobGrace, nil
	}
	until, needs := r.jobNeeds(job.State)
	return "its job is " + string(job.State.State), !needs || !until.After(r.now), nil
}
