package catalog

import (
	"context"

	"github.com/jackc/pgx/v5"
)

const (
	upsertAttachments = `
INSERT INTO attachments (image, version, name, digest, size_bytes, media_type)
SELECT r.image, r.version, r.name, r.digest, r.size_bytes, r.media_type
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[])
    AS r (image, version, name, digest, size_bytes, media_type)
ON CONFLICT (image, version, name) DO UPDATE SET digest = excluded.digest, size_bytes = excluded.size_bytes, media_type = excluded.media_type`

	// As with formats, what isn't in a new manifest stays.
	deleteAttachments = `
DELETE FROM attachments a
USING unnest($1::text[], $2::text[], $3::text[]) AS r (image, version, name)
WHERE a.image = r.image AND a.version = r.version AND a.name = r.name`
)

// attachments are rows as parallel arrays.
type attachments struct {
	images, versions, names, digests, media []string
	sizes                                   []int64
}

func (c *changes) attachments() attachments {
	var rows attachments
	for _, k := range sortedKeys(c.versions) {
		for _, a := range c.versions[k].Attachments {
			rows.images, rows.versions, rows.names = append(rows.images, k.image), append(rows.versions, k.name), append(rows.names, a.Name)
			rows.digests, rows.sizes, rows.media = append(rows.digests, string(a.Digest)), append(rows.sizes, a.Size), append(rows.media, a.MediaType)
		}
	}
	return rows
}

func (c *changes) queueAttachments(statements *pgx.Batch) {
	if rows := c.attachments(); len(rows.names) > 0 {
		statements.Queue(upsertAttachments, rows.images, rows.versions, rows.names, rows.digests, rows.sizes, rows.media)
	}
}

// loadAttachments loads the attachments of the batch's versions. Where replaced, some of them may be there.
func (c *changes) loadAttachments(ctx context.Context, tx pgx.Tx, replaced bool) error {
	rows := c.attachments()
	if len(rows.names) == 0 {
		return nil
	}
	if replaced {
		if _, err := tx.Exec(ctx, deleteAttachments, rows.images, rows.versions, rows.names); err != nil {
			return err
		}
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"attachments"}, []string{"image", "version", "name", "digest", "size_bytes", "media_type"},
		pgx.CopyFromSlice(len(rows.names), func(n int) ([]any, error) {
			return []any{rows.images[n], rows.versions[n], rows.names[n], rows.digests[n], rows.sizes[n], rows.media[n]}, nil
		}))
	return err
}
