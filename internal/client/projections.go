package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// CodeRebuilding is the code of the problem that a rebuild or a comparison of the projection runs.
const CodeRebuilding = "rebuild-running"

// Projection is how a projection is doing.
type Projection struct {
	Name          string         `json:"name"`
	Position      uint64         `json:"position"`
	Head          uint64         `json:"head"`
	LagEvents     uint64         `json:"lag_events"`
	LagSeconds    float64        `json:"lag_seconds"`
	Active        bool           `json:"active"` // on the node that answered
	ActiveNode    string         `json:"active_node,omitempty"`
	Tables        []TableRows    `json:"tables"`
	Error         string         `json:"error,omitempty"`
	ErrorSequence uint64         `json:"error_sequence,omitempty"`
	ErrorType     string         `json:"error_type,omitempty"`
	ErrorSince    time.Time      `json:"error_since,omitzero"`
	Remedy        string         `json:"remedy,omitempty"`
	Skipped       []SkippedEvent `json:"skipped,omitempty"`
	Trouble       string         `json:"trouble,omitempty"`
}

// TableRows is how many rows a table has.
type TableRows struct {
	Table     string `json:"table"`
	Rows      int64  `json:"rows"`
	Estimated bool   `json:"estimated,omitempty"`
}

// SkippedEvent is an event that a projection leaves out.
type SkippedEvent struct {
	Sequence uint64    `json:"sequence"`
	Type     string    `json:"type"`
	Reason   string    `json:"reason"`
	By       string    `json:"by"`
	At       time.Time `json:"at"`
}

// The states of a rebuild.
const (
	RebuildIdle     = "idle"
	RebuildFilling  = "filling"
	RebuildSwapping = "swapping"
	RebuildDone     = "done"
	RebuildStopped  = "stopped"
	RebuildFailed   = "failed"
)

// Rebuild is how far a rebuild is.
type Rebuild struct {
	Projection      string    `json:"projection"`
	State           string    `json:"state"`
	Applied         uint64    `json:"applied"`
	Total           uint64    `json:"total"`
	EventsPerSecond float64   `json:"events_per_second"`
	ETASeconds      float64   `json:"eta_seconds"`
	ResumedFrom     uint64    `json:"resumed_from,omitempty"`
	StartedAt       time.Time `json:"started_at,omitzero"`
	EndedAt         time.Time `json:"ended_at,omitzero"`
	Error           string    `json:"error,omitempty"`
	ErrorSequence   uint64    `json:"error_sequence,omitempty"`
}

// Running says whether it hasn't ended.
func (r *Rebuild) Running() bool { return r.State == RebuildFilling || r.State == RebuildSwapping }

// Verification is what a comparison of a projection with its events found.
type Verification struct {
	Projection  string       `json:"projection"`
	Position    uint64       `json:"position"`
	Rows        int64        `json:"rows"`
	Total       int64        `json:"total"`
	Differences []Difference `json:"differences"`
	TookSeconds float64      `json:"took_seconds"`
}

// Difference is a row that isn't what the events make of it; Live or Derived is empty where there is none.
type Difference struct {
	Table   string          `json:"table"`
	Key     json.RawMessage `json:"key"`
	Live    json.RawMessage `json:"live,omitempty"`
	Derived json.RawMessage `json:"derived,omitempty"`
}

// Replayed is one event and the rows that applying it changes.
type Replayed struct {
	Sequence uint64      `json:"sequence"`
	Type     string      `json:"type"`
	Subject  string      `json:"subject"`
	Time     time.Time   `json:"time,omitzero"`
	Skipped  bool        `json:"skipped,omitempty"`
	Changes  []RowChange `json:"changes,omitempty"`
	Error    string      `json:"error,omitempty"`
}

// RowChange is what happens to one row.
type RowChange struct {
	Op    string          `json:"op"` // insert, update, delete
	Table string          `json:"table"`
	Row   json.RawMessage `json:"row"`
}

// Projections reads how all projections are doing.
func (c *Client) Projections(ctx context.Context) ([]Projection, error) {
	var out struct {
		Projections []Projection `json:"projections"`
	}
	err := c.call(ctx, http.MethodGet, route("api", "projections"), nil, &out)
	return out.Projections, err
}

// StartRebuild begins a rebuild on the server.
func (c *Client) StartRebuild(ctx context.Context, name string) (*Rebuild, error) {
	return c.rebuild(ctx, http.MethodPost, name)
}

// Rebuild reads how far it is.
func (c *Client) Rebuild(ctx context.Context, name string) (*Rebuild, error) {
	return c.rebuild(ctx, http.MethodGet, name)
}

// StopRebuild stops it; what is done stays.
func (c *Client) StopRebuild(ctx context.Context, name string) (*Rebuild, error) {
	return c.rebuild(ctx, http.MethodDelete, name)
}

func (c *Client) rebuild(ctx context.Context, method, name string) (*Rebuild, error) {
	return ask[Rebuild](ctx, c, method, route("api", "projections", name, "rebuild"), nil)
}

// VerifyProjection compares a projection with its events; limit is the most differences that come back.
func (c *Client) VerifyProjection(ctx context.Context, name string, limit int) (*Verification, error) {
	ref := route("api", "projections", name, "verify") + "?limit=" + strconv.Itoa(limit)
	return ask[Verification](ctx, c, http.MethodPost, ref, nil)
}

// ReplayProjection tells each event's changes, in order.
func (c *Client) ReplayProjection(ctx context.Context, name string, from, to uint64, each func(Replayed) error) error {
	query := url.Values{"from": {strconv.FormatUint(from, 10)}, "to": {strconv.FormatUint(to, 10)}}
	r, err := c.request(ctx, http.MethodGet, route("api", "projections", name, "replay")+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	answer, err := c.send(r)
	if err != nil {
		return err
	}
	defer discard(answer)
	lines := json.NewDecoder(bufio.NewReader(answer.Body))
	for {
		var e Replayed
		err := lines.Decode(&e)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &ConnectionError{Server: c.base.Scheme + "://" + c.base.Host, Err: err}
		}
		if e.Sequence == 0 {
			return fmt.Errorf("the replay broke off: %s", e.Error)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// SkipEvent lets a projection leave out the event that it stands at.
func (c *Client) SkipEvent(ctx context.Context, name string, sequence uint64, reason string) error {
	body := struct {
		Sequence uint64 `json:"sequence"`
		Reason   string `json:"reason"`
	}{sequence, reason}
	return c.call(ctx, http.MethodPost, route("api", "projections", name, "skip"), body, nil)
}
