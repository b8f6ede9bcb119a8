package client

import (
	"context"
	"net/http"
)

// The states of a further format.
const (
	DerivedRequested = "requested"
	DerivedMade      = "made"
	DerivedFailed    = "failed"
	DerivedSkipped   = "skipped"
)

// Derived is a further format of a published version, as it was asked for.
type Derived struct {
	Image   string `json:"image"`
	Version string `json:"version"`
	Variant string `json:"variant"`
	Format  string `json:"format"`
	State   string `json:"state"` // DerivedRequested, or DerivedMade where it is there already
	URL     string `json:"url"`
}

// DerivedState is a further format that isn't there.
type DerivedState struct {
	Format   string    `json:"format"`
	State    string    `json:"state"` // DerivedRequested, DerivedFailed, DerivedSkipped
	Attempts int       `json:"attempts,omitempty"`
	Error    *JobError `json:"error,omitempty"` // only for publishers and operators
}

// MadeBy says how a further format was made.
type MadeBy struct {
	Tool        string `json:"tool"`
	ToolVersion string `json:"tool_version"`
	Arguments   string `json:"arguments"`
	Verified    string `json:"verified"`
	From        string `json:"from"`
	FromDigest  string `json:"from_digest"`
}

// Derive asks for a further format of a published version's variant, or for it again where it failed. The version is
// its own name, not an alias.
func (c *Client) Derive(ctx context.Context, image, version, variant, format string) (*Derived, error) {
	var d Derived
	body := map[string]string{"format": format}
	if err := c.call(ctx, http.MethodPost, route("api", "images", image, "versions", version, "variants", variant, "derive"), body, &d); err != nil {
		return nil, err
	}
	return &d, nil
}
