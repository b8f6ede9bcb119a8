package client

import (
	"context"
	"net/http"
	"strings"

	"github.com/google/uuid"
)

// NewImage is the body of POST /api/images: a version to be published, with the files of its variants and its own.
type NewImage struct {
	Image       string `json:"image"`
	Version     string `json:"version"`
	OS          string `json:"os,omitempty"`
	Release     string `json:"release,omitempty"`
	Description string `json:"description,omitempty"`
	Traits
	CloudInit  bool         `json:"cloud_init,omitempty"` // metadata that the server makes has templates for cloud-init
	Visibility string       `json:"visibility,omitempty"`
	Aliases    []string     `json:"aliases,omitempty"`
	Variants   []NewVariant `json:"variants"`
	Derive     []string     `json:"derive,omitempty"` // formats to be made of each disk after the publication

	Attachments []NewAttachment `json:"attachments,omitempty"`
}

// Traits is what a publisher says of a version beside its names.
type Traits struct {
	ReleaseTitle string            `json:"release_title,omitempty"`
	Codename     string            `json:"codename,omitempty"`
	SupportEOL   string            `json:"support_eol,omitempty"` // YYYY-MM-DD
	Supported    *bool             `json:"supported,omitempty"`   // nil: not said
	Labels       map[string]string `json:"labels,omitempty"`
	Requirements map[string]string `json:"requirements,omitempty"`
}

// NewAttachment declares a file of the version as a whole.
type NewAttachment struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`             // bytes
	SHA256 string `json:"sha256,omitempty"` // hex
}

// AttachmentVariant is the variant of those files of a session that are attachments; the format is then the name.
const AttachmentVariant = "attachments"

// NewVariant declares the files of a variant.
type NewVariant struct {
	Architecture string    `json:"architecture"`
	Type         string    `json:"type"`
	Flavour      string    `json:"flavour"`
	Files        []NewFile `json:"files"`
	Fingerprint  string    `json:"fingerprint,omitempty"` // hex; what metadata and root must have together
}

// NewFile declares a file.
type NewFile struct {
	Format string `json:"format"`
	Size   int64  `json:"size"`             // bytes
	SHA256 string `json:"sha256,omitempty"` // hex
}

// The states of an upload session that a publisher decides on.
const (
	StateUploading  = "uploading"
	StateQueued     = "queued"
	StatePublishing = "publishing"
	StatePublished  = "published"
)

// Session is the answer to a NewImage.
type Session struct {
	ID        string        `json:"upload_session_id"`
	State     string        `json:"state"`
	StatusURL string        `json:"status_url"`
	JobURL    string        `json:"job_url,omitempty"`
	Files     []SessionFile `json:"files"`
}

// SessionFile is a file of a new session. Tus is nil for a file that the server has already.
type SessionFile struct {
	Variant string     `json:"variant"`
	Format  string     `json:"format"`
	State   string     `json:"state"`
	Tus     *TusTarget `json:"tus,omitempty"`
}

// TusTarget is where a file's tus upload is created, and with what Upload-Metadata.
type TusTarget struct {
	CreateURL string `json:"create_url"`
	Metadata  string `json:"metadata"`
}

// The states of a file in a session.
const (
	FilePending  = "pending"
	FilePresent  = "present"  // the server had the bytes before
	FileComplete = "complete" // all bytes arrived
)

// Upload is the state of an upload session.
type Upload struct {
	ID         string       `json:"id"`
	State      string       `json:"state"`
	Image      string       `json:"image"`
	Version    string       `json:"version"`
	Files      []UploadFile `json:"files"`
	JobURL     string       `json:"job_url,omitempty"`
	VersionURL string       `json:"version_url,omitempty"`
}

// UploadFile is the state of a file in a session.
type UploadFile struct {
	Variant string `json:"variant"`
	Format  string `json:"format"`
	State   string `json:"state"`
	Offset  int64  `json:"offset"` // bytes that arrived
	Size    int64  `json:"size"`   // bytes, as declared
	SHA256  string `json:"sha256"` // hex; as declared, or of the bytes that arrived
	TusURL  string `json:"tus_url,omitempty"`
}

// File finds a file of the session.
func (u *Upload) File(variant, format string) (UploadFile, bool) {
	for _, f := range u.Files {
		if f.Variant == variant && f.Format == format {
			return f, true
		}
	}
	return UploadFile{}, false
}

// CreateUpload opens an upload session. It makes the request again when the answer was lost, under one Idempotency-Key, so
// that no second session comes of it; an address where nobody listens is an error at once. A *Problem says why it was refused.
func (c *Client) CreateUpload(ctx context.Context, image NewImage) (*Session, error) {
	return c.CreateUploadAs(ctx, image, uuid.NewString())
}

// CreateUploadAs is CreateUpload under an Idempotency-Key of the caller's: the same image under the same key is the same session.
func (c *Client) CreateUploadAs(ctx context.Context, image NewImage, key string) (*Session, error) {
	var session Session
	err := c.firstAgain(ctx, func() error {
		session = Session{}
		return c.call(ctx, http.MethodPost, "/api/images", image, &session, "Idempotency-Key", key)
	})
	if err != nil {
		return nil, err
	}
	return &session, nil
}

// Upload reads a session's state; ref is its status_url or its ID.
func (c *Client) Upload(ctx context.Context, ref string) (*Upload, error) {
	return ask[Upload](ctx, c, http.MethodGet, refOr(ref, "api", "uploads"), nil)
}

// AbortUpload ends a session; ref is its status_url or its ID.
func (c *Client) AbortUpload(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, refOr(ref, "api", "uploads"), nil, nil)
}

// refOr is ref itself where it is a URL or a path, else the path to an entity of that ID.
func refOr(ref string, parents ...string) string {
	if strings.Contains(ref, "/") {
		return ref
	}
	return route(append(parents, ref)...)
}
