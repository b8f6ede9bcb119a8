package publication

import (
	"context"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// handleUpload gives a complete session to a job, and cleans up after one that ended without.
func (p *Publication) handleUpload(ctx context.Context, d jetstream.Delivery) error {
	fact, ok := d.Fact.(events.UploadFact)
	if !ok {
		return nil
	}
	u := fact.After()
	switch d.Fact.(type) {
	case events.UploadInitiated, events.UploadFileCompleted:
		if !u.Complete {
			return nil
		}
		_, err := p.log.Decide(ctx, causeOf(d, "queue"), func(ctx context.Context) ([]events.Change, error) {
			current, err := p.log.Upload(ctx, u.ID)
			if err != nil {
				return nil, err
			}
			return events.CompleteUpload(current, p.now().UTC())
		})
		if events.IsCode(err, events.CodeSessionClosed) {
			return nil // a repeated delivery
		}
		return err
	case events.UploadCompleted:
		return p.store.RemoveSession(u.ID)
	case events.UploadAborted, events.UploadExpired:
		if err := p.store.RemoveIngress(u.JobID); err != nil {
			return err
		}
		return p.store.RemoveSession(u.ID)
	}
	return nil
}
