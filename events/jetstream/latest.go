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
	consumer, err := l.stream.CreateConsumer(ctx, natsjs.ConsumerConfig{
		DeliverPolicy: natsjs.DeliverLastPerSubjectPolicy, AckPolicy: natsjs.AckNonePolicy, FilterSubjects: subjects,
		MemoryStorage: true, Replicas: 1, InactiveThreshold: time.Minute,
	})
	if err != nil {
		return nil, fmt.Errorf("read the last events of %v: %w", subjects, unavailable(err))
	}
	info := consumer.CachedInfo()
	defer l.forget(ctx, info.Name)
	var latest []events.Event
	for want := int(info.NumPending); len(latest) < want; {
		batch, err := consumer.Fetch(min(want-len(latest), readBatch), natsjs.FetchMaxWait(readTimeout))
		if err != nil {
			return nil, fmt.Errorf("read the last events of %v: %w", subjects, unavailable(err))
		}
		before := len(latest)
		for msg := range batch.Messages() {
			meta, err := msg.Metadata()
			if err != nil {
				return nil, fmt.Errorf("read the last events of %v: %w", subjects, err)
			}
			event, err := decode(msg.Headers(), msg.Data(), msg.Subject(), meta.Sequence.Stream)
			if err != nil {
				return nil, &Undecodable{Event: event, Err: err}
			}
			if latest = append(latest, event); uint64(len(latest)) != meta.Sequence.Consumer {
				return nil, fmt.Errorf("read the last events of %v: %w: messages were lost on the way", subjects, ErrUnavailable)
			}
		}
		switch err := batch.Error(); {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, fmt.Errorf("read the last events of %v: %w", subjects, unavailable(err))
		case len(latest) == before:
			return nil, fmt.Errorf("read the last events of %v: %w: %d were announced and none came", subjects, ErrUnavailable, want-before)
		}
	}
	return latest, nil
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

// Mirror reads the state of a mirror: see [Log.Upload].
func (l *Log) Mirror(ctx context.Context, name string) (events.Current[events.Mirror], error) {
	return load(ctx, l, events.MirrorEntity(name), events.FoldMirror)
}
