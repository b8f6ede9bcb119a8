package streams

import (
	"cmp"
	"slices"

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
	base *listing
}

// listedDeltas picks, of a product's deltas, those from the newest bases that clients can apply: the base itself is listed, so
// that what is said of it is no secret and its bytes can be had.
func listedDeltas(p *listing, line *Line) []delta {
	if len(p.Deltas) == 0 {
		return nil
	}
	if kind := rootType(p.Product); kind != incus.FileSquashfs && kind != incus.FileDiskKVM {
		return nil // clients know no deltas of others
	}
	var usable []delta
	for _, d := range p.Deltas {
		base := line.sibling(p, d.BaseVersion)
		if d.Removed || base == nil || rootType(base.Product) != rootType(p.Product) || base.Root.SHA256 != d.BaseSHA256 || p.Root.SHA256 != d.TargetSHA256 ||
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

// siblingKey names a variant of an image in one of its versions.
type siblingKey struct {
	version string
	variant events.Variant
}

// sibling is the same variant in another version, if clients are told of it; else nil.
func (l *Line) sibling(of *listing, version string) *listing {
	return l.siblings[siblingKey{version, of.Variant}]
}

// findSiblings makes what sibling looks in, where there is a delta.
func (l *Line) findSiblings() {
	l.siblings = nil
	if !slices.ContainsFunc(l.products, func(p *listing) bool { return len(p.Deltas) > 0 }) {
		return
	}
	l.siblings = make(map[siblingKey]*listing, len(l.products))
	for _, p := range l.products {
		if p.shown() {
			l.siblings[siblingKey{p.Version, p.Variant}] = p
		}
	}
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

		meta := item(d.base.Product, d.base.Metadata)
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
