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

	// ETag names the state that was read, and is what SetPolicy replaces: a policy that somebody has changed meanwhile stays as it is. "" replaces
	// any.
	ETag string `json:"-"`
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
	return ask[VersionState](ctx, c, http.MethodPost, route("api", "images", image, "versions", version, "withdraw"), w)
}

// Restore undoes a withdrawal.
func (c *Client) Restore(ctx context.Context, image, version string) (*VersionState, error) {
	return ask[VersionState](ctx, c, http.MethodPost, route("api", "images", image, "versions", version, "restore"), nil)
}

// Policy reads an image's policy.
func (c *Client) Policy(ctx context.Context, image string) (*Policy, error) {
	return c.policy(ctx, http.MethodGet, image, nil, "")
}

// SetPolicy gives an image a policy, in place of the one before: see [Policy.ETag]. CodePrecondition says that it is another by now.
func (c *Client) SetPolicy(ctx context.Context, image string, p Policy) (*Policy, error) {
	if p.Formats == nil {
		p.Formats = []PolicyFormat{} // a list, also where it is empty
	}
	return c.policy(ctx, http.MethodPut, image, p, p.ETag)
}

func (c *Client) policy(ctx context.Context, method, image string, in any, ifMatch string) (*Policy, error) {
	var out Policy
	header, err := c.callForHeader(ctx, method, route("api", "images", image, "policy"), in, &out, "If-Match", ifMatch)
	if err != nil {
		return nil, err
	}
	out.ETag = header.Get("ETag")
	return &out, nil
}

// SetVisibility makes an image public or private.
func (c *Client) SetVisibility(ctx context.Context, image, visibility string) error {
	return c.call(ctx, http.MethodPut, route("api", "images", image, "visibility"), map[string]string{"visibility": visibility}, nil)
}
