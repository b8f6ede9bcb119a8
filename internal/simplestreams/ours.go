package simplestreams

import (
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/incus"
)

// What the documents say, in the words in which imgsrv publishes it.

// Traits is what the documents say of an image beside its names.
type Traits struct {
	ReleaseTitle string            `json:",omitempty"`
	Codename     string            `json:",omitempty"`
	SupportEOL   string            `json:",omitempty"` // the last day of support, as it is written there
	Supported    *bool             `json:",omitempty"` // nil: not said
	Labels       map[string]string `json:",omitempty"`
	Requirements map[string]string `json:",omitempty"`
}

// Traits gathers them. The version's label is the label "label", but not from an imgsrv, which has the version's name there. Only an
// imgsrv always says whether it supports an image; elsewhere a product that doesn't say so may be supported all the same.
func (i Image) Traits() Traits {
	t := Traits{ReleaseTitle: i.ReleaseTitle, Codename: i.Codename, SupportEOL: i.SupportEOL}
	if len(i.Requirements) > 0 {
		t.Requirements = maps.Clone(i.Requirements)
	}
	ours := i.ByImgsrv()
	if i.Supported || ours {
		t.Supported = &i.Supported
	}
	if i.Label != "" && !ours {
		t.Labels = map[string]string{"label": i.Label}
	}
	return t
}

// At leaves out an end of support that is no day after a time: what has expired can't be published as an end that is still to come.
func (t Traits) At(now time.Time) Traits {
	if day, err := time.Parse(time.DateOnly, t.SupportEOL); err != nil || !day.After(now) {
		t.SupportEOL = ""
	}
	return t
}

// With is what is said of a version by two of its images: the first one speaks, and what the other requires beside that is required too.
func (t Traits) With(other Traits) Traits {
	t.Labels, t.Requirements = united(t.Labels, other.Labels), united(t.Requirements, other.Requirements)
	t.ReleaseTitle, t.Codename, t.SupportEOL = cmp.Or(t.ReleaseTitle, other.ReleaseTitle), cmp.Or(t.Codename, other.Codename), cmp.Or(t.SupportEOL, other.SupportEOL)
	t.Supported = cmp.Or(t.Supported, other.Supported)
	return t
}

func united(first, second map[string]string) map[string]string {
	if len(second) == 0 {
		return first
	}
	all := maps.Clone(second)
	maps.Copy(all, first)
	return all
}

// ByImgsrv says whether another imgsrv has made the product: its key is NAME:VERSION:ARCHITECTURE:TYPE:FLAVOUR, and each part stands in
// a field of its own too.
func (i Image) ByImgsrv() bool {
	return i.Version != "" && slices.Equal(strings.Split(i.Product, ":")[1:], []string{i.Version, i.Architecture, i.Type, i.Variant})
}

// Format is imgsrv's name for a file: the clients' types of roots are formats, and tarballs are named by their compression, which the
// clients tell by the content and which shows in the path alone.
func (f File) Format() string {
	switch f.FileType {
	case incus.FileIncusMetadata, incus.FileLXDMetadata:
		return "incus" + tarSuffix(f.Path, ".tar.xz")
	case incus.FileIncusCombined, incus.FileLXDCombined:
		return "incus_combined" + tarSuffix(f.Path, ".tar.gz")
	case incus.FileSquashfs:
		return "rootfs.squashfs"
	case incus.FileRootTarXZ:
		return incus.FileRootTarXZ
	}
	return "disk.qcow2" // disk-kvm.img, disk1.img and uefi1.img
}

func tarSuffix(name, usual string) string {
	for _, suffix := range []string{".tar.gz", ".tar.xz", ".tar.zst", ".tar"} {
		if strings.HasSuffix(path.Base(name), suffix) {
			return suffix
		}
	}
	return usual
}
