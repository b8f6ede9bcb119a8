package catalog

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// Image is an image that has at least one published version.
type Image struct {
	Name        string
	OS          string
	Release     string
	Description string
	Visibility  events.Visibility
	Flavours    []string // of all its versions, sorted
	CreatedAt   time.Time
	UpdatedAt   time.Time // when it was described last
	Versions    int       // how many are published
	// Latest is the version published last, whatever its name and wherever the alias latest points.
	Latest   string
	LatestAt time.Time
	Aliases  []Alias // sorted by name
}

// Alias is a movable name of a version.
type Alias struct {
	Name    string
	Version string
	MovedAt time.Time
}

// ImageFilter says which images a list has.
type ImageFilter struct {
	Readable Readable // the private images among them
	After    string   // name of the last image of the page before; "" for the first page
	Limit    int      // 0 means DefaultLimit
}

const imageColumns = `
SELECT i.name, i.os, i.release, i.description, i.visibility, i.flavours, i.created_at, i.updated_at,
    (SELECT count(*) FROM catalog.versions c WHERE c.image = i.name) AS versions,
    latest.version, latest.published_at,
    coalesce(named.aliases, '{}'), coalesce(named.versions, '{}'), coalesce(named.moved_at, '{}')
FROM catalog.images i
CROSS JOIN LATERAL (
    SELECT v.version, v.published_at FROM catalog.versions v
    WHERE v.image = i.name ORDER BY v.published_at DESC, v.sequence DESC LIMIT 1
) AS latest
CROSS JOIN LATERAL (
    SELECT array_agg(a.alias ORDER BY a.alias) AS aliases, array_agg(a.version ORDER BY a.alias) AS versions,
        array_agg(a.moved_at ORDER BY a.alias) AS moved_at
    FROM catalog.aliases a WHERE a.image = i.name
) AS named`

var imagesStatement = imageColumns + `
WHERE i.name > $1 AND ` + visible + `
ORDER BY i.name
LIMIT $4`

const imageStatement = imageColumns + `
WHERE i.name = $1`

// Images lists images by name. The cursor is plain: next is the After of the following page, the name of
// this page's last image, and "" at the end. Any After is fine, also a name that is no image's. Errors:
// ErrUnavailable.
func (c *Catalog) Images(ctx context.Context, f ImageFilter) (images []Image, next string, err error) {
	limit := pageSize(f.Limit)
	outer, inner := f.Readable.args()
	images, more, err := list(ctx, c, limit, scanImage, imagesStatement, f.After, outer, inner, limit+1)
	if err != nil {
		return nil, "", explain(err, "list images")
	}
	if more {
		next = images[len(images)-1].Name
	}
	return images, next, nil
}

// Image reads an image, public or private. Errors: ErrNotFound, ErrUnavailable.
func (c *Catalog) Image(ctx context.Context, name string) (Image, error) {
	image, err := one(ctx, c, scanImage, imageStatement, name)
	if err != nil {
		return Image{}, explain(err, "read image %q", name)
	}
	return image, nil
}

func scanImage(row pgx.CollectableRow) (Image, error) {
	var i Image
	var aliases, versions []string
	var moved []time.Time
	err := row.Scan(&i.Name, &i.OS, &i.Release, &i.Description, &i.Visibility, &i.Flavours, &i.CreatedAt, &i.UpdatedAt,
		&i.Versions, &i.Latest, &i.LatestAt, &aliases, &versions, &moved)
	if err != nil {
		return Image{}, err
	}
	i.CreatedAt, i.UpdatedAt, i.LatestAt = i.CreatedAt.UTC(), i.UpdatedAt.UTC(), i.LatestAt.UTC()
	for k, name := range aliases {
		i.Aliases = append(i.Aliases, Alias{Name: name, Version: versions[k], MovedAt: moved[k].UTC()})
	}
	return i, nil
}
