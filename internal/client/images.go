package client

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// Image is a line of releases.
type Image struct {
	Name        string            `json:"name"`
	OS          string            `json:"os,omitempty"`
	Release     string            `json:"release,omitempty"`
	Description string            `json:"description,omitempty"`
	Visibility  string            `json:"visibility"`
	Latest      string            `json:"latest_version"`        // the one published last
	PublishedAt time.Time         `json:"published_at,omitzero"` // when that was
	Versions    int               `json:"version_count"`
	Aliases     map[string]string `json:"aliases"` // alias to version
}

// VersionSummary is a published version in a list.
type VersionSummary struct {
	Image       string    `json:"image"`
	Version     string    `json:"version"`
	PublishedAt time.Time `json:"published_at,omitzero"`
	Aliases     []string  `json:"aliases"`
	Variants    []string  `json:"variants"` // their names
	Attachments []string  `json:"attachments,omitempty"`
	URL         string    `json:"url"`
}

// Version is a published version: its manifest with URLs.
type Version struct {
	Image       string `json:"image"`
	Version     string `json:"version"`
	OS          string `json:"os,omitempty"`
	Release     string `json:"release,omitempty"`
	Description string `json:"description,omitempty"`
	Traits
	Visibility  string    `json:"visibility"`
	Aliases     []string  `json:"aliases,omitempty"`
	PublishedAt time.Time `json:"published_at,omitzero"`
	Variants    []Variant `json:"variants"`

	Attachments []Attachment `json:"attachments,omitempty"`
}

// Attachment is a downloadable file of a version as a whole.
type Attachment struct {
	Name      string `json:"name"`
	Digest    string `json:"digest"` // sha256:<hex>
	Size      int64  `json:"size"`   // bytes
	MediaType string `json:"media_type,omitempty"`
	URL       string `json:"url,omitempty"`
}

// Variant is what a version offers for one architecture, type and flavour.
type Variant struct {
	Architecture string   `json:"architecture"`
	Type         string   `json:"type"`
	Flavour      string   `json:"flavour"`
	Fingerprint  string   `json:"fingerprint,omitempty"` // the image's name in Incus and LXD; "" if they can't take it
	Root         string   `json:"root,omitempty"`        // the format that holds the instance's root
	Formats      []Format `json:"formats"`

	Derived []DerivedState `json:"derived,omitempty"` // formats that are to be made, and those that couldn't be
}

// Name is the variant as one path segment: amd64.virtual-machine.default.
func (v *Variant) Name() string { return v.Architecture + "." + v.Type + "." + v.Flavour }

// Format is one downloadable file.
type Format struct {
	Format    string     `json:"format"`
	Digest    string     `json:"digest"` // sha256:<hex>
	Size      int64      `json:"size"`   // bytes
	MediaType string     `json:"media_type,omitempty"`
	Origin    string     `json:"origin,omitempty"`
	Incus     *ImageInfo `json:"incus,omitempty"`   // of metadata tarballs and unified images
	MadeBy    *MadeBy    `json:"made_by,omitempty"` // of a format that was made after the publication
	URL       string     `json:"url,omitempty"`
}

// ImageInfo is what a metadata tarball or unified image says of itself.
type ImageInfo struct {
	CreatedAt  time.Time         `json:"created_at"`
	ExpiresAt  time.Time         `json:"expires_at,omitzero"`
	Properties map[string]string `json:"properties,omitempty"`
	Templates  []string          `json:"templates,omitempty"` // paths in an instance
}

// Images lists images by name, page by page as they are asked for. An error ends the list.
func (c *Client) Images(ctx context.Context) iter.Seq2[Image, error] {
	return c.ImagesAsOf(ctx, "")
}

// ImagesAsOf lists images as they were at an event (its sequence) or a time (RFC 3339); "" is now.
func (c *Client) ImagesAsOf(ctx context.Context, at string) iter.Seq2[Image, error] {
	return pages[Image](ctx, c, "/api/images", asOf(at), "images")
}

func asOf(at string) url.Values {
	if at == "" {
		return url.Values{}
	}
	return url.Values{"at": {at}}
}

// Image reads one image.
func (c *Client) Image(ctx context.Context, name string) (*Image, error) {
	return ask[Image](ctx, c, http.MethodGet, route("api", "images", name), nil)
}

// Versions lists an image's versions, newest first, page by page as they are asked for. An error ends the list.
func (c *Client) Versions(ctx context.Context, image string) iter.Seq2[VersionSummary, error] {
	return c.VersionsAsOf(ctx, image, "")
}

// VersionsAsOf lists an image's versions as they were: see [Client.ImagesAsOf].
func (c *Client) VersionsAsOf(ctx context.Context, image, at string) iter.Seq2[VersionSummary, error] {
	return pages[VersionSummary](ctx, c, route("api", "images", image, "versions"), asOf(at), "versions")
}

// Version reads a version of an image by its name or an alias.
func (c *Client) Version(ctx context.Context, image, versionOrAlias string) (*Version, error) {
	return c.VersionAt(ctx, route("api", "images", image, "versions", versionOrAlias))
}

// VersionAt reads the version at a version_url.
func (c *Client) VersionAt(ctx context.Context, ref string) (*Version, error) {
	return ask[Version](ctx, c, http.MethodGet, ref, nil)
}

// FormatURL is where a format's bytes are.
func (c *Client) FormatURL(image, version, variant, format string) string {
	return c.URL(route("api", "images", image, "versions", version, "variants", variant, "formats", format))
}

// AttachmentURL is where an attachment's bytes are.
func (c *Client) AttachmentURL(image, version, name string) string {
	return c.URL(route("api", "images", image, "versions", version, "attachments", name))
}

// VersionURL is where a version's manifest is.
func (c *Client) VersionURL(image, version string) string {
	return c.URL(route("api", "images", image, "versions", version))
}

// page is one page of a list.
type page[T any] struct {
	field   string // what the entries are called
	entries []T
	next    string // cursor of the next page; "" on the last
}

func (p *page[T]) UnmarshalJSON(data []byte) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return err
	}
	entries, ok := raw[p.field]
	if !ok {
		return fmt.Errorf("the page has no field %q", p.field)
	}
	if err := json.Unmarshal(entries, &p.entries); err != nil {
		return fmt.Errorf("%s: %w", p.field, err)
	}
	if next, ok := raw["next"]; ok {
		if err := json.Unmarshal(next, &p.next); err != nil {
			return fmt.Errorf("next: %w", err)
		}
	}
	return nil
}

// MoveAlias lets an alias of an image point at a published version.
func (c *Client) MoveAlias(ctx context.Context, image, alias, version string) error {
	body := struct {
		Version string `json:"version"`
	}{version}
	return c.call(ctx, http.MethodPut, route("api", "images", image, "aliases", alias), body, nil)
}

// RemoveAlias takes an alias away. The version that it names stays.
func (c *Client) RemoveAlias(ctx context.Context, image, alias string) error {
	return c.call(ctx, http.MethodDelete, route("api", "images", image, "aliases", alias), nil, nil)
}
