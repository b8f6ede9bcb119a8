package events

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// Names are path segments in URLs, object keys and simplestreams aliases, so their rules are strict.
var (
	imagePattern   = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,126}$`)
	segmentPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,126}$`)
	flavourPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
)

const (
	imageRule   = "1 to 127 lower-case letters, digits, '.', '_' or '-', beginning with a letter or digit"
	segmentRule = "1 to 127 letters, digits, '.', '_', '+', '~' or '-', beginning with a letter or digit"
	flavourRule = "1 to 63 lower-case letters, digits, '_' or '-', beginning with a letter or digit"
)

// A name that ends so would be read as a file of ours on a case-blind or suffix-guessing system; "..",
// though it can't begin a name, would look like a path.
func clean(s string) bool { return !strings.Contains(s, "..") && !strings.HasSuffix(s, ".") }

// CheckImageName says which rule a name of an image breaks, as its sisters do for other kinds of name; nil
// means that it is fine.
func CheckImageName(s string) error {
	if !imagePattern.MatchString(s) || !clean(s) {
		return fmt.Errorf("an image name has %s, no '..' and no '.' at its end", imageRule)
	}
	return nil
}

// CheckVersionName is as [CheckImageName].
func CheckVersionName(s string) error {
	if !segmentPattern.MatchString(s) || !clean(s) {
		return fmt.Errorf("a version name has %s, no '..' and no '.' at its end", segmentRule)
	}
	return nil
}

// CheckAliasName is as [CheckImageName].
func CheckAliasName(s string) error {
	if !segmentPattern.MatchString(s) || !clean(s) {
		return fmt.Errorf("an alias has %s, no '..' and no '.' at its end", segmentRule)
	}
	return nil
}

// CheckFormatName is as [CheckImageName].
func CheckFormatName(s string) error {
	if !segmentPattern.MatchString(s) || !clean(s) {
		return fmt.Errorf("a format name has %s, no '..' and no '.' at its end", segmentRule)
	}
	return nil
}

// CheckFlavour is as [CheckImageName]. A flavour has no dot, since it is the last part of a variant's name.
func CheckFlavour(s string) error {
	if !flavourPattern.MatchString(s) {
		return fmt.Errorf("a flavour has %s", flavourRule)
	}
	return nil
}

// IsID says whether a text is an id of a session or job, a UUID in its usual form: what isn't needn't be asked of the log.
func IsID(s string) bool {
	id, err := uuid.Parse(s)
	return err == nil && id.String() == s
}

// Visibility says who may see an image.
type Visibility string

// Public images are for everybody, private ones for those with a token that may read them.
const (
	Public  Visibility = "public"
	Private Visibility = "private"
)

// VariantType is what a variant boots as; the words are those of Incus.
type VariantType string

// The two types.
const (
	VirtualMachine VariantType = "virtual-machine"
	Container      VariantType = "container"
)

// DefaultFlavour is the flavour that a bare image name means.
const DefaultFlavour = "default"

// Variant says for which architecture (Debian's name: amd64), type and flavour files are.
type Variant struct {
	Architecture string      `json:"architecture"`
	Type         VariantType `json:"type"`
	Flavour      string      `json:"flavour"`
}

// Name is the variant as one path segment: amd64.virtual-machine.default.
func (v Variant) Name() string {
	return v.Architecture + "." + string(v.Type) + "." + v.Flavour
}

// FormatMetadata is Incus's metadata tarball as imgsrv makes it where the publisher gives none.
const FormatMetadata = "incus.tar.xz"

// metadataFormats and unifiedFormats have a meaning of their own, best first; every other clean name but those of roots is served as it
// is. Incus and LXD tell the compression by the content; xz and gzip are what they recommend, so that the others come last.
func metadataFormats() []string {
	return []string{FormatMetadata, "lxd.tar.xz", "incus.tar.gz", "lxd.tar.gz", "incus.tar.zst", "lxd.tar.zst", "incus.tar", "lxd.tar"}
}

func unifiedFormats() []string {
	return []string{"incus_combined.tar.gz", "incus_combined.tar.xz", "lxd_combined.tar.gz", "lxd_combined.tar.xz",
		"incus_combined.tar.zst", "lxd_combined.tar.zst", "incus_combined.tar", "lxd_combined.tar"}
}

// MetadataFormat picks the metadata tarball among a variant's formats.
func MetadataFormat(formats []string) (format string, ok bool) {
	return firstOf(metadataFormats(), formats)
}

// UnifiedFormat picks, among a variant's formats, the tarball that is an image by itself: metadata and root in one.
func UnifiedFormat(formats []string) (format string, ok bool) {
	return firstOf(unifiedFormats(), formats)
}

// rootFormats lists, per type, the formats that Incus takes as the root of an instance, best first.
var rootFormats = map[VariantType][]string{
	VirtualMachine: {"disk.qcow2", "disk-kvm.img"},
	Container:      {"rootfs.squashfs", "squashfs", "rootfs.tar.xz", "root.tar.xz"},
}

// RootFormat picks the root of an instance among a variant's formats; ok is false where there is none,
// and then Incus and LXD can't list the variant from a metadata tarball and a root.
func RootFormat(t VariantType, formats []string) (format string, ok bool) {
	return firstOf(rootFormats[t], formats)
}

// IsTarball says whether a format is a metadata tarball (unified false) or a unified image.
func IsTarball(format string) (is, unified bool) {
	if slices.Contains(unifiedFormats(), format) {
		return true, true
	}
	return slices.Contains(metadataFormats(), format), false
}

// firstOf is the first of the wanted formats that there is.
func firstOf(wanted, there []string) (format string, ok bool) {
	for _, want := range wanted {
		if slices.Contains(there, want) {
			return want, true
		}
	}
	return "", false
}
