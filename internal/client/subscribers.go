package client

import (
	"context"
	"net/http"
	"time"
)

// NewSubscriber is what a subscriber is asked for with: images, or all of them.
type NewSubscriber struct {
	Name       string   `json:"name"`
	Images     []string `json:"images,omitempty"`
	All        bool     `json:"all,omitempty"`
	From       uint64   `json:"from,omitempty"` // sequence of the first event; 0: the first of all
	MaxPending int      `json:"max_pending,omitempty"`
}

// Subscriber reads events over NATS.
type Subscriber struct {
	Name         string    `json:"name"`
	PublicKey    string    `json:"public_key"`
	Images       []string  `json:"images"` // none: all
	From         uint64    `json:"from"`
	MaxPending   int       `json:"max_pending"`
	AddedBy      string    `json:"added_by"`
	AddedAt      time.Time `json:"added_at"`
	Acknowledged uint64    `json:"acknowledged"`
	Pending      uint64    `json:"pending"`
}

// AddedSubscriber is a subscriber with what is shown only once.
type AddedSubscriber struct {
	Name        string    `json:"name"`
	PublicKey   string    `json:"public_key"`
	Images      []string  `json:"images"`
	From        uint64    `json:"from"`
	MaxPending  int       `json:"max_pending"`
	AddedBy     string    `json:"added_by"`
	AddedAt     time.Time `json:"added_at"`
	Credentials string    `json:"credentials"`           // a file for NATS clients
	NATSConfig  string    `json:"nats_config,omitempty"` // for the configuration of a NATS server that isn't imgsrv's own
}

// AddSubscriber lets a subscriber in.
func (c *Client) AddSubscriber(ctx context.Context, s NewSubscriber) (*AddedSubscriber, error) {
	return ask[AddedSubscriber](ctx, c, http.MethodPost, "/api/subscribers", s)
}

// Subscribers lists them, by name.
func (c *Client) Subscribers(ctx context.Context) ([]Subscriber, error) {
	var list struct {
		Subscribers []Subscriber `json:"subscribers"`
	}
	err := c.call(ctx, http.MethodGet, "/api/subscribers", nil, &list)
	return list.Subscribers, err
}

// RemoveSubscriber shuts a subscriber out.
func (c *Client) RemoveSubscriber(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, route("api", "subscribers", name), nil, nil)
}
