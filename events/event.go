package events

import (
	"encoding/json"
	"time"
)

// Sequence is an event's place in the stream, from 1; 0 stands before the first event.
type Sequence uint64

// Type is the name of a fact's type with its version: imgsrv.version.published.v1.
type Type string

// Fact is something that has happened to one entity. The payload is its JSON encoding.
type Fact interface {
	Type() Type
	Entity() Entity
}

// FactOf is any fact of the kind of entity whose state is an S. Each embeds that state whole, as it is from then on.
type FactOf[S any] interface {
	Fact
	After() S
}

// Fold is an entity's state after one more fact; facts of another kind of entity change nothing.
func Fold[S any](state S, fact Fact) S {
	if f, ok := fact.(FactOf[S]); ok {
		return f.After()
	}
	return state
}

// Meta is what the envelope says of a fact besides the fact itself (CloudEvents 1.0 attributes and
// extensions). Correlation is the upload a chain of events began with; Causation the event (or command)
// that led to this one.
type Meta struct {
	ID          string // ce-id: unique; derived from the cause, so that a retried append is the same event
	Source      string // ce-source
	Time        time.Time
	Actor       string // who: a principal's name, or "imgsrv" for what the server does by itself
	Correlation string
	Causation   string
	TraceParent string // W3C trace context
}

// Event is a recorded fact.
type Event struct {
	Meta
	Sequence Sequence
	Subject  string
	Type     Type // as stored: an older version than Fact.Type() after upcasting
	Fact     Fact
	Data     json.RawMessage // as stored
}

// Change is a fact to append and the sequence of its entity's last fact that the decision was made on;
// 0 for a new entity. Somebody else's fact in between makes the whole append fail.
type Change struct {
	Fact   Fact
	Expect Sequence
}

// Current is an entity's state as of its last fact. Sequence 0 means that the entity has no facts yet,
// and State is then the zero value.
type Current[S any] struct {
	State    S
	Sequence Sequence
	Event    Event // the last fact
}
