package clientrules

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

func (r *reader) metadataType() string {
	if r.dialect == LXD {
		return "lxd.tar.xz"
	}
	return "incus.tar.xz"
}

func (r *reader) combinedType() string {
	if r.dialect == LXD {
		return "lxd_combined.tar.gz"
	}
	return "incus_combined.tar.gz"
}

func rootTypes() []string {
	return []string{"disk-kvm.img", "disk1.img", "root.tar.xz", "squashfs", "uefi1.img"}
}

// otherTypes are known types that make no image by themselves: deltas, and metadata of the other dialect.
func otherTypes() []string {
	return []string{"squashfs.vcdiff", "disk-kvm.img.vcdiff", "incus.tar.xz", "incus_combined.tar.gz", "lxd.tar.xz", "lxd_combined.tar.gz"}
}

// fingerprintWith gives the fingerprint that a metadata item states for a root of this type.
func (i item) fingerprintWith(rootType string) string {
	switch rootType {
	case "disk-kvm.img":
		return i.CombinedDiskKVM
	case "disk1.img":
		return i.CombinedDisk1
	case "uefi1.img":
		return i.CombinedUEFI1
	case "squashfs":
		return i.CombinedSquashfs
	case "root.tar.xz":
		if i.CombinedRootXZ == "" {
			return i.Combined
		}
		return i.CombinedRootXZ
	}
	return ""
}

func (r *reader) product(key string, p product) []Image {
	where := "product " + key
	architecture := r.dialect.architectureName(p.Architecture)
	if architecture == "" {
		r.report(UnknownArchitecture, where, "%s passes over the architecture %q", r.dialect, p.Architecture)
		return nil
	}
	for field, value := range map[string]string{"os": p.OS, "release": p.Release, "release_title": p.ReleaseTitle} {
		if value == "" {
			r.report(MissingField, where, "%s is empty", field)
		}
	}
	expires := time.Unix(0, 0).UTC()
	if p.SupportEOL != "" {
		parsed, err := time.Parse(time.DateOnly, p.SupportEOL)
		if err != nil {
			r.report(BadValue, where, "support_eol %q is not YYYY-MM-DD", p.SupportEOL)
		} else {
			expires = parsed
		}
	}
	var images []Image
	for _, serial := range slices.Sorted(maps.Keys(p.Versions)) {
		created, ok := r.versionDate(key, serial)
		if !ok {
			continue
		}
		for _, image := range r.version(key, p, serial) {
			image.Architecture = architecture
			image.CreatedAt, image.ExpiresAt = created, expires
			image.Aliases = r.aliases(where, p.Aliases)
			images = append(images, image)
		}
	}
	if len(p.Versions) == 0 {
		r.report(NoImage, where, "it has no version")
	}
	return images
}

// versionDate reads the creation date off a version's key: its first eight characters. Clients want no more; a key of another
// form than ours is reported, for the rest of it decides which version is the newest.
func (r *reader) versionDate(key, serial string) (time.Time, bool) {
	where := place(key, serial)
	if len(serial) < 8 {
		r.report(BadVersionKey, where, "the key does not begin with YYYYMMDD")
		return time.Time{}, false
	}
	created, err := time.Parse("20060102", serial[:8])
	if err != nil {
		r.report(BadVersionKey, where, "the key does not begin with YYYYMMDD")
		return time.Time{}, false
	}
	if !regexp.MustCompile(`^\d{8}_\d{4}(\d\d)?([._-]\d+)?$`).MatchString(serial) {
		r.report(BadVersionKey, where, "the key is not of the form YYYYMMDD_HHMMSS")
	}
	return created, true
}

func (r *reader) aliases(where, list string) []Alias {
	if list == "" {
		return nil
	}
	var aliases []Alias
	for name := range strings.SplitSeq(list, ",") {
		switch {
		case name == "" || strings.TrimSpace(name) != name || strings.ContainsAny(name, " \t\n"):
			r.report(BadAlias, where, "alias %q is empty or holds a blank; clients do not trim it", name)
		case slices.ContainsFunc(aliases, func(a Alias) bool { return a.Name == name }):
			r.report(BadAlias, where, "alias %q stands twice", name)
		}
		aliases = append(aliases, Alias{Name: name})
	}
	return aliases
}

func (r *reader) version(key string, p product, serial string) []Image {
	where, v := place(key, serial), p.Versions[serial]
	byType := map[string][]item{}
	for _, name := range slices.Sorted(maps.Keys(v.Items)) {
		it := v.Items[name]
		at := where + " item " + name
		if !slices.Contains(rootTypes(), it.FileType) && !slices.Contains(otherTypes(), it.FileType) {
			r.report(IgnoredItem, at, "no client knows the file type %q", it.FileType)
			continue
		}
		if len(byType[it.FileType]) > 0 && !strings.HasSuffix(it.FileType, ".vcdiff") {
			r.report(DuplicateItem, at, "a second item of type %s", it.FileType)
		}
		byType[it.FileType] = append(byType[it.FileType], it)
		if !isStub(p, serial) {
			r.checkItem(at, it)
		}
	}

	var images []Image
	for _, combined := range byType[r.combinedType()] {
		if image, ok := r.unified(where, combined); ok {
			images = append(images, describe(image, key, p, serial, r.dialect))
		}
	}
	for _, meta := range byType[r.metadataType()] {
		for _, rootType := range rootTypes() {
			if meta.fingerprintWith(rootType) != "" && len(byType[rootType]) == 0 && !isStub(p, serial) {
				r.report(IgnoredItem, where, "%s states a fingerprint for %s, but there is no such item", meta.FileType, rootType)
			}
			for _, root := range byType[rootType] {
				if image, ok := r.split(where, meta, root, byType, p); ok {
					images = append(images, describe(image, key, p, serial, r.dialect))
				}
			}
		}
	}
	if len(images) == 0 && !isStub(p, serial) {
		r.report(NoImage, where, "%s finds no image: it wants %s, or %s with one of %s",
			r.dialect, r.combinedType(), r.metadataType(), strings.Join(rootTypes(), ", "))
	}
	return images
}

// isStub tells a version that exists only so that a delta of the same product can name it as its base: it has metadata and
// no root file.
func isStub(p product, serial string) bool {
	for _, it := range p.Versions[serial].Items {
		if !slices.Contains([]string{"incus.tar.xz", "lxd.tar.xz"}, it.FileType) {
			return false
		}
	}
	for other, v := range p.Versions {
		for _, it := range v.Items {
			if other != serial && it.DeltaBase == serial {
				return true
			}
		}
	}
	return false
}

func (r *reader) checkItem(where string, it item) {
	r.checkPath(it.Path, where)
	if !isDigest(it.SHA256) {
		r.report(BadValue, where, "sha256 %q is not 64 lower-case hex digits; clients compare it as text", it.SHA256)
	}
	if it.Size <= 0 {
		r.report(BadValue, where, "size is %d", it.Size)
	}
	if strings.HasSuffix(it.FileType, ".vcdiff") && it.DeltaBase == "" {
		r.report(DroppedDelta, where, "delta_base is empty")
	}
	if slices.Contains([]string{"incus_combined.tar.gz", "lxd_combined.tar.gz"}, it.FileType) && !strings.Contains(path.Base(it.Path), ".") {
		// lxc image export REMOTE:IMAGE NAME cuts the file's name at its first dot, and panics without one.
		r.report(BadPath, where, "the file name in %q has no extension", it.Path)
	}
}

func isDigest(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func (r *reader) unified(where string, meta item) (Image, bool) {
	if meta.SHA256 == "" {
		r.report(NoFingerprint, where, "%s has no sha256", meta.FileType)
		return Image{}, false
	}
	if meta.Path == "" {
		return Image{}, false
	}
	image := Image{
		Fingerprint: meta.SHA256,
		Type:        Container,
		Properties:  map[string]string{"type": "tar.gz"},
		Files:       []File{file("meta", meta)},
		SizeBytes:   meta.Size,
	}
	// LXD 5.0 does not read the field: a unified VM image is a container to it.
	if r.dialect == Incus && meta.CombinedType == VirtualMachine {
		image.Type = VirtualMachine
	}
	return image, true
}

func (r *reader) split(where string, meta, root item, byType map[string][]item, p product) (Image, bool) {
	fingerprint := meta.fingerprintWith(root.FileType)
	if fingerprint == "" {
		r.report(NoFingerprint, where, "%s states no fingerprint for %s", meta.FileType, root.FileType)
		return Image{}, false
	}
	if !isDigest(fingerprint) {
		r.report(BadValue, where, "fingerprint %q is not 64 lower-case hex digits", fingerprint)
	}
	if meta.Path == "" {
		return Image{}, false
	}
	if path.Base(meta.Path) == path.Base(root.Path) {
		r.report(BadPath, where, "metadata and root are both called %s: an export writes one over the other", path.Base(meta.Path))
	}
	image := Image{
		Fingerprint: fingerprint,
		Type:        Container,
		Properties:  map[string]string{"type": root.FileType},
		Files:       []File{file("meta", meta), file("root", root)},
		SizeBytes:   meta.Size + root.Size,
	}
	if slices.Contains([]string{"disk-kvm.img", "disk1.img", "uefi1.img"}, root.FileType) {
		image.Type = VirtualMachine
	}
	// LXD 5.0 knows deltas of squashfs only.
	if root.FileType == "squashfs" || root.FileType == "disk-kvm.img" && r.dialect == Incus {
		for _, delta := range byType[root.FileType+".vcdiff"] {
			if base, ok := r.deltaBase(where, delta, p); ok {
				image.Files = append(image.Files, file("root.delta-"+base, delta))
			}
		}
		// Each delta whose base is there is applied, one after the other into one file: client/simplestreams_images.go,
		// GetImageFile. Then the file isn't the image, and the whole root isn't asked for any more.
		if deltas := image.Files[2:]; len(deltas) > 1 {
			r.report(SeveralDeltas, where, "%d deltas are listed: a host that has two of their bases fetches nothing", len(deltas))
		}
	}
	return image, true
}

// deltaBase gives the fingerprint of the image that a delta starts from: combined_squashfs_sha256 on the metadata item of the
// base version, for virtual machines too.
func (r *reader) deltaBase(where string, delta item, p product) (string, bool) {
	base, there := p.Versions[delta.DeltaBase]
	if !there {
		r.report(DroppedDelta, where, "delta_base %q is no version of the product", delta.DeltaBase)
		return "", false
	}
	for _, it := range base.Items {
		if it.FileType == r.metadataType() && it.CombinedSquashfs != "" {
			return it.CombinedSquashfs, true
		}
	}
	r.report(DroppedDelta, where, "version %q has no %s with combined_squashfs_sha256", delta.DeltaBase, r.metadataType())
	return "", false
}

func file(role string, it item) File {
	return File{Role: role, FileType: it.FileType, Path: it.Path, SHA256: it.SHA256, SizeBytes: it.Size}
}

// describe adds what an image has from its product and version.
func describe(image Image, key string, p product, serial string, dialect Dialect) Image {
	label := p.Versions[serial].Label
	description := fmt.Sprintf("%s %s %s", p.OS, p.ReleaseTitle, p.Architecture)
	if dialect == Incus && p.Variant != "" && p.Variant != "default" {
		description += " (" + p.Variant + ")"
	}
	if label != "" {
		description += " (" + label + ")"
	}
	for name, value := range map[string]string{
		"os": p.OS, "release": p.Release, "version": p.Version, "architecture": p.Architecture, "label": label,
		"serial": serial, "variant": p.Variant, "description": description + " (" + serial + ")",
	} {
		if value != "" {
			image.Properties[name] = value
		}
	}
	requirements := p.Requirements
	if dialect == LXD {
		requirements = p.LXDRequirements
	}
	for name, value := range requirements {
		if value != "" {
			image.Properties["requirements."+name] = value
		}
	}
	image.Product, image.Serial = key, serial
	return image
}
