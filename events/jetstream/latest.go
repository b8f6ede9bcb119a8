package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

// Webhook reads a webhook's state: see [Log.Upload].
func (l *Log) Webhook(ctx context.Context, id string) (events.Current[events.Webhook], error) {
	return load(ctx, l, events.WebhookEntity(id), events.FoldWebhook)
}

// Delivery reads the state of one event's delivery to one webhook: see [Log.Upload]. One that never failed has no facts.
func (l *Log) Delivery(ctx context.Context, webhook string, sequence events.Sequence) (events.Current[events.Delivery], error) {
	return load(ctx, l, events.DeliveryEntity(webhook, sequence), events.FoldDelivery)
}

// Latest reads the last event of each entity under some subjects, in the order of their sequences: what a rule
// needs of all of them. Of an entity that gets another fact meanwhile, both may come. It costs one pass over the
// server's index, and only these events leave the server. An event that this release can't read is an [*Undecodable].
func (l *Log) Latest(ctx context.Context, subjects ...string) ([]events.Event, error) {
	var latest []events.Event
	err := l.EachLatest(ctx, subjects, func(event events.Event, _ int) error {
		latest = append(latest, event)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return latest, nil
}

// EachLatest is [Log.Latest] for more than fits into memory: it gives one event after the other to each, with how many there are in
// all. They are a picture of one moment, but for entities that come twice. An error of each ends it.
func (l *Log) EachLatest(ctx context.Context, subjects []string, each func(event events.Event, total int) error) error {
	return l.scanLatest(ctx, subjects, func(msg natsjs.Msg, meta *natsjs.MsgMetadata, total int) error {
		event, err := decode(msg.Headers(), msg.Data(), msg.Subject(), meta.Sequence.Stream)
		if err != nil {
			return &Undecodable{Event: event, Err: err}
		}
		return each(event, total)
	})
}

// scanLatest is EachLatest for messages as they are stored.
func (l *Log) scanLatest(ctx context.Context, subjects []string, each func(msg natsjs.Msg, meta *natsjs.MsgMetadata, total int) error) error {
	consumer, err := l.stream.CreateConsumer(ctx, natsjs.ConsumerConfig{
		DeliverPolicy: natsjs.DeliverLastPerSubjectPolicy, AckPolicy: natsjs.AckNonePolicy, FilterSubjects: subjects,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return fmt.Errorf("read the last events of %v: %w", subjects, unavailable(err))
	}
	info := consumer.CachedInfo()
	defer l.forget(ctx, info.Name)
	want, got := int(info.NumPending), 0
	for got < want {
		batch, err := consumer.Fetch(min(want-got, readBatch), natsjs.FetchMaxWait(readTimeout))
		if err != nil {
			return fmt.Errorf("read the last events of %v: %w", subjects, unavailable(err))
		}
		before := got
		for msg := range batch.Messages() {
			meta, err := msg.Metadata()
			if err != nil {
				return fmt.Errorf("read the last events of %v: %w", subjects, err)
			}
			if got++; uint64(got) != meta.Sequence.Consumer {
				return fmt.Errorf("read the last events of %v: %w: messages were lost on the way", subjects, ErrUnavailable)
			}
			if err := each(msg, meta, want); err != nil {
				return err
			}
		}
		switch err := batch.Error(); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("read the last events of %v: %w", subjects, unavailable(err))
		case got == before:
			return fmt.Errorf("read the last events of %v: %w: %d were announced and none came", subjects, ErrUnavailable, want-before)
		}
	}
	return nil
}

// RemoveConsumer ends a durable consumer and forgets its position. One that isn't there is no error.
func (l *Log) RemoveConsumer(ctx context.Context, name string) error {
	err := l.stream.DeleteConsumer(ctx, name)
	if err != nil && !errors.Is(err, natsjs.ErrConsumerNotFound) {
		return fmt.Errorf("remove consumer %s: %w", name, unavailable(err))
	}
	return nil
}

// Principal reads the state of a principal: see [Log.Upload].
func (l *Log) Principal(ctx context.Context, name string) (events.Current[events.Principal], error) {
	return load(ctx, l, events.PrincipalEntity(name), events.FoldPrincipal)
}

// Trust reads the state of a trust rule: see [Log.Upload].
func (l *Log) Trust(ctx context.Context, id string) (events.Current[events.Trust], error) {
	return load(ctx, l, events.TrustEntity(id), events.FoldTrust)
}

// Token reads the state of a token: see [Log.Upload].
func (l *Log) Token(ctx context.Context, id string) (events.Current[events.Token], error) {
	return load(ctx, l, events.TokenEntity(id), events.FoldToken)
}

// Aliases reads the states of all aliases of an image, removed ones too: see [Log.Latest].
func (l *Log) Aliases(ctx context.Context, image string) ([]events.Current[events.Alias], error) {
	return latest(ctx, l, events.FoldAlias, events.SubjectsAbout(events.KindAlias, image)...)
}

// Versions reads the states of all versions of an image, those that were never published too: see [Log.Latest].
func (l *Log) Versions(ctx context.Context, image string) ([]events.Current[events.Version], error) {
	return latest(ctx, l, events.FoldVersion, events.SubjectsAbout(events.KindVersion, image)...)
}

// Images reads the states of all images: see [Log.Latest].
func (l *Log) Images(ctx context.Context) ([]events.Current[events.Image], error) {
	return latest(ctx, l, events.FoldImage, events.SubjectsAbout(events.KindImage)...)
}

// latest folds the last event of each entity; of two events of one entity the later stands.
func latest[S any](ctx context.Context, l *Log, fold func(S, events.Fact) S, subjects ...string) ([]events.Current[S], error) {
	last, err := l.Latest(ctx, subjects...)
	if err != nil {
		return nil, err
	}
	var states []events.Current[S]
	at := map[string]int{} // by subject
	for _, event := range last {
		var none S
		current := events.Current[S]{State: fold(none, event.Fact), Sequence: event.Sequence, Event: event}
		if i, known := at[event.Subject]; known {
			states[i] = current
			continue
		}
		at[event.Subject] = len(states)
		states = append(states, current)
	}
	return states, nil
}

// Mirror reads the state of a mirror: see [Log.Upload].
func (l *Log) Mirror(ctx context.Context, name string) (events.Current[events.Mirror], error) {
	return load(ctx, l, events.MirrorEntity(name), events.FoldMirror)
}
