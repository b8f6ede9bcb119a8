package catalog

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// AttachmentRow is a file of a version as a whole.
type AttachmentRow struct {
	Image       string
	Version     string // the version's own name
	Name        string
	Digest      events.Digest
	Size        int64 // bytes
	MediaType   string
	ByAlias     bool              // an alias was asked for: the answer may change
	Visibility  events.Visibility // of its image, now
	PublishedAt time.Time
	Withdrawn   *events.Withdrawal // nil unless the version is
}

const attachmentStatement = `
SELECT f.image, f.version, f.name, f.digest, f.size_bytes, f.media_type, name.resolved_by = 'alias', i.visibility, v.published_at, ` + withdrawnColumns + `
FROM ` + resolved + `
JOIN catalog.attachments f ON f.image = $1 AND f.version = name.version AND f.name = $3
JOIN catalog.versions v ON v.image = f.image AND v.version = f.version
JOIN catalog.images i ON i.name = f.image`

// Attachment finds an attachment by its name; the version is meant as in [Catalog.Version]. Errors: ErrNotFound,
// ErrUnavailable.
func (c *Catalog) Attachment(ctx context.Context, image, versionOrAlias, name string) (AttachmentRow, error) {
	row, err := one(ctx, c, func(row pgx.CollectableRow) (AttachmentRow, error) {
		var a AttachmentRow
		var w withdrawn
		err := row.Scan(&a.Image, &a.Version, &a.Name, &a.Digest, &a.Size, &a.MediaType, &a.ByAlias, &a.Visibility, &a.PublishedAt, &w.at, &w.by, &w.reason)
		a.PublishedAt, a.Withdrawn = a.PublishedAt.UTC(), w.withdrawal()
		return a, err
	}, attachmentStatement, image, versionOrAlias, name)
	if err != nil {
		return AttachmentRow{}, explain(err, "find attachment %q of version %q of image %q", name, versionOrAlias, image)
	}
	return row, nil
}
