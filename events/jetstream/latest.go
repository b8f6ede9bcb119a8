package jetstream

import (
	"context"
	"fmt"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

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
	return l.readThere(ctx, fmt.Sprintf("the last events of %v", subjects), natsjs.ConsumerConfig{
		DeliverPolicy: natsjs.DeliverLastPerSubjectPolicy, FilterSubjects: subjects,
	}, func(msg natsjs.Msg, meta *natsjs.MsgMetadata, total int) error {
		event, err := decode(msg.Headers(), msg.Data(), msg.Subject(), meta.Sequence.Stream)
		if err != nil {
			return &Undecodable{Event: event, Err: err}
		}
		return each(event, total)
	})
}
