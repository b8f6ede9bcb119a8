package publication

import (
	"context"
	"fmt"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// publish appends the last batch: version published, job succeeded, image described, aliases moved. A
// conflict, as when many jobs move one alias, puts the delivery back for a moment.
func (p *Publication) publish(ctx context.Context, d jetstream.Delivery, job events.Current[events.Job], upload events.Upload) error {
	cmd := events.PublishVersion{Job: job, Upload: upload, Aliases: map[string]events.Current[events.Alias]{}, At: p.now().UTC()}
	var err error
	if cmd.Version, err = p.log.Version(ctx, upload.Image, upload.Version); err != nil {
		return err
	}
	if cmd.Image, err = p.log.Image(ctx, upload.Image); err != nil {
		return err
	}
	for _, alias := range upload.Aliases {
		if cmd.Aliases[alias], err = p.log.Alias(ctx, upload.Image, alias); err != nil {
			return err
		}
	}
	changes, err := events.Publish(cmd)
	if events.IsCode(err, events.CodeVisibility) {
		return &Refusal{Code: string(events.CodeVisibility), Err: err}
	}
	if err != nil {
		return fmt.Errorf("publish version %s of %s: %w", upload.Version, upload.Image, err)
	}
	return p.append(ctx, d.Cause("publish"), changes)
}
