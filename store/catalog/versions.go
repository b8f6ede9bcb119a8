package catalog

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/kept"
)

// VersionRow is a published version.
type VersionRow struct {
	Image       string
	Version     string
	Visibility  events.Visibility // of its image, now
	PublishedAt time.Time
	Sequence    events.Sequence // of the event that published it
	Aliases     []string        // that name it, sorted
	Manifest    events.Manifest
	Derived     []events.Derived // what is made from it, is to be made or couldn't be, by variant and format
	ResolvedBy  ResolvedBy
	Withdrawn   *events.Withdrawal // nil unless the version is; lists have no such versions
}

// ResolvedBy says what kind of name led to a version.
type ResolvedBy string

// A version's own name, or an alias.
const (
	ByVersion ResolvedBy = "version"
	ByAlias   ResolvedBy = "alias"
)

const versionColumns = `
SELECT v.image, v.version, i.visibility, v.published_at, v.sequence,
    coalesce((SELECT array_agg(a.alias ORDER BY a.alias) FROM catalog.aliases a WHERE a.image = v.image AND a.version = v.version), '{}') AS aliases,
    v.manifest,
    coalesce((SELECT jsonb_agg(d.derived ORDER BY d.variant, d.format) FROM catalog.derived d WHERE d.image = v.image AND d.version = v.version), '[]') AS derived,
    ` + withdrawnColumns

// withdrawnColumns are read by scanning into a [withdrawn].
const withdrawnColumns = `v.withdrawn_at, v.withdrawn_by, v.withdrawn_reason`

// withdrawn takes the columns of a withdrawal; NULLs where there is none.
type withdrawn struct {
	at         *time.Time
	by, reason *string
}

func (w withdrawn) withdrawal() *events.Withdrawal {
	if w.at == nil || w.by == nil || w.reason == nil {
		return nil
	}
	return &events.Withdrawal{Reason: *w.reason, By: *w.by, At: w.at.UTC()}
}

const versionsStatement = versionColumns + `, 'version'
FROM catalog.versions v
JOIN catalog.images i ON i.name = v.image
WHERE v.image = $1 AND v.withdrawn_at IS NULL
ORDER BY v.published_at DESC, v.sequence DESC
LIMIT $2`

const versionsAfterStatement = versionColumns + `, 'version'
FROM catalog.versions v
JOIN catalog.images i ON i.name = v.image
WHERE v.image = $1 AND v.withdrawn_at IS NULL AND (v.published_at, v.sequence) < ($3, $4)
ORDER BY v.published_at DESC, v.sequence DESC
LIMIT $2`

// resolved is the version that a name means: one of that very name, else the one its alias points to.
const resolved = `(
    SELECT w.version, 'version' AS resolved_by FROM catalog.versions w WHERE w.image = $1 AND w.version = $2
    UNION ALL
    SELECT a.version, 'alias' FROM catalog.aliases a WHERE a.image = $1 AND a.alias = $2
    ORDER BY resolved_by DESC -- 'version' before 'alias'
    LIMIT 1
) AS name`

const versionStatement = versionColumns + `, name.resolved_by
FROM ` + resolved + `
JOIN catalog.versions v ON v.image = $1 AND v.version = name.version
JOIN catalog.images i ON i.name = v.image`

// Versions lists the versions of an image, newest first. The cursor is opaque: next is the After of the
// following page and "" at the end. An image that isn't there is ErrNotFound. Other errors: ErrBadCursor,
// ErrUnavailable.
func (c *Catalog) Versions(ctx context.Context, image, after string, limit int) (versions []VersionRow, next string, err error) {
	limit = pageSize(limit)
	statement, args := versionsStatement, []any{image, limit + 1}
	if after != "" {
		place, err := parseCursor(after)
		if err != nil {
			return nil, "", fmt.Errorf("list versions of image %q: %w", image, err)
		}
		sequence, err := strconv.ParseInt(place.tie, 10, 64)
		if err != nil {
			return nil, "", fmt.Errorf("list versions of image %q: %w", image, ErrBadCursor)
		}
		statement, args = versionsAfterStatement, append(args, place.at, sequence)
	}
	versions, more, err := list(ctx, c, limit, scanVersion, statement, args...)
	if err == nil && len(versions) == 0 {
		// A page after the last version is empty; an image without versions isn't there.
		_, err = one(ctx, c, pgx.RowTo[bool], `SELECT true FROM catalog.images i WHERE i.name = $1 AND EXISTS (SELECT FROM catalog.versions v WHERE v.image = $1 AND v.withdrawn_at IS NULL)`, image)
	}
	if err != nil {
		return nil, "", explain(err, "list versions of image %q", image)
	}
	if more {
		last := versions[len(versions)-1]
		next = cursor{at: last.PublishedAt, tie: strconv.FormatUint(uint64(last.Sequence), 10)}.String()
	}
	return versions, next, nil
}

// Version reads the version that a name means: the version of that very name, else the one that the alias
// points to. A withdrawn one is found too. What it refers to is shared with other callers, and not to be changed. Errors: ErrNotFound, ErrUnavailable.
func (c *Catalog) Version(ctx context.Context, image, nameOrAlias string) (VersionRow, error) {
	version, err := kept.Get(c.kept, versionKey{image, nameOrAlias}, VersionRow.size, func() (VersionRow, error) {
		return one(ctx, c, scanVersion, versionStatement, image, nameOrAlias)
	})
	if err != nil {
		return VersionRow{}, explain(err, "read version %q of image %q", nameOrAlias, image)
	}
	return version, nil
}

type versionKey struct{ image, name string }

// size is roughly how many bytes a row takes: what is long in it are its files.
func (v VersionRow) size() int {
	size := 1024 + 512*(len(v.Derived)+len(v.Manifest.Attachments)) + 32*len(v.Aliases) + len(v.Manifest.Description)
	for _, variant := range v.Manifest.Variants {
		size += 512 * (1 + len(variant.Formats))
		for _, f := range variant.Formats {
			if f.Incus != nil {
				size += 4096 // properties and templates
			}
		}
	}
	return size
}

func scanVersion(row pgx.CollectableRow) (VersionRow, error) {
	var v VersionRow
	var w withdrawn
	err := row.Scan(&v.Image, &v.Version, &v.Visibility, &v.PublishedAt, &v.Sequence, &v.Aliases, &v.Manifest, &v.Derived, &w.at, &w.by, &w.reason, &v.ResolvedBy)
	v.PublishedAt, v.Withdrawn = v.PublishedAt.UTC(), w.withdrawal()
	if len(v.Derived) == 0 {
		v.Derived = nil
	}
	return v, err
}
