package client

import (
	"context"
	"net/http"
	"time"
)

// Status is how a server is doing.
type Status struct {
	Readiness Readiness  `json:"readiness"`
	Jobs      []JobCount `json:"jobs"`
	GivenUp   []GivenUp  `json:"given_up"` // empty when all is well
}

// Readiness says which parts of a node are there.
type Readiness struct {
	Ready   bool `json:"ready"`
	NATS    Part `json:"nats"`
	Storage struct {
		Writable  bool   `json:"writable"`
		FreeBytes int64  `json:"free_bytes"`
		Error     string `json:"error,omitempty"`
	} `json:"storage"`
	Postgres    Part `json:"postgres"`
	Projections []struct {
		Name       string  `json:"name"`
		LagEvents  uint64  `json:"lag_events"`
		LagSeconds float64 `json:"lag_seconds"`
		Error      string  `json:"error,omitempty"`
	} `json:"projections"`
}

// Part is one part of a node.
type Part struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// JobCount is how many publication jobs are in a state.
type JobCount struct {
	State          string    `json:"state"`
	Jobs           int64     `json:"jobs"`
	OldestQueuedAt time.Time `json:"oldest_queued_at"`
}

// GivenUp is one kind of what nobody tries again by itself, or what goes on failing.
type GivenUp struct {
	What     string   `json:"what"`
	Count    int64    `json:"count"`
	Look     string   `json:"look"` // the command that shows them
	Examples []string `json:"examples,omitempty"`
	Error    string   `json:"error,omitempty"` // why it is not known how many there are
}

// Status asks how the server is doing.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return ask[Status](ctx, c, http.MethodGet, "/api/status", nil)
}
