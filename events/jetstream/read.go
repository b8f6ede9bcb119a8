package jetstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

const (
	readBatch   = 200              // messages asked for at once
	readTimeout = 10 * time.Second // for messages that are known to be there
)

// At reads one event; ok is false when the stream has none of that sequence. An event that this release
// can't read is an [*Undecodable].
func (l *Log) At(ctx context.Context, sequence events.Sequence) (event events.Event, ok bool, err error) {
	msg, ok, err := l.raw(ctx, sequence)
	if err != nil || !ok {
		return events.Event{}, false, err
	}
	event, err = decode(msg.Header, msg.Data, msg.Subject, msg.Sequence)
	if err != nil {
		return event, true, &Undecodable{Event: event, Err: err}
	}
	return event, true, nil
}

func (l *Log) raw(ctx context.Context, sequence events.Sequence) (*natsjs.RawStreamMsg, bool, error) {
	if sequence == 0 {
		return nil, false, nil
	}
	msg, err := l.stream.GetMsg(ctx, uint64(sequence))
	if errors.Is(err, natsjs.ErrMsgNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read event %d: %w", sequence, unavailable(err))
	}
	return msg, true, nil
}

// Read gives the events of some subjects (none: of all) to each, in order, from the first up to a sequence,
// and returns: it doesn't wait for more. Only these events leave the server. An error of each ends it.
func (l *Log) Read(ctx context.Context, upTo events.Sequence, subjects []string, each func(events.Event) error) error {
	return l.ReadAfter(ctx, 0, upTo, subjects, each)
}

// ReadAfter is Read from the event after a sequence on.
func (l *Log) ReadAfter(ctx context.Context, after, upTo events.Sequence, subjects []string, each func(events.Event) error) error {
	return l.scanAfter(ctx, after, upTo, subjects, func(msg natsjs.Msg, meta *natsjs.MsgMetadata) error {
		event, err := decode(msg.Headers(), msg.Data(), msg.Subject(), meta.Sequence.Stream)
		if err != nil {
			return &Undecodable{Event: event, Err: err}
		}
		return each(event)
	})
}

// scanAfter is ReadAfter for messages as they are stored.
func (l *Log) scanAfter(ctx context.Context, after, upTo events.Sequence, subjects []string, each func(natsjs.Msg, *natsjs.MsgMetadata) error) error {
	if upTo <= after {
		return nil
	}
	enough := errors.New("the events after a sequence are not asked for")
	err := l.readThere(ctx, fmt.Sprintf("events up to %d", upTo), natsjs.ConsumerConfig{
		DeliverPolicy: natsjs.DeliverByStartSequencePolicy, OptStartSeq: uint64(after) + 1, FilterSubjects: subjects,
	}, func(msg natsjs.Msg, meta *natsjs.MsgMetadata, _ int) error {
		if meta.Sequence.Stream > uint64(upTo) {
			return enough
		}
		return each(msg, meta)
	})
	if errors.Is(err, enough) {
		return nil
	}
	return err
}

// readThere gives each the messages that a consumer finds when it is made, in its order, with how many there are in all.
func (l *Log) readThere(ctx context.Context, what string, cfg natsjs.ConsumerConfig, each func(msg natsjs.Msg, meta *natsjs.MsgMetadata, total int) error) error {
	cfg.AckPolicy, cfg.MemoryStorage, cfg.Replicas, cfg.InactiveThreshold = natsjs.AckNonePolicy, true, 1, time.Minute
	consumer, err := l.stream.CreateConsumer(ctx, cfg)
	if err != nil {
		return fmt.Errorf("read %s: %w", what, unavailable(err))
	}
	info := consumer.CachedInfo()
	defer l.forget(ctx, info.Name)
	for want, got := int(info.NumPending), 0; got < want; {
		batch, err := consumer.Fetch(min(want-got, readBatch), natsjs.FetchMaxWait(readTimeout))
		if err != nil {
			return fmt.Errorf("read %s: %w", what, unavailable(err))
		}
		before := got
		for msg := range batch.Messages() {
			meta, err := msg.Metadata()
			if err != nil {
				return fmt.Errorf("read %s: %w", what, err)
			}
			// A broken connection may swallow messages; nobody may take the rest for the whole.
			if got++; uint64(got) != meta.Sequence.Consumer {
				return fmt.Errorf("read %s: %w: messages were lost on the way", what, ErrUnavailable)
			}
			if err := each(msg, meta, want); err != nil {
				return err
			}
		}
		switch err := batch.Error(); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("read %s: %w", what, unavailable(err))
		case got == before:
			return fmt.Errorf("read %s: %w: %d were announced and none came", what, ErrUnavailable, want-got)
		}
	}
	return nil
}

// forget removes an ephemeral consumer: the server has room for a bounded number.
func (l *Log) forget(ctx context.Context, consumer string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := l.stream.DeleteConsumer(ctx, consumer); err != nil {
		l.log.Debug("consumer not removed; the server ends it", "consumer", consumer, "error", err)
	}
}

// SequenceAt is the sequence of the last event that had happened at a time, by the events' own times; 0
// before the first. It costs about as many reads as the head has binary digits. Nodes whose clocks differ
// blur the border by as much.
func (l *Log) SequenceAt(ctx context.Context, at time.Time) (events.Sequence, error) {
	head, err := l.Head(ctx)
	if err != nil {
		return 0, err
	}
	low, high := events.Sequence(0), head // the answer is in [low, high]
	for low < high {
		middle := high - (high-low)/2
		msg, ok, err := l.raw(ctx, middle)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, fmt.Errorf("find the last event before %s: event %d is missing", at.Format(time.RFC3339Nano), middle)
		}
		happened, err := time.Parse(time.RFC3339Nano, first(msg.Header, headerTime))
		if err != nil {
			return 0, fmt.Errorf("find the last event before %s: time of event %d: %w", at.Format(time.RFC3339Nano), middle, err)
		}
		if happened.After(at) {
			high = middle - 1
		} else {
			low = middle
		}
	}
	return low, nil
}
