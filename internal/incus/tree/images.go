package tree

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/incus"
)

// serialPattern is a version's key: YYYYMMDD, mostly with _HHMM or _HHMMSS, where images.linuxcontainers.org writes _HH:MM. Clients
// want the date alone.
var serialPattern = regexp.MustCompile(`^[0-9]{8}([_.-]?[0-9A-Za-z:._+~-]{0,80})$`)

var digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (c *Contents) product(key string, p product) {
	note := func(to *[]Note, serial, format string, args ...any) {
		*to = append(*to, Note{key, serial, fmt.Sprintf(format, args...)})
	}
	architecture, known := incus.Canonical(p.Architecture)
	if !known {
		note(&c.Passed, "", "no client knows the architecture %q", p.Architecture)
		return
	}
	for _, serial := range slices.Sorted(maps.Keys(p.Versions)) {
		if !dated(serial) {
			note(&c.Passed, serial, "clients pass over a version whose key doesn't begin with a date")
			continue
		}
		v := p.Versions[serial]
		found := v.images(func(to *[]Note, format string, args ...any) { note(to, serial, format, args...) }, c)
		for _, image := range found {
			image.Product, image.Serial, image.Architecture = key, serial, architecture
			image.OS, image.Release, image.ReleaseTitle, image.Version, image.Variant = p.OS, p.Release, p.ReleaseTitle, p.Version, p.Variant
			image.Label, image.SupportEOL, image.Requirements = v.Label, p.SupportEOL, p.Requirements
			if len(image.Requirements) == 0 {
				image.Requirements = p.LXDRequirements
			}
			for name := range strings.SplitSeq(p.Aliases, ",") {
				if name != "" {
					image.Aliases = append(image.Aliases, name)
				}
			}
			if bad := image.check(); bad != "" {
				note(&c.Bad, serial, "%s", bad)
				continue
			}
			c.Images = append(c.Images, image)
		}
	}
}

func dated(serial string) bool {
	if !serialPattern.MatchString(serial) {
		return false
	}
	_, err := time.Parse("20060102", serial[:8])
	return err == nil
}

// images finds at most one image of each type: what has several roots, or metadata of both families, is several images to clients,
// and the one that they prefer stands for all.
func (v version) images(note func(to *[]Note, format string, args ...any), c *Contents) []Image {
	items := map[string]item{}
	for _, name := range slices.Sorted(maps.Keys(v.Items)) {
		if it := v.Items[name]; items[it.FileType].Path == "" {
			items[it.FileType] = it
		}
	}
	byType := map[string]*Image{}
	add := func(image Image) {
		switch other := byType[image.Type]; {
		case other == nil:
			byType[image.Type] = &image
		case other.Fingerprint != image.Fingerprint:
			note(&c.Passed, "%s with the fingerprint %s isn't taken: %s stands for it", image.what(), image.Fingerprint, other.what())
		}
	}
	for _, metadata := range []string{incus.FileIncusMetadata, incus.FileLXDMetadata} {
		meta, there := items[metadata]
		if !there {
			continue
		}
		for _, rootType := range []string{incus.FileSquashfs, incus.FileRootTarXZ, incus.FileDiskKVM, "disk1.img", "uefi1.img"} {
			root, there := items[rootType]
			if fingerprint := meta.with(rootType); there && fingerprint != "" {
				kind := VirtualMachine
				if rootType == incus.FileSquashfs || rootType == incus.FileRootTarXZ {
					kind = Container
				}
				add(Image{Fingerprint: fingerprint, Type: kind, Metadata: fileOf(meta), Root: fileOf(root)})
			}
		}
	}
	for _, combined := range []string{incus.FileIncusCombined, incus.FileLXDCombined} {
		if it, there := items[combined]; there {
			kind := Container
			if it.CombinedType == VirtualMachine {
				kind = VirtualMachine
			}
			add(Image{Fingerprint: it.SHA256, Type: kind, Metadata: fileOf(it)})
		}
	}
	if len(byType) == 0 {
		note(&c.Passed, "clients find no image in it: that wants incus.tar.xz or lxd.tar.xz with a root and its combined digest, or a unified tarball")
	}
	var images []Image
	for _, kind := range slices.Sorted(maps.Keys(byType)) {
		images = append(images, *byType[kind])
	}
	return images
}

func (i *Image) what() string {
	if i.Unified() {
		return i.Metadata.Type
	}
	return i.Metadata.Type + " and " + i.Root.Type
}

// with is the fingerprint that a metadata item states for a root.
func (it item) with(rootType string) string {
	switch rootType {
	case incus.FileSquashfs:
		return it.CombinedSquashfsSHA256
	case incus.FileRootTarXZ:
		if it.CombinedRootXZSHA256 == "" {
			return it.Combined
		}
		return it.CombinedRootXZSHA256
	case incus.FileDiskKVM:
		return it.CombinedDiskKVMSHA256
	case "disk1.img":
		return it.CombinedDisk1
	}
	return it.CombinedUEFI1
}

func fileOf(it item) File {
	return File{Type: it.FileType, Path: it.Path, SHA256: it.SHA256, Size: it.SizeBytes}
}

// check says what is wrong about what the documents say of the image; "" if nothing is.
func (i *Image) check() string {
	if !digestPattern.MatchString(i.Fingerprint) {
		return fmt.Sprintf("the fingerprint %q of %s is not 64 lower-case hex digits", i.Fingerprint, i.what())
	}
	for _, f := range i.Files() {
		switch {
		case !local(f.Path):
			return fmt.Sprintf("the path %q of %s leads out of the tree", f.Path, f.Type)
		case !digestPattern.MatchString(f.SHA256):
			return fmt.Sprintf("the sha256 %q of %s is not 64 lower-case hex digits", f.SHA256, f.Type)
		case f.Size <= 0:
			return fmt.Sprintf("the size of %s is %d", f.Type, f.Size)
		}
	}
	return ""
}
