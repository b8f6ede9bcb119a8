package deltas

import (
	"cmp"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// planned is one delta that may be worth making.
type planned struct {
	image, version string
	variant        string // its name, as the target's manifest has it
	format         string // the delta's name below the target
	target, base   root
}

// root is the file that an instance of a variant starts from.
type root struct {
	version     string
	fingerprint string // of the image that it is the root of
	format      string
	digest      events.Digest
	size        int64 // bytes
}

// newestFirst are the versions that are published.
func newestFirst(versions []events.Current[events.Version]) []events.Manifest {
	var published []events.Manifest
	for _, v := range versions {
		if v.State.State == events.StatePublished && v.State.Manifest != nil {
			published = append(published, *v.State.Manifest)
		}
	}
	slices.SortFunc(published, func(a, b events.Manifest) int {
		return cmp.Or(b.PublishedAt.Compare(a.PublishedAt), cmp.Compare(b.Version, a.Version))
	})
	return published
}

// plan chooses, for each root of a version, the roots of the last n others before it, of the same image, variant and form. Published is
// sorted, the newest first. A version that isn't published any more, or is old by now, gets none. A root of the very same bytes is a
// base as well, where the metadata differs: to clients it is another image, and the delta is next to nothing.
func plan(m events.Manifest, published []events.Manifest, n int) []planned {
	at := slices.IndexFunc(published, func(p events.Manifest) bool { return p.Version == m.Version })
	if at < 0 || at > maxNewer {
		return nil
	}
	var out []planned
	for _, v := range m.Variants {
		target, kind, ok := rootOf(m, v)
		if !ok {
			continue
		}
		found := 0
		seen := map[string]bool{target.fingerprint: true} // who has it needs nothing
		for _, older := range published[at+1:] {
			if found == n {
				break
			}
			base, ok := sameRoot(older, v, kind)
			if !ok || seen[base.fingerprint] {
				continue
			}
			seen[base.fingerprint] = true
			found++
			out = append(out, planned{m.Image, m.Version, v.Name(), formatName(target, base), target, base})
		}
	}
	return out
}

// rootOf finds the root of a variant, and what clients call its form; not ok for one that clients know no deltas of.
func rootOf(m events.Manifest, v events.ManifestVariant) (r root, kind string, ok bool) {
	switch {
	case v.Fingerprint == "":
		return root{}, "", false // clients don't see it
	case v.Type == events.VirtualMachine && (v.Root == "disk.qcow2" || v.Root == incus.FileDiskKVM):
		kind = incus.FileDiskKVM
	case v.Type == events.Container && (v.Root == "rootfs.squashfs" || v.Root == incus.FileSquashfs):
		kind = incus.FileSquashfs
	default:
		return root{}, "", false
	}
	f, ok := m.Format(v.Name(), v.Root)
	return root{m.Version, v.Fingerprint, f.Format, f.Digest, f.Size}, kind, ok && f.Size > 0
}

// sameRoot finds the root of the same variant in another version. An architecture may go by another name there.
func sameRoot(m events.Manifest, v events.ManifestVariant, kind string) (root, bool) {
	for _, other := range m.Variants {
		if other.Type != v.Type || other.Flavour != v.Flavour || canonical(other.Architecture) != canonical(v.Architecture) {
			continue
		}
		if r, otherKind, ok := rootOf(m, other); ok && otherKind == kind {
			return r, true
		}
	}
	return root{}, false
}

func canonical(architecture string) string {
	if name, known := incus.Canonical(architecture); known {
		return name
	}
	return architecture
}

// formatName names a delta below its target by what it starts from: disk.qcow2.from-12.4.0.vcdiff. Where a version's name is too long
// for that, the root's digest takes its place.
func formatName(target, base root) string {
	name := target.format + ".from-" + base.version + ".vcdiff"
	if events.CheckFormatName(name) != nil {
		name = target.format + ".from-" + base.digest.Hex()[:16] + ".vcdiff"
	}
	return name
}

// largest is how many bytes a delta may have: what saves less than a third isn't kept.
func (p planned) largest() int64 { return p.target.size / 3 * 2 }
