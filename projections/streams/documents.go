package streams

import (
	"cmp"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// latest is the alias that a bare image name stands for.
const latest = "latest"

// Product is one variant of a published version. One without a Fingerprint can be downloaded from imgsrv, but not be listed.
type Product struct {
	Image       string
	Version     string
	Variant     events.Variant
	OS, Release string        // as this publication said; "" where it was silent
	Traits      events.Traits // its labels are not shown
	Fingerprint string        // 64 hex digits
	Metadata    File          // or the unified image: then Root is empty
	Root        File
	// KeyedAt is the second in the version key: that of the publication, or the next one that is free in its image.
	KeyedAt   time.Time
	Published Change
	// Withdrawn ones are not listed. Changed is the last withdrawal or restoration of the version, zero if there was none.
	Withdrawn bool
	Changed   Change
	Deltas    []Delta // also those that were removed, and those that no client can use
}

// File is one format of a variant.
type File struct {
	Format    string
	SHA256    string // 64 hex digits
	SizeBytes int64
}

// Alias is a movable name. A removed one has no Version.
type Alias struct {
	Image, Alias, Version string
	Changed               Change
}

// Image is a line of releases. Changed is the last fact that changed what the public sees of it, zero if none did.
type Image struct {
	Name        string
	Visibility  events.Visibility
	OS, Release string
	Changed     Change
}

// Change says which fact changed something, and when.
type Change struct {
	Sequence events.Sequence
	At       time.Time
}

// isUnified says whether the product is one tarball with metadata and root.
func isUnified(p Product) bool {
	_, unified := events.IsTarball(p.Metadata.Format)
	return unified && p.Root.Format == ""
}

// rootType is the clients' name for what the product's root is; "" for a root that they can't use.
func rootType(p Product) string {
	switch {
	case p.Variant.Type == events.VirtualMachine && (p.Root.Format == "disk.qcow2" || p.Root.Format == "disk-kvm.img"):
		return incus.FileDiskKVM
	case p.Variant.Type == events.Container && (p.Root.Format == "rootfs.squashfs" || p.Root.Format == "squashfs"):
		return incus.FileSquashfs
	case p.Variant.Type == events.Container && (p.Root.Format == "rootfs.tar.xz" || p.Root.Format == "root.tar.xz"):
		return incus.FileRootTarXZ
	}
	return ""
}

func productKey(p Product) string {
	return p.Image + ":" + p.Version + ":" + p.Variant.Architecture + ":" + string(p.Variant.Type) + ":" + p.Variant.Flavour
}

func describe(p Product, image Image, names []string) (incus.Product, error) {
	aliases, err := incus.JoinAliases(names)
	if err != nil {
		return incus.Product{}, err
	}
	product := incus.Product{
		Aliases:      aliases,
		Architecture: p.Variant.Architecture,
		OS:           cmp.Or(p.OS, image.OS, p.Image),
		Release:      cmp.Or(p.Release, image.Release, p.Version),
		Supported:    p.Traits.IsSupported(),
		Version:      p.Version,
		Variant:      p.Variant.Flavour,

		ReleaseCodename: p.Traits.Codename,
		SupportEOL:      p.Traits.SupportEOL,
		Requirements:    p.Traits.Requirements,
		LXDRequirements: p.Traits.Requirements,
	}
	product.ReleaseTitle = cmp.Or(p.Traits.ReleaseTitle, product.Release)
	version := incus.Version{Items: items(p)}
	if p.Version != product.Release {
		version.Label = p.Version // clients show it in the description, where they show no version
	}
	product.Versions = map[string]incus.Version{incus.VersionKey(p.KeyedAt): version}
	return product, nil
}

// items lists the metadata twice, under the name that each of the clients reads, with one path: each of them sees one image.
// LXD takes each unified image for a container (LXD 5.0.2, shared/simplestreams/products.go), so that of a virtual machine it is told nothing.
func items(p Product) map[string]incus.Item {
	if isUnified(p) {
		whole := item(p, p.Metadata)
		whole.FileType, whole.CombinedType = incus.FileIncusCombined, string(p.Variant.Type)
		listed := map[string]incus.Item{whole.FileType: whole}
		if p.Variant.Type == events.Container {
			whole.FileType = incus.FileLXDCombined
			listed[whole.FileType] = whole
		}
		return listed
	}
	meta, root := item(p, p.Metadata), item(p, p.Root)
	root.FileType = rootType(p)
	switch root.FileType {
	case incus.FileDiskKVM:
		meta.CombinedDiskKVMSHA256 = p.Fingerprint
	case incus.FileSquashfs:
		meta.CombinedSquashfsSHA256 = p.Fingerprint
	case incus.FileRootTarXZ:
		meta.CombinedRootXZSHA256 = p.Fingerprint
	}
	forLXD := meta
	meta.FileType, forLXD.FileType = incus.FileIncusMetadata, incus.FileLXDMetadata
	return map[string]incus.Item{meta.FileType: meta, forLXD.FileType: forLXD, root.FileType: root}
}

// item has a path relative to the remote's address. Nothing in it needs escaping: the rules of names (package events) allow no
// character that does, and the clients would not agree on how to undo it.
func item(p Product, f File) incus.Item {
	return incus.Item{
		Path:      "api/images/" + p.Image + "/versions/" + p.Version + "/variants/" + p.Variant.Name() + "/formats/" + f.Format,
		SHA256:    f.SHA256,
		SizeBytes: f.SizeBytes,
	}
}
