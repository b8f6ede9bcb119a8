package client

import (
	"context"
	"net/http"
	"time"
)

// Withdrawal asks for a version to be withdrawn.
type Withdrawal struct {
	Reason      string `json:"reason"`
	MoveAlias   string `json:"move_alias,omitempty"`   // the version that aliases of this one are to name
	RemoveAlias bool   `json:"remove_alias,omitempty"` // remove them instead
}

// VersionState says where a version stands.
type VersionState struct {
	Image       string    `json:"image"`
	Version     string    `json:"version"`
	State       string    `json:"state"` // published or withdrawn
	Reason      string    `json:"reason,omitempty"`
	WithdrawnBy string    `json:"withdrawn_by,omitempty"`
	WithdrawnAt time.Time `json:"withdrawn_at,omitzero"`
}

// Policy says what is made of an image's versions, and how long they are kept.
type Policy struct {
	Formats   []PolicyFormat `json:"formats"`
	Deltas    *int           `json:"deltas,omitempty"` // nil: as many as the server makes by default
	Retention Retention      `json:"retention"`
}

// PolicyFormat is a format to be made of each version.
type PolicyFormat struct {
	Format   string `json:"format"`
	Required bool   `json:"required"`
}

// Retention says which versions stay: the last so many, and those of so many days; 0 is no such rule.
type Retention struct {
	KeepLast int `json:"keep_last,omitempty"`
	KeepDays int `json:"keep_days,omitempty"`
}

// Withdraw takes a version out of lists and streams.
func (c *Client) Withdraw(ctx context.Context, image, version string, w Withdrawal) (*VersionState, error) {
	var v VersionState
	if err := c.call(ctx, http.MethodPost, route("api", "images", image, "versions", version, "withdraw"), w, &v); err != nil {
		return nil, err
	}
	return &v, nil
}

// Restore undoes a withdrawal.
func (c *Client) Restore(ctx context.Context, image, version string) (*VersionState, error) {
	var v VersionState
	if err := c.call(ctx, http.MethodPost, route("api", "images", image, "versions", version, "restore"), nil, &v); err != nil {
		return nil, err
	}
	return &v, nil
}

// Policy reads an image's policy.
func (c *Client) Policy(ctx context.Context, image string) (*Policy, error) {
	var p Policy
	if err := c.call(ctx, http.MethodGet, route("api", "images", image, "policy"), nil, &p); err != nil {
		return nil, err
	}
	return &p, nil
}

// SetPolicy gives an image a policy, in place of the one before.
func (c *Client) SetPolicy(ctx context.Context, image string, p Policy) (*Policy, error) {
	if p.Formats == nil {
		p.Formats = []PolicyFormat{} // a list, also where it is empty
	}
	var out Policy
	if err := c.call(ctx, http.MethodPut, route("api", "images", image, "policy"), p, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// SetVisibility makes an image public or private.
func (c *Client) SetVisibility(ctx context.Context, image, visibility string) error {
	return c.call(ctx, http.MethodPut, route("api", "images", image, "visibility"), map[string]string{"visibility": visibility}, nil)
}
