package client

import (
	"context"
	"net/http"
	"time"
)

// MirrorSyncing is the state of a mirror while a run is wanted or going on.
const MirrorSyncing = "syncing"

// NewMirror is what a mirror is asked for with.
type NewMirror struct {
	Name          string   `json:"name"`
	URL           string   `json:"url"`
	SecretPath    bool     `json:"secret_path,omitempty"`   // the URL's path is as secret as a password
	Filters       []string `json:"filters,omitempty"`       // none: all
	Architectures []string `json:"architectures,omitempty"` // none: all
	Keep          int      `json:"keep,omitempty"`          // 0: 1
	ImageName     string   `json:"image_name,omitempty"`    // template; "": the mirror's own choice
	UpstreamKey   string   `json:"upstream_key,omitempty"`  // armored; "": documents needn't be signed
	Visibility    string   `json:"visibility,omitempty"`    // of images that aren't there yet; "": private with credentials, else public
	Every         string   `json:"every,omitempty"`         // a duration; "": an hour
}

// Mirror follows another simplestreams server.
type Mirror struct {
	NewMirror
	Signed        bool       `json:"signed"`      // upstream's documents have to be
	Credentials   bool       `json:"credentials"` // the server keeps some, which aren't shown
	AddedBy       string     `json:"added_by"`
	AddedAt       time.Time  `json:"added_at"`
	State         string     `json:"state"`
	RequestedAt   time.Time  `json:"requested_at,omitzero"`
	RequestedBy   string     `json:"requested_by,omitempty"`
	NextAt        time.Time  `json:"next_at,omitzero"`
	LastSuccessAt time.Time  `json:"last_success_at,omitzero"`
	LagSeconds    int64      `json:"lag_seconds"`   // since then, or since the mirror was added
	Behind        int        `json:"behind"`        // versions that the last run has found and that aren't here
	Failures      int        `json:"failures"`      // runs in a row
	FetchedBytes  int64      `json:"fetched_bytes"` // of upstream's files, by all runs
	SavedBytes    int64      `json:"saved_bytes"`   // that deltas spared
	LastRun       *MirrorRun `json:"last_run,omitempty"`
}

// MirrorRun is what came of a run.
type MirrorRun struct {
	StartedAt    time.Time `json:"started_at"`
	EndedAt      time.Time `json:"ended_at"`
	Unchanged    bool      `json:"unchanged"`
	Matched      int       `json:"matched"`
	Published    int       `json:"published"`
	Present      int       `json:"present"`
	Refused      int       `json:"refused"`
	Failed       int       `json:"failed"`
	FetchedBytes int64     `json:"fetched_bytes"`
	SavedBytes   int64     `json:"saved_bytes"`
	Error        string    `json:"error,omitempty"`
	Problems     []string  `json:"problems"`
}

// AddMirror begins to follow a server.
func (c *Client) AddMirror(ctx context.Context, m NewMirror) (*Mirror, error) {
	return ask[Mirror](ctx, c, http.MethodPost, "/api/mirrors", m)
}

// Mirrors lists them.
func (c *Client) Mirrors(ctx context.Context) ([]Mirror, error) {
	var list struct {
		Mirrors []Mirror `json:"mirrors"`
	}
	err := c.call(ctx, http.MethodGet, "/api/mirrors", nil, &list)
	return list.Mirrors, err
}

// RemoveMirror ends a mirror.
func (c *Client) RemoveMirror(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, route("api", "mirrors", name), nil, nil)
}

// SyncMirror asks for a run.
func (c *Client) SyncMirror(ctx context.Context, name string) (*Mirror, error) {
	return ask[Mirror](ctx, c, http.MethodPost, route("api", "mirrors", name, "sync"), nil)
}

// WaitMirror asks for a mirror until no run of it is wanted or going on. Failures that may pass are waited out.
func (c *Client) WaitMirror(ctx context.Context, name string) (*Mirror, error) {
	wait := poll{}
	for {
		var m Mirror
		err := c.again(ctx, func() error {
			m = Mirror{}
			return c.call(ctx, http.MethodGet, route("api", "mirrors", name), nil, &m)
		})
		if err != nil {
			return nil, err
		}
		if m.State != MirrorSyncing {
			return &m, nil
		}
		if err := wait.next(ctx); err != nil {
			return nil, err
		}
	}
}
