package events

import "time"

// DeliveryState is where the delivery of one event to one webhook stands.
type DeliveryState string

// The states. A delivery that succeeds at once has no facts, and none of these.
const (
	DeliveryRetrying    DeliveryState = "retrying"   // it failed and will be tried again; later events wait
	DeliveryDead        DeliveryState = "dead"       // it was given up: a dead letter
	DeliveryRedelivery  DeliveryState = "redelivery" // an operator has asked for it, out of order
	DeliveryIsDelivered DeliveryState = "delivered"  // after failures, or on request
)

// Delivery is one event on its way to one webhook.
type Delivery struct {
	Webhook      string        `json:"webhook"`
	Sequence     Sequence      `json:"sequence"` // of the event
	EventID      string        `json:"event_id"`
	EventType    Type          `json:"event_type"`
	State        DeliveryState `json:"state"`
	Attempts     int           `json:"attempts"`
	FirstAttempt time.Time     `json:"first_attempt,omitzero"`
	LastAttempt  time.Time     `json:"last_attempt,omitzero"`
	RetryAt      time.Time     `json:"retry_at,omitzero"` // while retrying
	Status       int           `json:"status,omitempty"`  // HTTP status of the last attempt; 0: no answer
	Error        string        `json:"error,omitempty"`   // of the last attempt
	RequestedBy  string        `json:"requested_by,omitempty"`
	RequestedAt  time.Time     `json:"requested_at,omitzero"`
}

// The facts of a delivery.
type (
	// DeliveryAttemptFailed says that an attempt failed and another follows at RetryAt.
	DeliveryAttemptFailed struct{ Delivery }
	// DeliveryDeadLettered ends the attempts that come by themselves.
	DeliveryDeadLettered struct{ Delivery }
	// DeliverySucceeded says that it was delivered in order, after failures.
	DeliverySucceeded struct{ Delivery }
	// DeliveryRequested says that an operator wants it delivered (again), or at once where it is being retried.
	DeliveryRequested struct{ Delivery }
	// DeliveryRedelivered says that it was delivered on request. It takes a dead letter off the list.
	DeliveryRedelivered struct{ Delivery }
)

// DeliveryFact is any fact of a delivery.
type DeliveryFact = FactOf[Delivery]

// After is the delivery after the fact.
func (d Delivery) After() Delivery { return d }

// Entity names the delivery.
func (d Delivery) Entity() Entity { return DeliveryEntity(d.Webhook, d.Sequence) }

// Type names the fact's type.
func (DeliveryAttemptFailed) Type() Type { return "imgsrv.delivery.attempt_failed.v1" }

// Type names the fact's type.
func (DeliveryDeadLettered) Type() Type { return "imgsrv.delivery.dead_lettered.v1" }

// Type names the fact's type.
func (DeliverySucceeded) Type() Type { return "imgsrv.delivery.succeeded.v1" }

// Type names the fact's type.
func (DeliveryRequested) Type() Type { return "imgsrv.delivery.requested.v1" }

// Type names the fact's type.
func (DeliveryRedelivered) Type() Type { return "imgsrv.delivery.redelivered.v1" }

// DeliveryAttempt is what came of one try.
type DeliveryAttempt struct {
	At     time.Time
	Status int    // 0: no answer
	Error  string // "" where it succeeded
}

func (d Delivery) attempted(w string, e Event, a DeliveryAttempt) Delivery {
	d.Webhook, d.Sequence, d.EventID, d.EventType = w, e.Sequence, e.ID, e.Type
	d.Attempts++
	if d.FirstAttempt.IsZero() {
		d.FirstAttempt = a.At
	}
	d.LastAttempt, d.Status, d.Error, d.RetryAt = a.At, a.Status, a.Error, time.Time{}
	return d
}

// InTurn says whether the delivery is still to be made in the order of events: it was neither made, nor given
// up, nor taken out of the order.
func (d Delivery) InTurn() bool { return d.State == "" || d.State == DeliveryRetrying }

// GivenUp says whether the delivery is a dead letter, also while an operator's request for it is on its way.
func (d Delivery) GivenUp() bool {
	return d.State == DeliveryDead || d.State == DeliveryRedelivery && d.Error != ""
}

// FailDelivery records a failed attempt in the order of events: another follows at retryAt, or, where that is
// zero, none.
func FailDelivery(current Current[Delivery], webhook string, e Event, a DeliveryAttempt, retryAt time.Time) []Change {
	next := current.State.attempted(webhook, e, a)
	if retryAt.IsZero() {
		next.State = DeliveryDead
		return []Change{{Fact: DeliveryDeadLettered{next}, Expect: current.Sequence}}
	}
	next.State, next.RetryAt = DeliveryRetrying, retryAt
	return []Change{{Fact: DeliveryAttemptFailed{next}, Expect: current.Sequence}}
}

// CompleteDelivery records a delivery in the order of events; one that never failed isn't worth a fact.
func CompleteDelivery(current Current[Delivery], webhook string, e Event, a DeliveryAttempt) []Change {
	if current.Sequence == 0 {
		return nil
	}
	next := current.State.attempted(webhook, e, a)
	next.State = DeliveryIsDelivered
	return []Change{{Fact: DeliverySucceeded{next}, Expect: current.Sequence}}
}

// RequestDelivery decides to deliver a past event to a webhook (again). Where it is being retried, the next
// attempt comes at once and its order is kept; otherwise it is delivered out of order.
func RequestDelivery(w Current[Webhook], id string, current Current[Delivery], e Event, by string, at time.Time) ([]Change, error) {
	if err := needWebhook(w, id); err != nil {
		return nil, err
	}
	if isUndelivered(KindOf(e.Type)) {
		return nil, Refuse(CodeInvalid, "event %d is %s: events about webhooks and deliveries are not delivered to webhooks", e.Sequence, e.Type)
	}
	next := current.State
	next.Webhook, next.Sequence, next.EventID, next.EventType = id, e.Sequence, e.ID, e.Type
	next.RequestedBy, next.RequestedAt = by, at
	switch next.State {
	case DeliveryRetrying:
		next.RetryAt = at
	case DeliveryRedelivery:
		return nil, nil // on its way
	default:
		next.State = DeliveryRedelivery
	}
	return []Change{{Fact: DeliveryRequested{next}, Expect: current.Sequence}}, nil
}

// EndRedelivery records what came of a requested delivery.
func EndRedelivery(current Current[Delivery], webhook string, e Event, a DeliveryAttempt) []Change {
	next := current.State.attempted(webhook, e, a)
	if a.Error != "" {
		next.State = DeliveryDead
		return []Change{{Fact: DeliveryDeadLettered{next}, Expect: current.Sequence}}
	}
	next.State = DeliveryIsDelivered
	return []Change{{Fact: DeliveryRedelivered{next}, Expect: current.Sequence}}
}
