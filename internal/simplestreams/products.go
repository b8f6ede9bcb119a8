package simplestreams

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/incus"
)

// Types of images, in the clients' words.
const (
	Container      = "container"
	VirtualMachine = "virtual-machine"
)

type productsDocument struct {
	Products map[string]json.RawMessage `json:"products"`
}

type product struct {
	Aliases         string             `json:"aliases"`
	Architecture    string             `json:"arch"`
	OS              string             `json:"os"`
	Requirements    map[string]string  `json:"requirements"`
	LXDRequirements map[string]string  `json:"lxd_requirements"`
	Release         string             `json:"release"`
	ReleaseCodename string             `json:"release_codename"`
	ReleaseTitle    string             `json:"release_title"`
	Supported       bool               `json:"supported"`
	SupportEOL      string             `json:"support_eol"`
	Version         string             `json:"version"`
	Variant         string             `json:"variant"`
	Versions        map[string]version `json:"versions"`
}

type version struct {
	Items map[string]item `json:"items"`
	Label string          `json:"label"`
}

type item struct {
	CombinedDisk1    string `json:"combined_disk1-img_sha256"`
	CombinedDiskKVM  string `json:"combined_disk-kvm-img_sha256"`
	CombinedUEFI1    string `json:"combined_uefi1-img_sha256"`
	CombinedRootXZ   string `json:"combined_rootxz_sha256"`
	Combined         string `json:"combined_sha256"`
	CombinedSquashfs string `json:"combined_squashfs_sha256"`
	CombinedType     string `json:"combined_type"`
	DeltaBase        string `json:"delta_base"`
	FileType         string `json:"ftype"`
	Path             string `json:"path"`
	SHA256           string `json:"sha256"`
	Size             int64  `json:"size"`
}

func (i item) file() File {
	return File{FileType: i.FileType, Path: i.Path, SHA256: i.SHA256, Size: i.Size}
}

// roots lists, per type of image, the roots from the best to the last choice. The clients would list each as an image of its
// own; here a version gives one image of each type.
func roots() map[string][]string {
	return map[string][]string{
		Container:      {incus.FileSquashfs, incus.FileRootTarXZ},
		VirtualMachine: {incus.FileDiskKVM, "disk1.img", "uefi1.img"},
	}
}

// fingerprintWith is what a metadata item promises for a root of this type.
func (i item) fingerprintWith(rootType string) string {
	switch rootType {
	case incus.FileDiskKVM:
		return i.CombinedDiskKVM
	case "disk1.img":
		return i.CombinedDisk1
	case "uefi1.img":
		return i.CombinedUEFI1
	case incus.FileSquashfs:
		return i.CombinedSquashfs
	case incus.FileRootTarXZ:
		return cmp.Or(i.CombinedRootXZ, i.Combined)
	}
	return ""
}

// ParseProducts gives the images of a document of products, by product, version and type, and what was passed over. The error
// says that it is no such document; a product that can't be read is a problem, and the others are read.
func ParseProducts(data []byte) ([]Image, []Problem, error) {
	var document productsDocument
	if err := json.Unmarshal(data, &document); err != nil {
		return nil, nil, fmt.Errorf("read the simplestreams products: %w", err)
	}
	if document.Products == nil {
		return nil, nil, fmt.Errorf("read the simplestreams products: there is no member \"products\"")
	}
	var images []Image
	var problems []Problem
	for key, raw := range document.Products {
		var p product
		if err := json.Unmarshal(raw, &p); err != nil {
			problems = append(problems, Problem{"product " + key, err.Error()})
			continue
		}
		found, wrong := p.images(key)
		images, problems = append(images, found...), append(problems, wrong...)
	}
	slices.SortFunc(images, func(a, b Image) int {
		return cmp.Or(strings.Compare(a.Product, b.Product), strings.Compare(a.Serial, b.Serial), strings.Compare(a.Type, b.Type))
	})
	sortProblems(problems)
	return images, problems, nil
}

func (p product) images(key string) (images []Image, problems []Problem) {
	architecture, known := incus.Canonical(p.Architecture)
	if !known {
		return nil, []Problem{{"product " + key, fmt.Sprintf("the architecture %q is unknown", p.Architecture)}}
	}
	common := Image{Product: key, Architecture: architecture, OS: p.OS, Release: p.Release, ReleaseTitle: p.ReleaseTitle, Codename: p.ReleaseCodename,
		Variant: cmp.Or(p.Variant, "default"), Version: p.Version, Requirements: p.Requirements, SupportEOL: p.SupportEOL, Supported: p.Supported}
	if common.Requirements == nil {
		common.Requirements = p.LXDRequirements
	}
	for alias := range strings.SplitSeq(p.Aliases, ",") {
		if alias = strings.TrimSpace(alias); alias != "" {
			common.Aliases = append(common.Aliases, alias)
		}
	}
	for serial, v := range p.Versions {
		where := "product " + key + " version " + serial
		created, err := time.Parse("20060102", serial[:min(8, len(serial))])
		if err != nil {
			problems = append(problems, Problem{where, "the key of the version does not begin with YYYYMMDD"})
			continue
		}
		image := common
		image.Serial, image.CreatedAt, image.Label = serial, created, v.Label
		found, wrong := v.images(image, where)
		for i := range found {
			found[i].Deltas = p.deltas(v, found[i].Root.FileType)
		}
		images, problems = append(images, found...), append(problems, wrong...)
	}
	return images, problems
}

// deltas finds those that make a root of this type, as clients do: the base is another version of the product, known by what its
// metadata promises. One that can't be read is passed over, since the whole file is there too.
func (p product) deltas(v version, rootType string) (deltas []Delta) {
	for _, i := range v.Items {
		if i.FileType != rootType+".vcdiff" || i.DeltaBase == "" || check(i.file(), i.SHA256) != nil {
			continue
		}
		delta := Delta{File: i.file()}
		for _, meta := range p.Versions[i.DeltaBase].Items {
			if meta.FileType != incus.FileIncusMetadata && meta.FileType != incus.FileLXDMetadata {
				continue
			}
			for _, fingerprint := range []string{meta.CombinedSquashfs, meta.fingerprintWith(rootType)} {
				if hexDigest.MatchString(fingerprint) && !slices.Contains(delta.Bases, fingerprint) {
					delta.Bases = append(delta.Bases, fingerprint)
				}
			}
		}
		if len(delta.Bases) > 0 {
			slices.Sort(delta.Bases)
			deltas = append(deltas, delta)
		}
	}
	slices.SortFunc(deltas, func(a, b Delta) int { return strings.Compare(a.Path, b.Path) })
	return deltas
}

// images makes one image of each type of what a version offers.
func (v version) images(common Image, where string) (images []Image, problems []Problem) {
	of := map[string]item{}
	for key, i := range v.Items {
		if i.FileType == "" {
			problems = append(problems, Problem{where + " item " + key, "it has no ftype"})
			continue
		}
		if other, twice := of[i.FileType]; twice && i.Path < other.Path {
			continue // either is as good; the choice doesn't depend on chance
		}
		of[i.FileType] = i
	}
	for _, kind := range []string{Container, VirtualMachine} {
		for _, rootType := range roots()[kind] {
			image, ok, err := pair(common, of, rootType)
			at := slices.IndexFunc(images, func(i Image) bool { return i.Type == kind })
			if err != nil && at < 0 {
				problems = append(problems, Problem{where, err.Error()})
				continue
			}
			if !ok {
				continue
			}
			image.Type = kind
			if at >= 0 {
				problems = append(problems, Problem{where, fmt.Sprintf("the image %s, of %s, is passed over: %s is that of %s", image.Fingerprint, rootType, images[at].Fingerprint, images[at].Root.FileType)})
				continue
			}
			images = append(images, image)
		}
	}
	for _, name := range []string{incus.FileIncusCombined, incus.FileLXDCombined} {
		unified, there := of[name]
		if !there {
			continue
		}
		image := common
		image.Type, image.Root, image.Fingerprint = cmp.Or(unified.CombinedType, Container), unified.file(), unified.SHA256
		if err := check(image.Root, image.Fingerprint); err != nil {
			problems = append(problems, Problem{where, err.Error()})
			continue
		}
		if !slices.ContainsFunc(images, func(i Image) bool { return i.Type == image.Type }) {
			images = append(images, image)
		}
		break
	}
	return images, problems
}

// pair finds the metadata for a root: Incus's, or LXD's where there is only that. Without a root, or without a fingerprint
// for it, clients list nothing.
func pair(common Image, of map[string]item, rootType string) (image Image, ok bool, err error) {
	root, there := of[rootType]
	if !there {
		return image, false, nil
	}
	for _, name := range []string{incus.FileIncusMetadata, incus.FileLXDMetadata} {
		meta, there := of[name]
		if !there || meta.fingerprintWith(rootType) == "" {
			continue
		}
		image = common
		image.Metadata, image.Root, image.Fingerprint = meta.file(), root.file(), meta.fingerprintWith(rootType)
		if err := check(image.Metadata, image.Fingerprint); err != nil {
			return image, false, err
		}
		err = check(image.Root, image.Fingerprint)
		return image, err == nil, err
	}
	return image, false, fmt.Errorf("%s has no metadata with a combined digest for it", rootType)
}

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

func check(f File, fingerprint string) error {
	if err := checkPath(f.Path); err != nil {
		return fmt.Errorf("%s: %w", f.FileType, err)
	}
	switch {
	case !hexDigest.MatchString(f.SHA256):
		return fmt.Errorf("%s: its sha256 is not 64 lower-case hex digits", f.FileType)
	case f.Size <= 0:
		return fmt.Errorf("%s: its size is %d", f.FileType, f.Size)
	case !hexDigest.MatchString(fingerprint):
		return fmt.Errorf("%s: the combined digest is not 64 lower-case hex digits", f.FileType)
	}
	return nil
}
