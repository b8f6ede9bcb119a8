package jetstream

import (
	"context"

	"github.com/imgsrv/imgsrv/events"
)

// Upload reads a session's state, as Job, Version, Image, Alias and Blob read those of theirs. An entity without facts is not an
// error: its Sequence is 0.
func (l *Log) Upload(ctx context.Context, id string) (events.Current[events.Upload], error) {
	return load[events.Upload](ctx, l, events.UploadEntity(id))
}

// Job is as [Log.Upload].
func (l *Log) Job(ctx context.Context, id string) (events.Current[events.Job], error) {
	return load[events.Job](ctx, l, events.JobEntity(id))
}

// Version is as [Log.Upload].
func (l *Log) Version(ctx context.Context, image, version string) (events.Current[events.Version], error) {
	return load[events.Version](ctx, l, events.VersionEntity(image, version))
}

// Image is as [Log.Upload].
func (l *Log) Image(ctx context.Context, image string) (events.Current[events.Image], error) {
	return load[events.Image](ctx, l, events.ImageEntity(image))
}

// Derived is as [Log.Upload].
func (l *Log) Derived(ctx context.Context, image, version, variant, format string) (events.Current[events.Derived], error) {
	return load[events.Derived](ctx, l, events.DerivedEntity(image, version, variant, format))
}

// Alias is as [Log.Upload].
func (l *Log) Alias(ctx context.Context, image, alias string) (events.Current[events.Alias], error) {
	return load[events.Alias](ctx, l, events.AliasEntity(image, alias))
}

// Blob is as [Log.Upload].
func (l *Log) Blob(ctx context.Context, digest events.Digest) (events.Current[events.Blob], error) {
	return load[events.Blob](ctx, l, events.BlobEntity(digest))
}

// Projection reads what was decided about a projection by hand; see [Log.Upload].
func (l *Log) Projection(ctx context.Context, name string) (events.Current[events.Projection], error) {
	return load[events.Projection](ctx, l, events.ProjectionEntity(name))
}

// Principal reads the state of a principal: see [Log.Upload].
func (l *Log) Principal(ctx context.Context, name string) (events.Current[events.Principal], error) {
	return load[events.Principal](ctx, l, events.PrincipalEntity(name))
}

// Trust reads the state of a trust rule: see [Log.Upload].
func (l *Log) Trust(ctx context.Context, id string) (events.Current[events.Trust], error) {
	return load[events.Trust](ctx, l, events.TrustEntity(id))
}

// Token reads the state of a token: see [Log.Upload].
func (l *Log) Token(ctx context.Context, id string) (events.Current[events.Token], error) {
	return load[events.Token](ctx, l, events.TokenEntity(id))
}

// Webhook reads a webhook's state: see [Log.Upload].
func (l *Log) Webhook(ctx context.Context, id string) (events.Current[events.Webhook], error) {
	return load[events.Webhook](ctx, l, events.WebhookEntity(id))
}

// Delivery reads the state of one event's delivery to one webhook: see [Log.Upload]. One that never failed has no facts.
func (l *Log) Delivery(ctx context.Context, webhook string, sequence events.Sequence) (events.Current[events.Delivery], error) {
	return load[events.Delivery](ctx, l, events.DeliveryEntity(webhook, sequence))
}

// Mirror reads the state of a mirror: see [Log.Upload].
func (l *Log) Mirror(ctx context.Context, name string) (events.Current[events.Mirror], error) {
	return load[events.Mirror](ctx, l, events.MirrorEntity(name))
}

// Aliases reads the states of all aliases of an image, removed ones too: see [Log.Latest].
func (l *Log) Aliases(ctx context.Context, image string) ([]events.Current[events.Alias], error) {
	return latest[events.Alias](ctx, l, events.SubjectsAbout(events.KindAlias, image)...)
}

// Versions reads the states of all versions of an image, those that were never published too: see [Log.Latest].
func (l *Log) Versions(ctx context.Context, image string) ([]events.Current[events.Version], error) {
	return latest[events.Version](ctx, l, events.SubjectsAbout(events.KindVersion, image)...)
}

// Images reads the states of all images. It reads all their events: they lie all over the log, and [Log.Latest] would keep the server
// from everything else until it has found the last of each, seconds in a log of millions.
func (l *Log) Images(ctx context.Context) ([]events.Current[events.Image], error) {
	head, err := l.Head(ctx)
	if err != nil {
		return nil, err
	}
	var all []events.Event
	err = l.Read(ctx, head, events.SubjectsAbout(events.KindImage), func(event events.Event) error {
		all = append(all, event)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return lastOf[events.Image](all), nil
}

// latest folds the last event of each entity.
func latest[S any](ctx context.Context, l *Log, subjects ...string) ([]events.Current[S], error) {
	last, err := l.Latest(ctx, subjects...)
	if err != nil {
		return nil, err
	}
	return lastOf[S](last), nil
}

// lastOf folds events; of those of one entity the last stands.
func lastOf[S any](last []events.Event) []events.Current[S] {
	var states []events.Current[S]
	at := map[string]int{} // by subject
	for _, event := range last {
		var none S
		current := events.Current[S]{State: events.Fold(none, event.Fact), Sequence: event.Sequence, Event: event}
		if i, known := at[event.Subject]; known {
			states[i] = current
			continue
		}
		at[event.Subject] = len(states)
		states = append(states, current)
	}
	return states
}

func load[S any](ctx context.Context, l *Log, entity events.Entity) (events.Current[S], error) {
	var current events.Current[S]
	event, ok, err := l.Last(ctx, entity)
	if err != nil || !ok {
		return current, err
	}
	current.State, current.Sequence, current.Event = events.Fold(current.State, event.Fact), event.Sequence, event
	return current, nil
}
