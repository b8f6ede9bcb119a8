package jetstream

import (
	"context"
	"fmt"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

// Undecodable is the error of an event that this release can't read. Event says what is known of it.
type Undecodable struct {
	Event events.Event
	Err   error
}

func (u *Undecodable) Error() string { return u.Err.Error() }

func (u *Undecodable) Unwrap() error { return u.Err }

// Tail reads the stream in order from a sequence on, and goes on with what is appended.
type Tail struct {
	log      *Log
	consumer natsjs.Consumer
	messages natsjs.MessagesContext
	pulled   chan natsjs.Msg
	failed   chan error
	done     chan struct{}
	pending  *Undecodable
}

// tailBuffer is how many messages are read ahead.
const tailBuffer = 2000

// Tail starts to read after a sequence (0: from the first event); subjects, where given, filter. Close
// ends it.
func (l *Log) Tail(ctx context.Context, after events.Sequence, subjects ...string) (*Tail, error) {
	return l.TailBuffered(ctx, after, tailBuffer, subjects...)
}

// TailBuffered is Tail for a reader that may be slow or one of many: it reads at most buffer messages ahead, twice.
func (l *Log) TailBuffered(ctx context.Context, after events.Sequence, buffer int, subjects ...string) (*Tail, error) {
	consumer, err := l.stream.OrderedConsumer(ctx, natsjs.OrderedConsumerConfig{
		DeliverPolicy: natsjs.DeliverByStartSequencePolicy, OptStartSeq: uint64(after) + 1, FilterSubjects: subjects,
		InactiveThreshold: time.Minute,
	})
	if err != nil {
		return nil, fmt.Errorf("read the stream after %d: %w", after, unavailable(err))
	}
	messages, err := consumer.Messages(natsjs.PullMaxMessages(buffer))
	if err != nil {
		return nil, fmt.Errorf("read the stream after %d: %w", after, unavailable(err))
	}
	t := &Tail{log: l, consumer: consumer, messages: messages, pulled: make(chan natsjs.Msg, buffer), failed: make(chan error, 1), done: make(chan struct{})}
	go t.pull()
	return t, nil
}

// pull is ended by Close, which waits for it.
func (t *Tail) pull() {
	defer close(t.done)
	for {
		msg, err := t.messages.Next()
		if err != nil {
			t.failed <- err
			return
		}
		t.pulled <- msg
	}
}

// Next waits for at least one event and returns those that are there, at most limit. An event that can't
// be decoded ends the batch before it; the next call returns it as [*Undecodable].
func (t *Tail) Next(ctx context.Context, limit int) ([]events.Event, error) {
	if t.pending != nil {
		return nil, t.pending
	}
	var batch []events.Event
	for len(batch) < limit {
		msg, meta, err := t.receive(ctx, len(batch) == 0)
		if err != nil {
			return nil, err
		}
		if msg == nil {
			break
		}
		event, err := decode(msg.Headers(), msg.Data(), msg.Subject(), meta.Sequence.Stream)
		if err != nil {
			t.pending = &Undecodable{Event: event, Err: err}
			if len(batch) == 0 {
				return nil, t.pending
			}
			return batch, nil
		}
		batch = append(batch, event)
	}
	return batch, nil
}

// receive is the next message; nil where there is none yet and it may not wait.
func (t *Tail) receive(ctx context.Context, wait bool) (msg natsjs.Msg, meta *natsjs.MsgMetadata, err error) {
	if wait {
		select {
		case msg = <-t.pulled:
		case err := <-t.failed:
			return nil, nil, fmt.Errorf("read the stream: %w", unavailable(err))
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	} else {
		select {
		case msg = <-t.pulled:
		default:
			return nil, nil, nil
		}
	}
	if meta, err = msg.Metadata(); err != nil {
		return nil, nil, fmt.Errorf("read the stream: %w", err)
	}
	return msg, meta, nil
}

// Close ends the reading and removes its consumer from the server, which has room for a bounded number.
func (t *Tail) Close() {
	t.messages.Stop()
	for {
		select {
		case <-t.pulled: // make room, so that pull sees the end
		case <-t.done:
			if info := t.consumer.CachedInfo(); info != nil {
				t.log.forget(context.Background(), info.Name)
			}
			return
		}
	}
}
