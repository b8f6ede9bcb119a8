package catalog

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// changes are the rows that a batch leaves behind.
type changes struct {
	images   map[string]image
	versions map[key]version
	aliases  map[key]alias
	derived  map[derivedKey]derived
}

type image struct {
	events.Image
	createdAt, updatedAt time.Time
	sequence             events.Sequence
}

type version struct {
	*events.Manifest
	encoded  string
	sequence events.Sequence
}

// alias of no version is one that was removed.
type alias struct {
	version  string
	movedAt  time.Time
	sequence events.Sequence
}

// One statement per table and batch, its rows as parallel arrays.
// An image's flavours, an array themselves, make it the exception.
const (
	upsertImage = `
INSERT INTO images (name, os, release, description, visibility, flavours, created_at, updated_at, sequence)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (name) DO UPDATE SET os = excluded.os, release = excluded.release, description = excluded.description,
    visibility = excluded.visibility, flavours = excluded.flavours, updated_at = excluded.updated_at, sequence = excluded.sequence`

	upsertVersions = `
INSERT INTO versions (image, version, published_at, published_by, upload_id, job_id, sequence, manifest)
SELECT r.image, r.version, r.published_at, r.published_by, r.upload_id, r.job_id, r.sequence, r.manifest::jsonb
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[])
    AS r (image, version, published_at, published_by, upload_id, job_id, sequence, manifest)
ON CONFLICT (image, version) DO UPDATE SET published_at = excluded.published_at, published_by = excluded.published_by,
    upload_id = excluded.upload_id, job_id = excluded.job_id, sequence = excluded.sequence, manifest = excluded.manifest`

	upsertFormats = `
INSERT INTO formats (image, version, variant, format, digest, size_bytes, media_type)
SELECT r.image, r.version, r.variant, r.format, r.digest, r.size_bytes, r.media_type
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[])
    AS r (image, version, variant, format, digest, size_bytes, media_type)
ON CONFLICT (image, version, variant, format) DO UPDATE SET digest = excluded.digest, size_bytes = excluded.size_bytes,
    media_type = excluded.media_type`

	upsertAliases = `
INSERT INTO aliases (image, alias, version, moved_at, sequence)
SELECT r.image, r.alias, r.version, r.moved_at, r.sequence
FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::bigint[]) AS r (image, alias, version, moved_at, sequence)
ON CONFLICT (image, alias) DO UPDATE SET version = excluded.version, moved_at = excluded.moved_at, sequence = excluded.sequence`

	deleteAliases = `
DELETE FROM aliases a
USING unnest($1::text[], $2::text[]) AS r (image, alias)
WHERE a.image = r.image AND a.alias = r.alias`
)

// write sends all statements in one round trip. Rows go in the order of their keys, whatever Go's maps say.
func (c *changes) write(ctx context.Context, tx pgx.Tx) error {
	var statements pgx.Batch
	c.queueImages(&statements)
	c.queueVersions(&statements)
	c.queueAliases(&statements)
	c.queueDerived(&statements)
	if statements.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, &statements).Close(); err != nil {
		return fmt.Errorf("write the catalog: %w", err)
	}
	return nil
}

func (c *changes) queueImages(statements *pgx.Batch) {
	for _, name := range slices.Sorted(maps.Keys(c.images)) {
		i := c.images[name]
		flavours := i.Flavours
		if flavours == nil {
			flavours = []string{} // nil would be NULL
		}
		statements.Queue(upsertImage, i.Name, i.OS, i.Release, i.Description, string(i.Visibility), flavours, i.createdAt, i.updatedAt, int64(i.sequence))
	}
}

func (c *changes) queueVersions(statements *pgx.Batch) {
	if len(c.versions) == 0 {
		return
	}
	var (
		images, versions, by, uploads, jobs, manifests        []string
		at                                                    []time.Time
		sequences                                             []int64
		fImages, fVersions, variants, formats, digests, media []string
		sizes                                                 []int64
	)
	for _, k := range sortedKeys(c.versions) {
		v := c.versions[k]
		images, versions = append(images, k.image), append(versions, k.name)
		at, by = append(at, v.PublishedAt), append(by, v.PublishedBy)
		uploads, jobs = append(uploads, v.UploadID), append(jobs, v.JobID)
		sequences, manifests = append(sequences, int64(v.sequence)), append(manifests, v.encoded)
		for _, variant := range v.Variants {
			for _, f := range variant.Formats {
				fImages, fVersions = append(fImages, k.image), append(fVersions, k.name)
				variants, formats = append(variants, variant.Name()), append(formats, f.Format)
				digests, sizes, media = append(digests, string(f.Digest)), append(sizes, f.Size), append(media, f.MediaType)
			}
		}
	}
	statements.Queue(upsertVersions, images, versions, at, by, uploads, jobs, sequences, manifests)
	if len(formats) > 0 {
		statements.Queue(upsertFormats, fImages, fVersions, variants, formats, digests, sizes, media)
	}
	c.queueAttachments(statements)
}

func (c *changes) queueAliases(statements *pgx.Batch) {
	var (
		images, aliases, versions []string
		at                        []time.Time
		sequences                 []int64
		goneImages, gone          []string
	)
	for _, k := range sortedKeys(c.aliases) {
		a := c.aliases[k]
		if a.version == "" {
			goneImages, gone = append(goneImages, k.image), append(gone, k.name)
			continue
		}
		images, aliases, versions = append(images, k.image), append(aliases, k.name), append(versions, a.version)
		at, sequences = append(at, a.movedAt), append(sequences, int64(a.sequence))
	}
	if len(aliases) > 0 {
		statements.Queue(upsertAliases, images, aliases, versions, at, sequences)
	}
	if len(gone) > 0 {
		statements.Queue(deleteAliases, goneImages, gone)
	}
}

func sortedKeys[V any](m map[key]V) []key {
	return slices.SortedFunc(maps.Keys(m), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.image, b.image), cmp.Compare(a.name, b.name))
	})
}
