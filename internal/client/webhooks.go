package client

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// The states of a delivery.
const (
	DeliveryRetrying   = "retrying"
	DeliveryDead       = "dead"
	DeliveryRedelivery = "redelivery"
	DeliveryDelivered  = "delivered"
)

// NewWebhook is what a webhook is asked for with.
type NewWebhook struct {
	URL    string   `json:"url"`
	Types  []string `json:"types,omitempty"`
	Images []string `json:"images,omitempty"`
	From   uint64   `json:"from,omitempty"` // sequence of the first event; 0: from now on
}

// Webhook is a URL that events are sent to.
type Webhook struct {
	ID          string    `json:"id"`
	URL         string    `json:"url"`
	Types       []string  `json:"types"`
	Images      []string  `json:"images"`
	From        uint64    `json:"from"`
	AddedBy     string    `json:"added_by"`
	AddedAt     time.Time `json:"added_at"`
	Retrying    *Delivery `json:"retrying,omitempty"` // all later events wait for it
	DeadLetters int       `json:"dead_letters"`
	Secret      string    `json:"secret,omitempty"` // only in the answer of AddWebhook
}

// Delivery is one event on its way to one webhook.
type Delivery struct {
	Webhook      string    `json:"webhook"`
	Sequence     uint64    `json:"sequence"`
	EventID      string    `json:"event_id"`
	EventType    string    `json:"event_type"`
	State        string    `json:"state"`
	Attempts     int       `json:"attempts"`
	FirstAttempt time.Time `json:"first_attempt,omitzero"`
	LastAttempt  time.Time `json:"last_attempt,omitzero"`
	RetryAt      time.Time `json:"retry_at,omitzero"`
	Status       int       `json:"status,omitempty"` // of HTTP; 0: no answer
	Error        string    `json:"error,omitempty"`
	RequestedBy  string    `json:"requested_by,omitempty"`
}

// AddWebhook adds a webhook; the answer has its secret.
func (c *Client) AddWebhook(ctx context.Context, w NewWebhook) (*Webhook, error) {
	return ask[Webhook](ctx, c, http.MethodPost, "/api/webhooks", w)
}

// Webhooks lists them, in the order in which they were added.
func (c *Client) Webhooks(ctx context.Context) ([]Webhook, error) {
	var list struct {
		Webhooks []Webhook `json:"webhooks"`
	}
	err := c.call(ctx, http.MethodGet, "/api/webhooks", nil, &list)
	return list.Webhooks, err
}

// RemoveWebhook ends a webhook.
func (c *Client) RemoveWebhook(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, route("api", "webhooks", id), nil, nil)
}

// WebhookSecret reads a webhook's secret.
func (c *Client) WebhookSecret(ctx context.Context, id string) (string, error) {
	var answer struct {
		Secret string `json:"secret"`
	}
	err := c.call(ctx, http.MethodGet, route("api", "webhooks", id, "secret"), nil, &answer)
	return answer.Secret, err
}

// DeadLetters lists the events that were given up, by their sequences.
func (c *Client) DeadLetters(ctx context.Context, id string) ([]Delivery, error) {
	var list struct {
		DeadLetters []Delivery `json:"dead_letters"`
	}
	err := c.call(ctx, http.MethodGet, route("api", "webhooks", id, "dead-letters"), nil, &list)
	return list.DeadLetters, err
}

// Redeliver asks for a past event.
func (c *Client) Redeliver(ctx context.Context, id string, sequence uint64) (*Delivery, error) {
	var d Delivery
	body := struct {
		Sequence uint64 `json:"sequence"`
	}{sequence}
	if err := c.call(ctx, http.MethodPost, route("api", "webhooks", id, "redeliver"), body, &d); err != nil {
		return nil, err
	}
	return &d, nil
}

// WaitDelivery asks for a delivery that was requested until there has been another attempt.
func (c *Client) WaitDelivery(ctx context.Context, requested *Delivery) (*Delivery, error) {
	wait := poll{}
	for {
		var d Delivery
		err := c.again(ctx, func() error {
			return c.call(ctx, http.MethodGet, route("api", "webhooks", requested.Webhook, "deliveries", strconv.FormatUint(requested.Sequence, 10)), nil, &d)
		})
		if err != nil {
			return nil, err
		}
		if d.Attempts > requested.Attempts {
			return &d, nil
		}
		if err := wait.next(ctx); err != nil {
			return nil, err
		}
	}
}
