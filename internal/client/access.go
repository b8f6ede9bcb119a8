package client

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// Role is a role on the images of a pattern, or on the whole server.
type Role struct {
	Role   string `json:"role"`
	Images string `json:"images,omitempty"` // "" for the whole server
}

// Principal is a person or a service with roles.
type Principal struct {
	Name        string     `json:"name"`
	Kind        string     `json:"kind,omitempty"`
	Description string     `json:"description,omitempty"`
	Roles       []Role     `json:"roles"`
	CreatedBy   string     `json:"created_by,omitempty"`
	CreatedAt   *time.Time `json:"created_at,omitempty"`
}

// NewToken is what a token is asked for with.
type NewToken struct {
	Principal string `json:"principal,omitempty"` // "" for the caller
	Name      string `json:"name,omitempty"`
	Roles     []Role `json:"roles,omitempty"`      // none: all that the principal may
	ExpiresIn string `json:"expires_in,omitempty"` // a duration; "" for no end
}

// Token is a token, with its secret only where it was just issued.
type Token struct {
	ID        string     `json:"id"`
	Token     string     `json:"token,omitempty"`
	Principal string     `json:"principal"`
	Name      string     `json:"name,omitempty"`
	Roles     []Role     `json:"roles"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	IssuedBy  string     `json:"issued_by"`
	IssuedAt  *time.Time `json:"issued_at,omitempty"`
	LastUsed  string     `json:"last_used,omitempty"`
	Replaces  string     `json:"replaces,omitempty"`
	Trust     string     `json:"trust,omitempty"`
	Ended     string     `json:"ended,omitempty"`
}

// Principals lists them.
func (c *Client) Principals(ctx context.Context) ([]Principal, error) {
	var list struct {
		Principals []Principal `json:"principals"`
	}
	err := c.call(ctx, http.MethodGet, "/api/principals", nil, &list)
	return list.Principals, err
}

// CreatePrincipal makes one.
func (c *Client) CreatePrincipal(ctx context.Context, p Principal) (*Principal, error) {
	return ask[Principal](ctx, c, http.MethodPost, "/api/principals", p)
}

// RemovePrincipal ends one, with its tokens.
func (c *Client) RemovePrincipal(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, route("api", "principals", name), nil, nil)
}

// GrantRole gives a principal a role.
func (c *Client) GrantRole(ctx context.Context, name string, r Role) (*Principal, error) {
	return ask[Principal](ctx, c, http.MethodPost, route("api", "principals", name, "roles"), r)
}

// RevokeRole takes a role from a principal.
func (c *Client) RevokeRole(ctx context.Context, name string, r Role) (*Principal, error) {
	query := url.Values{"role": {r.Role}}
	if r.Images != "" {
		query.Set("images", r.Images)
	}
	return ask[Principal](ctx, c, http.MethodDelete, route("api", "principals", name, "roles")+"?"+query.Encode(), nil)
}

// Tokens lists tokens; ended also those that are no longer good. principal, where not "", is whose.
func (c *Client) Tokens(ctx context.Context, principal string, ended bool) ([]Token, error) {
	query := url.Values{}
	if principal != "" {
		query.Set("principal", principal)
	}
	if ended {
		query.Set("ended", "true")
	}
	var list struct {
		Tokens []Token `json:"tokens"`
	}
	err := c.call(ctx, http.MethodGet, "/api/tokens?"+query.Encode(), nil, &list)
	return list.Tokens, err
}

// CreateToken issues a token; the answer has its secret.
func (c *Client) CreateToken(ctx context.Context, t NewToken) (*Token, error) {
	return ask[Token](ctx, c, http.MethodPost, "/api/tokens", t)
}

// RotateToken puts another token in a token's place; the answer has its secret.
func (c *Client) RotateToken(ctx context.Context, id string) (*Token, error) {
	return ask[Token](ctx, c, http.MethodPost, route("api", "tokens", id, "rotate"), nil)
}

// RevokeToken ends a token.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, route("api", "tokens", id), nil, nil)
}

// Identity is who the client's credentials belong to.
type Identity struct {
	Name    string `json:"name"` // "" for nobody
	TokenID string `json:"token_id,omitempty"`
	Roles   []Role `json:"roles"`
	Within  []Role `json:"within,omitempty"` // where given, only what is in both lists
}

// WhoAmI asks who the client's credentials belong to.
func (c *Client) WhoAmI(ctx context.Context) (*Identity, error) {
	return ask[Identity](ctx, c, http.MethodGet, "/api/whoami", nil)
}
