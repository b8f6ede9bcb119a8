package streams

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/internal/incus"
)

const selectProducts = `
SELECT p.image, p.version, p.architecture, p.type, p.flavour, p.fingerprint,
    p.metadata_format, p.metadata_sha256, p.metadata_size_bytes, p.root_format, p.root_sha256, p.root_size_bytes,
    v.os, v.release, v.release_title, v.codename, v.support_eol, v.supported, v.requirements, v.keyed_at, v.published_at, v.sequence,
    v.withdrawn, v.changed_sequence, v.changed_at
FROM products AS p
JOIN versions AS v ON v.image = p.image AND v.version = p.version
ORDER BY v.sequence, p.architecture, p.type, p.flavour`

func loadProducts(ctx context.Context, tx pgx.Tx) ([]Product, error) {
	rows, err := tx.Query(ctx, selectProducts)
	if err != nil {
		return nil, err
	}
	products, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Product, error) {
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
	})
	if err != nil {
		return nil, err
	}
	return products, loadDeltas(ctx, tx, products)
}

const selectAliases = `SELECT image, alias, version, changed_sequence, changed_at FROM aliases ORDER BY image, alias`

func loadAliases(ctx context.Context, tx pgx.Tx) ([]Alias, error) {
	rows, err := tx.Query(ctx, selectAliases)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Alias, error) {
		var a Alias
		err := row.Scan(&a.Image, &a.Alias, &a.Version, &a.Changed.Sequence, &a.Changed.At)
		return a, err
	})
}

const selectImages = `SELECT name, visibility, os, release, changed_sequence, changed_at FROM images ORDER BY name`

func loadImages(ctx context.Context, tx pgx.Tx) ([]Image, error) {
	rows, err := tx.Query(ctx, selectImages)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (Image, error) {
		var i Image
		var changedAt *time.Time
		err := row.Scan(&i.Name, &i.Visibility, &i.OS, &i.Release, &i.Changed.Sequence, &changedAt)
		if changedAt != nil {
			i.Changed.At = *changedAt
		}
		return i, err
	})
}

const upsertDocument = `
INSERT INTO documents AS old (path, body, etag, sequence, updated_at)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (path) DO UPDATE SET
    body = excluded.body, etag = excluded.etag, sequence = excluded.sequence, updated_at = excluded.updated_at
WHERE (old.etag, old.sequence) <> (excluded.etag, excluded.sequence)`

// store keeps the documents, each with the SHA-256 of its bytes as entity tag (hex, without the quotes of HTTP).
func store(ctx context.Context, tx pgx.Tx, set Set) error {
	var updatedAt *time.Time
	if set.Changed.Sequence > 0 {
		updatedAt = &set.Changed.At
	}
	for _, document := range []struct {
		path string
		body []byte
	}{{incus.IndexPath, set.Index}, {incus.ImagesPath, set.Images}} {
		sum := sha256.Sum256(document.body)
		if _, err := tx.Exec(ctx, upsertDocument, document.path, document.body, hex.EncodeToString(sum[:]), int64(set.Changed.Sequence), updatedAt); err != nil {
			return fmt.Errorf("store %s: %w", document.path, err)
		}
	}
	return nil
}
