package client

import (
	"context"
	"net/http"
	"time"
)

// NewTrustRule is what a trust rule is asked for with.
type NewTrustRule struct {
	Name     string            `json:"name"`
	Issuer   string            `json:"issuer"`
	Audience string            `json:"audience"`
	Claims   map[string]string `json:"claims"` // '*' in a value stands for any characters
	Roles    []Role            `json:"roles"`
	TokenTTL string            `json:"token_ttl,omitempty"` // a duration; "" for an hour
}

// TrustRule gives roles to whoever brings an OIDC token of an issuer with certain claims.
type TrustRule struct {
	ID string `json:"id"`
	NewTrustRule
	AddedBy string    `json:"added_by"`
	AddedAt time.Time `json:"added_at"`
}

// TrustRules lists them, in the order in which they were added.
func (c *Client) TrustRules(ctx context.Context) ([]TrustRule, error) {
	var list struct {
		Rules []TrustRule `json:"trust_rules"`
	}
	err := c.call(ctx, http.MethodGet, "/api/trust-rules", nil, &list)
	return list.Rules, err
}

// AddTrustRule adds one.
func (c *Client) AddTrustRule(ctx context.Context, rule NewTrustRule) (*TrustRule, error) {
	return ask[TrustRule](ctx, c, http.MethodPost, "/api/trust-rules", rule)
}

// RemoveTrustRule ends one.
func (c *Client) RemoveTrustRule(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, route("api", "trust-rules", id), nil, nil)
}
