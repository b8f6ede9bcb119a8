package jetstream

import (
	"context"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

// Raw is a stored event that isn't decoded yet: for a reader that needs only some of what it gets.
type Raw struct {
	Sequence events.Sequence
	Subject  string
	// Pending is how many events of the reader's subjects come after this one, as of its delivery.
	Pending uint64
	msg     natsjs.Msg
}

// Type is the stored type.
func (r Raw) Type() events.Type { return events.Type(first(r.msg.Headers(), headerType)) }

// Time is the event's time; zero if it can't be read.
func (r Raw) Time() time.Time {
	at, err := time.Parse(time.RFC3339Nano, first(r.msg.Headers(), headerTime))
	if err != nil {
		return time.Time{}
	}
	return at.UTC()
}

// Decode reads the event; the error is an [*Undecodable].
func (r Raw) Decode() (events.Event, error) {
	event, err := decode(r.msg.Headers(), r.msg.Data(), r.msg.Subject(), uint64(r.Sequence))
	if err != nil {
		return event, &Undecodable{Event: event, Err: err}
	}
	return event, nil
}

// NextRaw waits for at least one event and returns those that are there, appended to batch, until it holds limit. It goes beside
// [Tail.Next]; one tail is read by one of the two.
func (t *Tail) NextRaw(ctx context.Context, batch []Raw, limit int) ([]Raw, error) {
	for wait := true; len(batch) < limit; wait = false {
		msg, meta, err := t.receive(ctx, wait)
		if err != nil || msg == nil {
			return batch, err
		}
		batch = append(batch, Raw{Sequence: events.Sequence(meta.Sequence.Stream), Subject: msg.Subject(), Pending: meta.NumPending, msg: msg})
	}
	return batch, nil
}

// Pending is how many events there were to read when the tail began.
func (t *Tail) Pending() uint64 {
	if info := t.consumer.CachedInfo(); info != nil {
		return info.NumPending
	}
	return 0
}

// PassOver goes on after an event that Next returned as [*Undecodable].
func (t *Tail) PassOver() { t.pending = nil }
