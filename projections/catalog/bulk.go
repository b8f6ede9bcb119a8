package catalog

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// Kinds implements projections.Bulk.
func (Projector) Kinds() []string {
	return []string{events.KindVersion, events.KindImage, events.KindAlias, events.KindDerived}
}

// LastOnly implements projections.Bulk: an image keeps the time of its first fact.
func (Projector) LastOnly() bool { return false }

// Load implements projections.Bulk: the rows that the batch replaces are removed, and all go in by COPY.
func (Projector) Load(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	c, err := fold(batch)
	if err != nil {
		return err
	}
	if err := c.loadImages(ctx, tx); err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	if err := c.loadVersions(ctx, tx); err != nil {
		return fmt.Errorf("load versions: %w", err)
	}
	if len(c.withdrawals) > 0 {
		if _, err := tx.Exec(ctx, updateWithdrawals, c.withdrawn()...); err != nil {
			return fmt.Errorf("load withdrawals: %w", err)
		}
	}
	if err := c.loadAliases(ctx, tx); err != nil {
		return fmt.Errorf("load aliases: %w", err)
	}
	if err := c.loadDerived(ctx, tx); err != nil {
		return fmt.Errorf("load derived files: %w", err)
	}
	return nil
}

func (c *changes) loadImages(ctx context.Context, tx pgx.Tx) error {
	if len(c.images) == 0 {
		return nil
	}
	names := slices.Sorted(maps.Keys(c.images))
	replaced, err := tx.Query(ctx, `DELETE FROM images WHERE name = ANY($1) RETURNING name, created_at`, names)
	if err != nil {
		return err
	}
	var name string
	var createdAt time.Time
	if _, err := pgx.ForEachRow(replaced, []any{&name, &createdAt}, func() error {
		row := c.images[name]
		row.createdAt = createdAt
		c.images[name] = row
		return nil
	}); err != nil {
		return err
	}
	_, err = tx.CopyFrom(ctx, pgx.Identifier{"images"},
		[]string{"name", "os", "release", "description", "visibility", "flavours", "created_at", "updated_at", "sequence"},
		pgx.CopyFromSlice(len(names), func(n int) ([]any, error) {
			i := c.images[names[n]]
			flavours := i.Flavours
			if flavours == nil {
				flavours = []string{} // nil would be NULL
			}
			return []any{i.Name, i.OS, i.Release, i.Description, string(i.Visibility), flavours, i.createdAt, i.updatedAt, int64(i.sequence)}, nil
		}))
	return err
}

// Formats of a version that are not in its new manifest stay, as with Apply: a published manifest never changes.
const deleteFormats = `
DELETE FROM formats f
USING unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS r (image, version, variant, format)
WHERE f.image = r.image AND f.version = r.version AND f.variant = r.variant AND f.format = r.format`

const deleteVersions = `
DELETE FROM versions v
USING unnest($1::text[], $2::text[]) AS r (image, version)
WHERE v.image = r.image AND v.version = r.version`

func (c *changes) loadVersions(ctx context.Context, tx pgx.Tx) error {
	if len(c.versions) == 0 {
		return nil
	}
	var rows, formats [][]any
	var images, versions, fImages, fVersions, fVariants, fFormats []string
	for _, k := range sortedKeys(c.versions) {
		v := c.versions[k]
		images, versions = append(images, k.image), append(versions, k.name)
		rows = append(rows, []any{k.image, k.name, v.PublishedAt, v.PublishedBy, v.UploadID, v.JobID, int64(v.sequence), v.encoded})
		for _, variant := range v.Variants {
			for _, f := range variant.Formats {
				formats = append(formats, []any{k.image, k.name, variant.Name(), f.Format, string(f.Digest), f.Size, f.MediaType})
				fImages, fVersions = append(fImages, k.image), append(fVersions, k.name)
				fVariants, fFormats = append(fVariants, variant.Name()), append(fFormats, f.Format)
			}
		}
	}
	// A version is published once; where one comes again, so do its formats.
	tag, err := tx.Exec(ctx, deleteVersions, images, versions)
	if err != nil {
		return err
	}
	if tag.RowsAffected() > 0 {
		if _, err := tx.Exec(ctx, deleteFormats, fImages, fVersions, fVariants, fFormats); err != nil {
			return err
		}
	}
	if _, err := tx.CopyFrom(ctx, pgx.Identifier{"versions"},
		[]string{"image", "version", "published_at", "published_by", "upload_id", "job_id", "sequence", "manifest"}, pgx.CopyFromRows(rows)); err != nil {
		return err
	}
	if _, err = tx.CopyFrom(ctx, pgx.Identifier{"formats"},
		[]string{"image", "version", "variant", "format", "digest", "size_bytes", "media_type"}, pgx.CopyFromRows(formats)); err != nil {
		return err
	}
	return c.loadAttachments(ctx, tx, tag.RowsAffected() > 0)
}

func (c *changes) loadAliases(ctx context.Context, tx pgx.Tx) error {
	if len(c.aliases) == 0 {
		return nil
	}
	var images, aliases []string
	var rows [][]any
	for _, k := range sortedKeys(c.aliases) {
		images, aliases = append(images, k.image), append(aliases, k.name)
		if a := c.aliases[k]; a.version != "" {
			rows = append(rows, []any{k.image, k.name, a.version, a.movedAt, int64(a.sequence)})
		}
	}
	if _, err := tx.Exec(ctx, deleteAliases, images, aliases); err != nil {
		return err
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"aliases"}, []string{"image", "alias", "version", "moved_at", "sequence"}, pgx.CopyFromRows(rows))
	return err
}
