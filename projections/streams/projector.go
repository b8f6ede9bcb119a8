// Package streams derives from events what the simplestreams documents of Incus and LXD say: a [Projector] keeps it in tables, and a
// [View] makes the documents of them, anew only where something has changed. It knows nothing of HTTP; the rules of the clients
// are those of internal/incus/clientrules.
package streams

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/migrations"
)

// Name of the projection and of its schema.
const Name = "streams"

// Projector fills the tables of the schema streams.
type Projector struct{}

// New makes the projector.
func New() *Projector { return &Projector{} }

// Name is the projection's name.
func (*Projector) Name() string { return Name }

// Migrations make its tables.
func (*Projector) Migrations() fs.FS { return migrations.Streams() }

// Apply changes the tables in the order of the events. What it costs doesn't depend on how much is published.
func (*Projector) Apply(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	return change(ctx, tx, batch)
}

// touch tells readers that keep what they made of the tables (see [ReadRevision]) that these are others now.
const touch = `UPDATE position SET revision = txid_current()`

func change(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	changes := changes{shown: map[string]shown{}}
	for _, e := range batch {
		changed := Change{Sequence: e.Sequence, At: e.Time}
		switch fact := e.Fact.(type) {
		case events.VersionPublished:
			changes.publish(fact.Version, changed)
		case events.VersionWithdrawn:
			changes.withdraw(fact.Version, true, changed)
		case events.VersionRestored:
			changes.withdraw(fact.Version, false, changed)
		case events.ImageDescribed:
			changes.showImage(fact.Image, changed)
		case events.ImageVisibilityChanged:
			changes.showImage(fact.Image, changed)
		case events.AliasMoved:
			changes.moveAlias(fact.Alias, changed)
		case events.AliasRemoved:
			changes.moveAlias(fact.Alias, changed)
		case events.DerivedMade:
			changes.keepDelta(fact.Derived, changed)
		case events.DerivedRemoved:
			changes.keepDelta(fact.Derived, changed)
		}
	}
	changes.queueProducts()
	if changes.Len() == 0 {
		return nil
	}
	changes.Queue(touch)
	if err := tx.SendBatch(ctx, &changes.Batch).Close(); err != nil {
		return fmt.Errorf("apply publications to the simplestreams tables: %w", err)
	}
	return nil
}

// changes are the statements of a batch. Those of one table go in the order of the events.
type changes struct {
	pgx.Batch
	shown    map[string]shown // what the last statement about an image says of it
	products products
}

type shown struct {
	visibility  events.Visibility
	os, release string
	// publication: said by a version's fact, which knows the visibility of a new image only.
	publication bool
}

// products are rows, column by column.
type products struct {
	images, versions, architectures, types, flavours, fingerprints []string
	metaFormats, metaDigests, rootFormats, rootDigests             []string
	metaSizes, rootSizes                                           []int64
}

// A publication's second is taken if another version of its image has it, and then the next free one is used.
const insertVersion = `
INSERT INTO versions (image, version, os, release, published_at, sequence, release_title, codename, support_eol, supported, requirements, keyed_at)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, (
    SELECT second
    FROM (
        SELECT date_trunc('second', $5::timestamptz) + n * interval '1 second' AS second
        FROM generate_series(0, (
            SELECT count(*) FROM versions AS later
            WHERE later.image = $1 AND later.keyed_at >= date_trunc('second', $5::timestamptz)
        )) AS n
    ) AS seconds
    WHERE NOT EXISTS (SELECT FROM versions AS other WHERE other.image = $1 AND other.keyed_at = second)
    ORDER BY second
    LIMIT 1
)
ON CONFLICT (image, version) DO NOTHING`

const insertProducts = `
INSERT INTO products (image, version, architecture, type, flavour, fingerprint,
    metadata_format, metadata_sha256, metadata_size_bytes, root_format, root_sha256, root_size_bytes)
SELECT *
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
    $7::text[], $8::text[], $9::bigint[], $10::text[], $11::text[], $12::bigint[])
ON CONFLICT (image, version, architecture, type, flavour) DO NOTHING`

func (c *changes) publish(v events.Version, changed Change) {
	m := v.Manifest
	if m == nil {
		return // no rule makes such a fact
	}
	// The first publication sets its image's visibility. The image's own fact says so too, but it may come in the next batch, and
	// a private version must not be listed in between. Later ones say what they were decided on, and that may have changed since.
	c.show(shown{m.Visibility, m.OS, m.Release, true}, v.Image, changed)
	requirements := m.Requirements
	if requirements == nil {
		requirements = map[string]string{} // an empty object, not null
	}
	c.Queue(insertVersion, v.Image, v.Version, m.OS, m.Release, m.PublishedAt, int64(changed.Sequence),
		m.ReleaseTitle, m.Codename, m.SupportEOL, m.Supported, requirements)
	for _, variant := range m.Variants {
		metadata, root := files(variant)
		p := &c.products
		p.images, p.versions = append(p.images, v.Image), append(p.versions, v.Version)
		p.architectures, p.types = append(p.architectures, variant.Architecture), append(p.types, string(variant.Type))
		p.flavours, p.fingerprints = append(p.flavours, variant.Flavour), append(p.fingerprints, variant.Fingerprint)
		p.metaFormats, p.metaDigests, p.metaSizes = append(p.metaFormats, metadata.Format), append(p.metaDigests, metadata.SHA256), append(p.metaSizes, metadata.SizeBytes)
		p.rootFormats, p.rootDigests, p.rootSizes = append(p.rootFormats, root.Format), append(p.rootDigests, root.SHA256), append(p.rootSizes, root.SizeBytes)
	}
}

const updateWithdrawn = `
UPDATE versions SET withdrawn = $3, changed_sequence = $4, changed_at = $5
WHERE image = $1 AND version = $2 AND withdrawn <> $3`

func (c *changes) withdraw(v events.Version, withdrawn bool, changed Change) {
	c.Queue(updateWithdrawn, v.Image, v.Version, withdrawn, int64(changed.Sequence), changed.At)
}

func (c *changes) queueProducts() {
	if p := &c.products; len(p.images) > 0 {
		c.Queue(insertProducts, p.images, p.versions, p.architectures, p.types, p.flavours, p.fingerprints,
			p.metaFormats, p.metaDigests, p.metaSizes, p.rootFormats, p.rootDigests, p.rootSizes)
	}
}

// files finds the pair of files that the variant's fingerprint covers; both empty where it has none. Of a unified image it is the
// metadata alone.
func files(v events.ManifestVariant) (metadata, root File) {
	if v.Fingerprint == "" {
		return File{}, File{}
	}
	for _, f := range v.Formats {
		file := File{Format: f.Format, SHA256: f.Digest.Hex(), SizeBytes: f.Size}
		switch {
		case f.Format == v.Root:
			root = file
		case f.Format == v.Metadata, v.Metadata == "" && f.Format == events.FormatMetadata:
			metadata = file
		}
	}
	return metadata, root
}

// Silence about os and release keeps what was known; a publication ($7) keeps the visibility of an image that is there. The row counts as changed only if something differs that the public
// sees, or saw until now.
const upsertImage = `
INSERT INTO images AS old (name, visibility, os, release, changed_sequence, changed_at)
VALUES ($1, $2, $3, $4,
    CASE WHEN $2 = 'public' THEN $5::bigint ELSE 0 END,
    CASE WHEN $2 = 'public' THEN $6::timestamptz END)
ON CONFLICT (name) DO UPDATE SET
    visibility = CASE WHEN $7 THEN old.visibility ELSE excluded.visibility END,
    os = coalesce(nullif(excluded.os, ''), old.os),
    release = coalesce(nullif(excluded.release, ''), old.release),
    changed_sequence = CASE WHEN old.visibility = 'public' OR NOT $7 AND excluded.visibility = 'public' THEN $5 ELSE old.changed_sequence END,
    changed_at = CASE WHEN old.visibility = 'public' OR NOT $7 AND excluded.visibility = 'public' THEN $6 ELSE old.changed_at END
WHERE (old.visibility, old.os, old.release) IS DISTINCT FROM
    (CASE WHEN $7 THEN old.visibility ELSE excluded.visibility END, coalesce(nullif(excluded.os, ''), old.os), coalesce(nullif(excluded.release, ''), old.release))`

func (c *changes) showImage(i events.Image, changed Change) {
	c.show(shown{i.Visibility, i.OS, i.Release, false}, i.Name, changed)
}

func (c *changes) show(now shown, image string, changed Change) {
	if before, said := c.shown[image]; said && before == now {
		return // the statement would change nothing
	}
	c.shown[image] = now
	c.Queue(upsertImage, image, string(now.visibility), now.os, now.release, int64(changed.Sequence), changed.At, now.publication)
}

const upsertAlias = `
INSERT INTO aliases AS old (image, alias, version, changed_sequence, changed_at)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (image, alias) DO UPDATE SET
    version = excluded.version,
    changed_sequence = excluded.changed_sequence,
    changed_at = excluded.changed_at
WHERE old.version <> excluded.version`

func (c *changes) moveAlias(a events.Alias, changed Change) {
	c.Queue(upsertAlias, a.Image, a.Alias, a.Version, int64(changed.Sequence), changed.At)
}
