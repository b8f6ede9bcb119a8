package eventstest

import (
	"time"

	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
)

// Webhook is like [History.Upload].
func (h *History) Webhook(id string) events.Current[events.Webhook] {
	return current[events.Webhook](h, events.WebhookEntity(id))
}

// Delivery is like [History.Upload].
func (h *History) Delivery(webhook string, sequence events.Sequence) events.Current[events.Delivery] {
	return current[events.Delivery](h, events.DeliveryEntity(webhook, sequence))
}

// AddWebhook lets somebody subscribe to all events, and answers with the webhook's id.
func (h *History) AddWebhook(tb TB) string {
	tb.Helper()
	id := h.newID()
	w := events.Webhook{ID: id, URL: "https://receiver.example/", KeyID: "key", Lifetime: events.Lifetime{AddedBy: "test", AddedAt: h.now}}
	if err := h.decide(tb)(events.AddWebhook(w, events.Current[events.Webhook]{})); err != nil {
		tb.Fatalf("add a webhook: %v", err)
	}
	h.hooks = append(h.hooks, id)
	return id
}

// RemoveWebhook ends a subscription.
func (h *History) RemoveWebhook(tb TB, id string) error {
	tb.Helper()
	return h.decide(tb)(events.RemoveWebhook(h.Webhook(id), id, "test", h.now))
}

// deliver lets one thing happen to the delivery of an event: an attempt that fails, for good or not, one that
// succeeds, or an operator's request.
func (h *History) deliver(t *rapid.T, webhook string) error {
	// Of few events, so that deliveries have a history.
	event := h.Events[rapid.IntRange(0, min(2, len(h.Events)-1)).Draw(t, "event")]
	delivery := h.Delivery(webhook, event.Sequence)
	failed := events.DeliveryAttempt{At: h.now, Status: 503, Error: "the receiver answered 503"}
	switch what := rapid.SampledFrom([]string{"fail", "give up", "succeed", "request"}).Draw(t, "attempt"); {
	case what == "request":
		return h.decide(t)(events.RequestDelivery(h.Webhook(webhook), webhook, delivery, event, "test", h.now))
	case delivery.State.State == events.DeliveryRedelivery && what == "succeed":
		h.Append(t, events.EndRedelivery(delivery, webhook, event, events.DeliveryAttempt{At: h.now, Status: 204})...)
	case delivery.State.State == events.DeliveryRedelivery:
		h.Append(t, events.EndRedelivery(delivery, webhook, event, failed)...)
	case !delivery.State.InTurn():
	case what == "succeed":
		h.Append(t, events.CompleteDelivery(delivery, webhook, event, events.DeliveryAttempt{At: h.now, Status: 204})...)
	case what == "give up":
		h.Append(t, events.FailDelivery(delivery, webhook, event, failed, time.Time{})...)
	default:
		h.Append(t, events.FailDelivery(delivery, webhook, event, failed, h.now.Add(time.Minute))...)
	}
	return nil
}

// webhook adds a webhook, or ends one.
func (h *History) webhook(t *rapid.T) error {
	if len(h.hooks) == 0 || rapid.Bool().Draw(t, "add") {
		h.AddWebhook(t)
		return nil
	}
	return h.RemoveWebhook(t, rapid.SampledFrom(h.hooks).Draw(t, "webhook"))
}
