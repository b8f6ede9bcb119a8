// Package catalog derives the tables of published images from events: images, versions, formats, attachments,
// derived files and aliases. It exists for store/catalog to read. It must not know positions, locks or transactions, which
// are the runner's, nor who asks for the rows.
package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/migrations"
)

// Name of the projection and of its schema. Renaming it replays the whole log into a new schema.
const Name = "catalog"

// Projector is the catalog's projector.
type Projector struct{}

// New makes the projector.
func New() Projector { return Projector{} }

// Name is [Name].
func (Projector) Name() string { return Name }

// Migrations are the catalog's tables.
func (Projector) Migrations() fs.FS { return migrations.Catalog() }

// Apply implements projections.Projector. Each fact carries the whole state of its entity, so of several
// facts of one entity in a batch only the last makes rows; an image keeps the time of its first.
func (Projector) Apply(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	c, err := fold(batch)
	if err != nil {
		return err
	}
	return c.write(ctx, tx)
}

// fold is the rows that a batch leaves behind.
func fold(batch []events.Event) (changes, error) {
	c := changes{images: map[string]image{}, versions: map[key]version{}, aliases: map[key]alias{}, derived: map[derivedKey]derived{},
		withdrawals: map[key]*events.Withdrawal{}}
	for _, event := range batch {
		switch fact := event.Fact.(type) {
		case events.ImageDescribed:
			c.describe(event, fact.Image)
		case events.ImageVisibilityChanged:
			c.describe(event, fact.Image)
		case events.VersionPublished:
			if err := c.publish(event, fact.Version); err != nil {
				return c, err
			}
		case events.DerivedFact:
			if err := c.derive(event, fact.After()); err != nil {
				return c, err
			}
		case events.VersionWithdrawn:
			c.withdrawals[key{fact.Image, fact.Version.Version}] = fact.Withdrawal
		case events.VersionRestored:
			c.withdrawals[key{fact.Image, fact.Version.Version}] = nil
		case events.AliasMoved:
			c.aliases[key{fact.Image, fact.Alias.Alias}] = alias{version: fact.Version, movedAt: event.Time, sequence: event.Sequence}
		case events.AliasRemoved:
			c.aliases[key{fact.Image, fact.Alias.Alias}] = alias{}
		}
	}
	return c, nil
}

// key is a name within an image.
type key struct{ image, name string }

func (c *changes) describe(event events.Event, img events.Image) {
	row, seen := c.images[img.Name]
	if !seen {
		row.createdAt = event.Time
	}
	row.Image, row.updatedAt, row.sequence = img, event.Time, event.Sequence
	c.images[img.Name] = row
}

func (c *changes) publish(event events.Event, v events.Version) error {
	if v.Manifest == nil {
		return fmt.Errorf("version %s of image %s is published without a manifest", v.Version, v.Image)
	}
	manifest, err := json.Marshal(v.Manifest)
	if err != nil {
		return fmt.Errorf("encode the manifest of version %s of image %s: %w", v.Version, v.Image, err)
	}
	c.versions[key{v.Image, v.Version}] = version{Manifest: v.Manifest, encoded: string(manifest), sequence: event.Sequence}
	return nil
}
