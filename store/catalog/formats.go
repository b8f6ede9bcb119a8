package catalog

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/kept"
)

// FormatRow is one downloadable file.
type FormatRow struct {
	Image       string
	Version     string // the version's own name
	Variant     string
	Format      string
	Digest      events.Digest
	Size        int64 // bytes
	MediaType   string
	ByAlias     bool               // an alias was asked for: the answer may change
	Derived     bool               // made after the publication: it may be removed, and then made anew
	Visibility  events.Visibility  // of its image, now
	PublishedAt time.Time          // of a derived file: when it was made
	Withdrawn   *events.Withdrawal // nil unless the version is
}

const formatStatement = `
SELECT f.image, f.version, f.variant, f.format, f.digest, f.size_bytes, f.media_type, name.resolved_by = 'alias', i.visibility, coalesce(f.made_at, v.published_at), f.made_at IS NOT NULL, ` + withdrawnColumns + `
FROM ` + resolved + `
JOIN (
    SELECT image, version, variant, format, digest, size_bytes, media_type, NULL::timestamptz AS made_at FROM catalog.formats
    UNION ALL
    SELECT image, version, variant, format, digest, size_bytes, media_type, made_at FROM catalog.derived WHERE state = 'made'
) f ON f.image = $1 AND f.version = name.version AND f.variant = $3 AND f.format = $4
JOIN catalog.versions v ON v.image = f.image AND v.version = f.version
JOIN catalog.images i ON i.name = f.image`

// Format finds a file by its names; the version is meant as in [Catalog.Version]. Errors: ErrNotFound,
// ErrUnavailable.
func (c *Catalog) Format(ctx context.Context, image, versionOrAlias, variant, format string) (FormatRow, error) {
	row, err := kept.Get(c.kept, formatKey{image, versionOrAlias, variant, format}, sizeOf, func() (FormatRow, error) {
		return one(ctx, c, scanFormat, formatStatement, image, versionOrAlias, variant, format)
	})
	if err != nil {
		return FormatRow{}, explain(err, "find format %q of variant %q of version %q of image %q", format, variant, versionOrAlias, image)
	}
	return row, nil
}

// sizeOf is roughly how many bytes a row of short texts takes.
func sizeOf[R any](R) int { return 512 }

type formatKey struct{ image, version, variant, format string }

func scanFormat(row pgx.CollectableRow) (FormatRow, error) {
	var f FormatRow
	var w withdrawn
	err := row.Scan(&f.Image, &f.Version, &f.Variant, &f.Format, &f.Digest, &f.Size, &f.MediaType, &f.ByAlias, &f.Visibility, &f.PublishedAt, &f.Derived, &w.at, &w.by, &w.reason)
	f.PublishedAt, f.Withdrawn = f.PublishedAt.UTC(), w.withdrawal()
	return f, err
}

// BlobRow is a blob that a published version names, one that isn't withdrawn.
type BlobRow struct {
	Digest    events.Digest
	Size      int64 // bytes
	MediaType string
	Public    bool // some public image has it
}

var blobStatement = `
SELECT f.digest, f.size_bytes, f.media_type, i.visibility = 'public' AS public
FROM (
    SELECT 1 AS preference, image, version, variant, format, digest, size_bytes, media_type FROM catalog.formats WHERE digest = $1
    UNION ALL
    SELECT 2, image, version, variant, format, digest, size_bytes, media_type FROM catalog.derived WHERE digest = $1 AND state = 'made'
    UNION ALL
    SELECT 3, image, version, '', name, digest, size_bytes, media_type FROM catalog.attachments WHERE digest = $1
) AS f
JOIN catalog.versions v ON v.image = f.image AND v.version = f.version AND v.withdrawn_at IS NULL
JOIN catalog.images i ON i.name = f.image
WHERE ` + visible + `
ORDER BY public DESC, f.preference, f.image, f.version, f.variant, f.format
LIMIT 1`

// Blob finds a blob that some published version names, as a format, a derived file or an attachment, of a public image or one of
// the readable ones; where several do, a public one speaks for it, and a format before an attachment. Errors:
// ErrNotFound, ErrUnavailable.
func (c *Catalog) Blob(ctx context.Context, digest events.Digest, readable Readable) (BlobRow, error) {
	outer, inner := readable.args()
	row, err := kept.Get(c.kept, blobKey{digest, listKey(outer), listKey(inner)}, sizeOf, func() (BlobRow, error) {
		return one(ctx, c, scanBlob, blobStatement, string(digest), outer, inner)
	})
	if err != nil {
		return BlobRow{}, explain(err, "find blob %q", digest)
	}
	return row, nil
}

type blobKey struct {
	digest       events.Digest
	outer, inner string
}

// listKey tells lists of patterns apart, none of which has a line break.
func listKey(patterns []string) string {
	if patterns == nil {
		return "any"
	}
	return strings.Join(patterns, "\n") + "\n"
}

func scanBlob(row pgx.CollectableRow) (BlobRow, error) {
	var b BlobRow
	return b, row.Scan(&b.Digest, &b.Size, &b.MediaType, &b.Public)
}
