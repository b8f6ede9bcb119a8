package streams

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// rows are some of those that documents are made of, in any order.
type rows struct {
	products []Product // without deltas
	deltas   []deltaRow
	aliases  []Alias
	images   []Image
}

type deltaRow struct {
	image, version, variant string // variant: as events.Variant.Name has it
	Delta
}

// The rows that facts after $1 have changed; all of them after 0.
const selectProducts = `
SELECT p.image, p.version, p.architecture, p.type, p.flavour, p.fingerprint,
    p.metadata_format, p.metadata_sha256, p.metadata_size_bytes, p.root_format, p.root_sha256, p.root_size_bytes,
    v.os, v.release, v.release_title, v.codename, v.support_eol, v.supported, v.requirements, v.keyed_at, v.published_at, v.sequence,
    v.withdrawn, v.changed_sequence, v.changed_at
FROM ` + Name + `.versions AS v
JOIN ` + Name + `.products AS p ON v.image = p.image AND v.version = p.version
WHERE v.sequence > $1 OR v.changed_sequence > $1 AND v.changed_sequence > 0`

func scanProduct(row pgx.CollectableRow) (Product, error) {
	var p Product
	var changedAt *time.Time
	err := row.Scan(&p.Image, &p.Version, &p.Variant.Architecture, &p.Variant.Type, &p.Variant.Flavour, &p.Fingerprint,
		&p.Metadata.Format, &p.Metadata.SHA256, &p.Metadata.SizeBytes, &p.Root.Format, &p.Root.SHA256, &p.Root.SizeBytes,
		&p.OS, &p.Release, &p.Traits.ReleaseTitle, &p.Traits.Codename, &p.Traits.SupportEOL, &p.Traits.Supported, &p.Traits.Requirements, &p.KeyedAt, &p.Published.At, &p.Published.Sequence,
		&p.Withdrawn, &p.Changed.Sequence, &changedAt)
	if changedAt != nil {
		p.Changed.At = *changedAt
	}
	return p, err
}

const selectDeltas = `
SELECT image, version, variant, format, sha256, size_bytes, target_sha256, base_version, base_sha256, removed, changed_sequence, changed_at
FROM ` + Name + `.deltas
WHERE changed_sequence > $1`

func scanDelta(row pgx.CollectableRow) (d deltaRow, err error) {
	err = row.Scan(&d.image, &d.version, &d.variant, &d.File.Format, &d.File.SHA256, &d.File.SizeBytes, &d.TargetSHA256,
		&d.BaseVersion, &d.BaseSHA256, &d.Removed, &d.Changed.Sequence, &d.Changed.At)
	return d, err
}

const selectAliases = `SELECT image, alias, version, changed_sequence, changed_at FROM ` + Name + `.aliases WHERE changed_sequence > $1`

func scanAlias(row pgx.CollectableRow) (a Alias, err error) {
	err = row.Scan(&a.Image, &a.Alias, &a.Version, &a.Changed.Sequence, &a.Changed.At)
	return a, err
}

// What changed of a private image is not told by its row, which says what the public saw last.
const selectImages = `
SELECT name, visibility, os, release, changed_sequence, changed_at
FROM ` + Name + `.images
WHERE changed_sequence > $1 OR visibility <> 'public'`

func scanImage(row pgx.CollectableRow) (Image, error) {
	var i Image
	var changedAt *time.Time
	err := row.Scan(&i.Name, &i.Visibility, &i.OS, &i.Release, &i.Changed.Sequence, &changedAt)
	if changedAt != nil {
		i.Changed.At = *changedAt
	}
	return i, err
}

// loadRows reads what facts after a sequence have changed, in one round trip.
func loadRows(ctx context.Context, tx pgx.Tx, since events.Sequence) (rows, error) {
	var found rows
	batch := &pgx.Batch{}
	queue(batch, selectProducts, since, "products", &found.products, scanProduct)
	queue(batch, selectDeltas, since, "deltas", &found.deltas, scanDelta)
	queue(batch, selectAliases, since, "aliases", &found.aliases, scanAlias)
	queue(batch, selectImages, since, "images", &found.images, scanImage)
	return found, tx.SendBatch(ctx, batch).Close()
}

func queue[T any](batch *pgx.Batch, query string, since events.Sequence, what string, into *[]T, scan pgx.RowToFunc[T]) {
	batch.Queue(query, int64(since)).Query(func(found pgx.Rows) error {
		var err error
		if *into, err = pgx.CollectRows(found, scan); err != nil {
			return fmt.Errorf("read %s: %w", what, err)
		}
		return nil
	})
}
