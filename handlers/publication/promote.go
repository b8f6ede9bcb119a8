package publication

import (
	"context"
	"errors"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/promotion"
	"github.com/imgsrv/imgsrv/store/blob"
)

// promote makes each ingress file a blob, by a rename on one file system, and records it: bytes first,
// fact after.
func (p *Publication) promote(ctx context.Context, job events.Job, _ events.Upload) ([]events.JobFile, error) {
	files := slices.Clone(job.Files)
	for i := range files {
		f := &files[i]
		if f.Ingress == "" {
			continue
		}
		cause := jetstream.Cause{Key: "promote " + job.ID + " " + f.Ingress, Actor: "imgsrv", Correlation: job.UploadID}
		err := promotion.Do(ctx, p.log, p.store, cause, events.Blob{Digest: f.Digest, Size: f.Size, MediaType: f.MediaType}, func(ctx context.Context) error {
			return p.store.Promote(ctx, job.ID, f.Ingress, f.Digest.Hex(), f.Size)
		})
		var size *blob.SizeMismatchError
		var digest *blob.DigestMismatchError
		switch {
		case errors.As(err, &size), errors.As(err, &digest):
			return nil, &Refusal{Code: "storage-corrupt", Err: err}
		case err != nil:
			return nil, err
		}
	}
	return files, nil
}
