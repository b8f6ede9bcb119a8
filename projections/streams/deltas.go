package streams

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// Delta turns the root of an earlier version, of the same image and variant, into its product's.
type Delta struct {
	File         File
	TargetSHA256 string // of the product's root
	BaseVersion  string
	BaseSHA256   string // of that version's root
	Removed      bool
	Changed      Change
}

// maxListedDeltas is how many deltas of a product are listed, of all that there are. A client applies each delta whose base it has,
// one after the other into one file, and then finds that the file isn't the image (lxc/incus client/simplestreams_images.go,
// GetImageFile; LXD 5.0.2 too): with two of them listed, a host that keeps both bases could not fetch the image at all.
const maxListedDeltas = 1

// delta is one that is listed, with the product that it starts from.
type delta struct {
	Delta
	base Product
}

// sibling names a variant of an image in one of its versions.
type sibling struct {
	image, version string
	variant        events.Variant
}

func siblings(listed []Product) map[sibling]Product {
	found := make(map[sibling]Product, len(listed))
	for _, p := range listed {
		found[sibling{p.Image, p.Version, p.Variant}] = p
	}
	return found
}

// listedDeltas picks, of a product's deltas, those from the newest bases that clients can apply: the base itself is listed, so
// that what is said of it is no secret and its bytes can be had.
func listedDeltas(p Product, others map[sibling]Product) []delta {
	if kind := rootType(p); kind != incus.FileSquashfs && kind != incus.FileDiskKVM {
		return nil // clients know no deltas of others
	}
	var usable []delta
	for _, d := range p.Deltas {
		base, shown := others[sibling{p.Image, d.BaseVersion, p.Variant}]
		if d.Removed || !shown || rootType(base) != rootType(p) || base.Root.SHA256 != d.BaseSHA256 || p.Root.SHA256 != d.TargetSHA256 ||
			base.Fingerprint == p.Fingerprint || incus.VersionKey(base.KeyedAt) == incus.VersionKey(p.KeyedAt) {
			continue
		}
		usable = append(usable, delta{d, base})
	}
	slices.SortFunc(usable, func(a, b delta) int {
		return cmp.Or(cmp.Compare(b.base.Published.Sequence, a.base.Published.Sequence), cmp.Compare(a.File.SizeBytes, b.File.SizeBytes),
			cmp.Compare(a.File.Format, b.File.Format))
	})
	return usable[:min(len(usable), maxListedDeltas)]
}

// addDeltas puts deltas into a product that is otherwise ready, each with a version for its base: clients look the base up among
// the product's own versions, and take its fingerprint from the field that is for squashfs, whatever its root is
// (lxc/incus shared/simplestreams/products.go, ToAPI). Without a root file such a version makes no image.
func addDeltas(product incus.Product, p Product, deltas []delta) {
	for _, d := range deltas {
		base := incus.VersionKey(d.base.KeyedAt)
		it := item(p, d.File)
		it.FileType, it.DeltaBase = rootType(p)+".vcdiff", base
		product.Versions[incus.VersionKey(p.KeyedAt)].Items[it.FileType] = it

		meta := item(d.base, d.base.Metadata)
		meta.CombinedSquashfsSHA256 = d.base.Fingerprint
		forLXD := meta
		meta.FileType, forLXD.FileType = incus.FileIncusMetadata, incus.FileLXDMetadata
		product.Versions[base] = incus.Version{Items: map[string]incus.Item{meta.FileType: meta, forLXD.FileType: forLXD}}
	}
}

const upsertDelta = `
INSERT INTO deltas (image, version, variant, format, sha256, size_bytes, target_sha256, base_version, base_sha256, removed, changed_sequence, changed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
ON CONFLICT (image, version, variant, format) DO UPDATE SET
    sha256 = excluded.sha256, size_bytes = excluded.size_bytes, target_sha256 = excluded.target_sha256,
    base_version = excluded.base_version, base_sha256 = excluded.base_sha256, removed = excluded.removed,
    changed_sequence = excluded.changed_sequence, changed_at = excluded.changed_at`

// keepDelta passes over what else is derived, and over the removal of what never was made.
func (c *changes) keepDelta(d events.Derived, changed Change) {
	if d.Kind != events.DerivedDelta || d.Digest == "" || d.From == nil {
		return
	}
	c.Queue(upsertDelta, d.Image, d.Version, d.Variant, d.Format, d.Digest.Hex(), d.Size, d.From.Digest.Hex(), d.BaseVersion, d.BaseDigest.Hex(),
		d.State != events.DerivedIsMade, int64(changed.Sequence), changed.At)
}

const selectDeltas = `
SELECT image, version, variant, format, sha256, size_bytes, target_sha256, base_version, base_sha256, removed, changed_sequence, changed_at
FROM deltas
ORDER BY image, version, variant, format`

// loadDeltas gives each product its deltas.
func loadDeltas(ctx context.Context, tx pgx.Tx, products []Product) error {
	rows, err := tx.Query(ctx, selectDeltas)
	if err != nil {
		return err
	}
	type place struct{ image, version, variant string }
	found := map[place][]Delta{}
	var at place
	var d Delta
	var changedAt time.Time
	_, err = pgx.ForEachRow(rows, []any{&at.image, &at.version, &at.variant, &d.File.Format, &d.File.SHA256, &d.File.SizeBytes, &d.TargetSHA256,
		&d.BaseVersion, &d.BaseSHA256, &d.Removed, &d.Changed.Sequence, &changedAt}, func() error {
		d.Changed.At = changedAt
		found[at] = append(found[at], d)
		return nil
	})
	if err != nil {
		return err
	}
	for i, p := range products {
		products[i].Deltas = found[place{p.Image, p.Version, p.Variant.Name()}]
	}
	return nil
}
