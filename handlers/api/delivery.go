package api

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
)

// Deliveries of events to webhooks: (*server).webhooks registers their routes.

type deliveryInput struct {
	ID       string `path:"id" example:"0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"`
	Sequence uint64 `path:"sequence" doc:"Of the event" example:"42"`
}

type redeliverInput struct {
	ID   string `path:"id" example:"0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"`
	Body struct {
		Sequence uint64 `json:"sequence" minimum:"1" doc:"Of the event; any that has happened, whether the webhook's filters want it or not" example:"42"`
	}
}

type deadLettersOutput struct {
	Body struct {
		DeadLetters []deliveryStatus `json:"dead_letters" nullable:"false" doc:"In the order of the events' sequences"`
	}
}

type deliveryStatus struct {
	Webhook      string     `json:"webhook" format:"uuid"`
	Sequence     uint64     `json:"sequence" doc:"Of the event"`
	EventID      string     `json:"event_id" doc:"ce-id and webhook-id of the event"`
	EventType    string     `json:"event_type" example:"imgsrv.version.published.v1"`
	State        string     `json:"state" enum:"retrying,dead,redelivery,delivered"`
	Attempts     int        `json:"attempts"`
	FirstAttempt *time.Time `json:"first_attempt,omitempty"`
	LastAttempt  *time.Time `json:"last_attempt,omitempty"`
	RetryAt      *time.Time `json:"retry_at,omitempty"`
	Status       int        `json:"status,omitempty" doc:"HTTP status of the last attempt; absent: no answer"`
	Error        string     `json:"error,omitempty" doc:"Of the last attempt"`
	RequestedBy  string     `json:"requested_by,omitempty"`
}

func (s *server) deadLetters(ctx context.Context, in *webhookInput) (*deadLettersOutput, error) {
	if _, err := s.webhook(ctx, in.ID); err != nil {
		return nil, err
	}
	deliveries, err := s.deliveries(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	out := new(deadLettersOutput)
	out.Body.DeadLetters = []deliveryStatus{}
	for _, d := range deliveries {
		if d.GivenUp() {
			out.Body.DeadLetters = append(out.Body.DeadLetters, statusOfDelivery(d))
		}
	}
	return out, nil
}

func (s *server) getDelivery(ctx context.Context, in *deliveryInput) (*locatedOutput[deliveryStatus], error) {
	if _, err := s.webhook(ctx, in.ID); err != nil {
		return nil, err
	}
	return s.deliveryOf(ctx, in.ID, events.Sequence(in.Sequence))
}

func (s *server) deliveryOf(ctx context.Context, webhook string, sequence events.Sequence) (*locatedOutput[deliveryStatus], error) {
	current, err := s.Events.Delivery(ctx, webhook, sequence)
	if err != nil {
		return nil, err
	}
	if current.Sequence == 0 {
		return nil, missing("nothing is known of a delivery of event %d: it succeeded at once, wasn't due yet, or isn't wanted by the webhook", sequence)
	}
	return &locatedOutput[deliveryStatus]{Location: deliveryURL(ctx, current.State), Sequence: uint64(current.Sequence), Body: statusOfDelivery(current.State)}, nil
}

func (s *server) redeliver(ctx context.Context, in *redeliverInput) (*locatedOutput[deliveryStatus], error) {
	hook, err := s.webhook(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	sequence := events.Sequence(in.Body.Sequence)
	event, ok, err := s.Events.At(ctx, sequence)
	var unreadable *jetstream.Undecodable // what this release can't read can still be sent
	if err != nil && !errors.As(err, &unreadable) {
		return nil, err
	}
	if !ok {
		return nil, missing("there is no event %d", sequence)
	}
	who := access.From(ctx).Name
	_, err = s.Events.Decide(ctx, jetstream.Cause{Actor: who, Correlation: event.Correlation, Causation: event.ID}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Events.Delivery(ctx, in.ID, sequence)
		if err != nil {
			return nil, err
		}
		return events.RequestDelivery(hook, in.ID, current, event, who, s.Clock().UTC())
	})
	if err != nil {
		return nil, err
	}
	return s.deliveryOf(ctx, in.ID, sequence)
}

// deliveries are those of a webhook that have facts, by the events' sequences.
func (s *server) deliveries(ctx context.Context, webhook string) ([]events.Delivery, error) {
	latest, err := s.Events.Latest(ctx, events.SubjectOfDeliveries(webhook))
	if err != nil {
		return nil, err
	}
	states := map[events.Sequence]events.Delivery{} // where one got another fact while we read, the later is right
	for _, e := range latest {
		if f, ok := e.Fact.(events.DeliveryFact); ok {
			states[f.After().Sequence] = f.After()
		}
	}
	return slices.SortedFunc(maps.Values(states), func(a, b events.Delivery) int { return cmp.Compare(a.Sequence, b.Sequence) }), nil
}

func statusOfDelivery(d events.Delivery) deliveryStatus {
	return deliveryStatus{Webhook: d.Webhook, Sequence: uint64(d.Sequence), EventID: d.EventID, EventType: string(d.EventType), State: string(d.State), Attempts: d.Attempts,
		FirstAttempt: timeOrNone(d.FirstAttempt), LastAttempt: timeOrNone(d.LastAttempt), RetryAt: timeOrNone(d.RetryAt), Status: d.Status, Error: d.Error, RequestedBy: d.RequestedBy}
}

func deliveryURL(ctx context.Context, d events.Delivery) string {
	return webhookURL(ctx, d.Webhook) + "/deliveries/" + strconv.FormatUint(uint64(d.Sequence), 10)
}
