package catalog

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

const (
	upsertDerived = `
INSERT INTO derived (image, version, variant, format, state, digest, size_bytes, media_type, made_at, sequence, derived)
SELECT r.image, r.version, r.variant, r.format, r.state, r.digest, r.size_bytes, r.media_type, r.made_at, r.sequence, r.derived::jsonb
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::timestamptz[], $10::bigint[], $11::text[])
    AS r (image, version, variant, format, state, digest, size_bytes, media_type, made_at, sequence, derived)
ON CONFLICT (image, version, variant, format) DO UPDATE SET state = excluded.state, digest = excluded.digest, size_bytes = excluded.size_bytes,
    media_type = excluded.media_type, made_at = excluded.made_at, sequence = excluded.sequence, derived = excluded.derived`

	deleteDerived = `
DELETE FROM derived d
USING unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS r (image, version, variant, format)
WHERE d.image = r.image AND d.version = r.version AND d.variant = r.variant AND d.format = r.format`
)

// derived is the row of a derived file; one that was removed has none.
type derived struct {
	events.Derived
	encoded  string
	sequence events.Sequence
}

type derivedKey struct{ image, version, variant, format string }

func (c *changes) derive(event events.Event, d events.Derived) error {
	d = d.Plain() // as the rules leave it, but a log may have come from elsewhere
	encoded, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode the derived file %s: %w", d.Entity().ID, err)
	}
	c.derived[derivedKey{d.Image, d.Version, d.Variant, d.Format}] = derived{Derived: d, encoded: string(encoded), sequence: event.Sequence}
	return nil
}

// derivedRows are rows as parallel arrays.
type derivedRows struct {
	images, versions, variants, formats, states, digests, media, encoded []string
	sizes, sequences                                                     []int64
	made                                                                 []*time.Time
}

func (r *derivedRows) add(d derived) {
	r.images, r.versions = append(r.images, d.Image), append(r.versions, d.Version)
	r.variants, r.formats = append(r.variants, d.Variant), append(r.formats, d.Format)
	r.states, r.digests = append(r.states, string(d.State)), append(r.digests, string(d.Digest))
	r.media, r.encoded = append(r.media, d.MediaType), append(r.encoded, d.encoded)
	r.sizes, r.sequences = append(r.sizes, d.Size), append(r.sequences, int64(d.sequence))
	var made *time.Time
	if !d.MadeAt.IsZero() {
		made = &d.MadeAt
	}
	r.made = append(r.made, made)
}

// derivedChanges are the rows that are there after the batch, and the names of those that aren't any more.
func (c *changes) derivedChanges() (rows, gone derivedRows) {
	keys := slices.SortedFunc(maps.Keys(c.derived), func(a, b derivedKey) int {
		return cmp.Or(cmp.Compare(a.image, b.image), cmp.Compare(a.version, b.version), cmp.Compare(a.variant, b.variant), cmp.Compare(a.format, b.format))
	})
	for _, k := range keys {
		if d := c.derived[k]; d.State == events.DerivedIsRemoved {
			gone.add(d)
		} else {
			rows.add(d)
		}
	}
	return rows, gone
}

func (c *changes) queueDerived(statements *pgx.Batch) {
	rows, gone := c.derivedChanges()
	if len(rows.images) > 0 {
		statements.Queue(upsertDerived, rows.images, rows.versions, rows.variants, rows.formats, rows.states, rows.digests, rows.sizes, rows.media, rows.made, rows.sequences, rows.encoded)
	}
	if len(gone.images) > 0 {
		statements.Queue(deleteDerived, gone.images, gone.versions, gone.variants, gone.formats)
	}
}

func (c *changes) loadDerived(ctx context.Context, tx pgx.Tx) error {
	if len(c.derived) == 0 {
		return nil
	}
	rows, gone := c.derivedChanges()
	for _, r := range []derivedRows{rows, gone} {
		if _, err := tx.Exec(ctx, deleteDerived, r.images, r.versions, r.variants, r.formats); err != nil {
			return err
		}
	}
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"derived"},
		[]string{"image", "version", "variant", "format", "state", "digest", "size_bytes", "media_type", "made_at", "sequence", "derived"},
		pgx.CopyFromSlice(len(rows.images), func(n int) ([]any, error) {
			return []any{rows.images[n], rows.versions[n], rows.variants[n], rows.formats[n], rows.states[n], rows.digests[n], rows.sizes[n], rows.media[n],
				rows.made[n], rows.sequences[n], rows.encoded[n]}, nil
		}))
	return err
}
