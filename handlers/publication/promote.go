package publication

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/promotion"
	"github.com/imgsrv/imgsrv/store/blob"
)

// promotedAtOnce is how many files of a job become blobs at once: most of that is waiting for a disk.
const promotedAtOnce = 4

// promote makes each ingress file a blob, by a second name on one file system, and records it: bytes first, fact after.
// The ingress stays until the job has ended, so that a blob that garbage collection is just removing can be made again.
func (p *Publication) promote(ctx context.Context, job events.Job, _ events.Upload) ([]events.JobFile, error) {
	files := slices.Clone(job.Files)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(promotedAtOnce)
	for _, f := range files {
		// What the session was told of is held by its own fact, but by nothing from a failure of the job to its retry.
		if f.Ingress == "" && job.Retries == 0 {
			continue
		}
		group.Go(func() error { return p.promoteFile(ctx, job, f) })
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return files, nil
}

func (p *Publication) promoteFile(ctx context.Context, job events.Job, f events.JobFile) error {
	_, err := p.log.Decide(ctx, jetstream.Cause{Actor: "imgsrv", Correlation: job.UploadID}, func(ctx context.Context) ([]events.Change, error) {
		return promotion.Blob(ctx, p.log, p.store, events.Blob{Digest: f.Digest, Size: f.Size, MediaType: f.MediaType}, func(ctx context.Context, known events.Blob) error {
			return p.admit(ctx, job.ID, f, known)
		})
	})
	if errors.Is(err, jetstream.ErrConflict) { // many publish the same bytes at once, which is no fault of the step
		return &jetstream.RetryAfter{Delay: time.Duration(5+rand.IntN(50)) * time.Millisecond, Err: err}
	}
	return err
}

// admit sees to it that a file's bytes are in the store.
func (p *Publication) admit(ctx context.Context, job string, f events.JobFile, known events.Blob) error {
	err := fs.ErrNotExist
	if f.Ingress != "" {
		err = p.store.Admit(ctx, job, f.Ingress, f.Digest.Hex(), f.Size)
	} else if there, hasErr := p.store.HasBlob(f.Digest.Hex(), f.Size); there || hasErr != nil {
		err = hasErr
	}
	var size *blob.SizeMismatchError
	var digest *blob.DigestMismatchError
	switch {
	case errors.As(err, &size), errors.As(err, &digest):
		return &Refusal{Code: "storage-corrupt", Err: err}
	case errors.Is(err, fs.ErrNotExist) && known.State != events.BlobIsPresent:
		return refuse(string(events.CodeCollected), "%s: its bytes have been collected, since the job had failed for long: publish it anew", f.Ref())
	}
	return err
}
