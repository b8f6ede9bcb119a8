package clientrules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// sortImages puts images in the client's order: the first to claim an alias has it. The client compares operating system,
// release, variant, version key (newest first) and architecture, then prefers a root file's type; what is still equal comes in
// an order that changes from run to run there, and by fingerprint here.
func sortImages(images []Image) {
	slices.SortStableFunc(images, func(a, b Image) int {
		return cmp.Or(
			cmp.Compare(a.Properties["os"], b.Properties["os"]),
			cmp.Compare(a.Properties["release"], b.Properties["release"]),
			cmp.Compare(a.Properties["variant"], b.Properties["variant"]),
			cmp.Compare(b.Serial, a.Serial),
			cmp.Compare(a.Properties["architecture"], b.Properties["architecture"]),
			cmp.Compare(preference(a), preference(b)),
			cmp.Compare(a.Fingerprint, b.Fingerprint),
		)
	})
}

// preference ranks the property "type"; a unified image ("tar.gz") ranks with squashfs, since clients do not list it.
func preference(image Image) int {
	return max(0, slices.Index([]string{"squashfs", "root.tar.xz", "disk-kvm.img", "uefi1.img", "disk1.img"}, image.Properties["type"]))
}

// assignAliases gives each alias to the first image that claims it for its type and architecture. Each alias A of a product
// also stands for A/ARCH, with the architecture as the product writes it. Several versions of one product may claim an alias,
// the newest has it; two products that do are a problem, for the clients compare operating systems before dates.
func (r *reader) assignAliases(images []Image) {
	holder := map[Alias]int{}
	for i := range images {
		image := &images[i]
		claims := image.Aliases
		image.Aliases = nil
		for _, claim := range claims {
			for _, name := range []string{claim.Name, claim.Name + "/" + image.Properties["architecture"]} {
				alias := Alias{Name: name, Type: image.Type, Architecture: image.Architecture}
				held, taken := holder[alias]
				if !taken {
					holder[alias] = i
					image.Aliases = append(image.Aliases, alias)
					continue
				}
				if other := images[held]; other.Product != image.Product {
					r.report(ContestedAlias, place(image.Product, image.Serial), "alias %s (%s, %s) is also claimed by %s",
						name, alias.Type, alias.Architecture, place(other.Product, other.Serial))
				}
			}
		}
		slices.SortFunc(image.Aliases, func(a, b Alias) int { return cmp.Compare(a.Name, b.Name) })
	}
}

// Resolve finds the image that a client on a machine of the given architecture (kernel's name) takes for a name: an alias,
// or the beginning of a fingerprint. imageType may be empty: then containers go before virtual machines, as in
// `lxc image info` without --vm. Of several architectures the machine's own is taken, then one it can also run, then any
// (the first in order, here; clients do not promise which).
func Resolve(images []Image, architecture, imageType, name string) (Image, error) {
	types := []string{imageType}
	if imageType == "" {
		types = []string{Container, VirtualMachine}
	}
	for _, wanted := range types {
		best, bestRank := -1, 0
		for i, image := range images {
			if image.Type != wanted || !slices.ContainsFunc(image.Aliases, func(a Alias) bool { return a.Name == name }) {
				continue
			}
			if rank := nearness(architecture, image.Architecture); best < 0 || rank < bestRank {
				best, bestRank = i, rank
			}
		}
		if best >= 0 {
			return images[best], nil
		}
	}
	var found []Image
	for _, image := range images {
		if strings.HasPrefix(image.Fingerprint, name) {
			found = append(found, image)
		}
	}
	switch len(found) {
	case 0:
		return Image{}, fmt.Errorf("no image has the alias or fingerprint %q", name)
	case 1:
		return found[0], nil
	default:
		return Image{}, fmt.Errorf("%d images match the fingerprint %q", len(found), name)
	}
}

// nearness is 0 for the machine's own architecture, 1 for one that it can also run, else 2.
func nearness(own, other string) int {
	if own == other {
		return 0
	}
	personalities := map[string][]string{
		"x86_64":  {"i686"},
		"armv7l":  {"armv6l"},
		"armv8l":  {"armv6l", "armv7l"},
		"aarch64": {"armv6l", "armv7l", "armv8l"},
		"ppc64":   {"ppc"},
		"mips64":  {"mips"},
	}
	if slices.Contains(personalities[own], other) {
		return 1
	}
	return 2
}

// architectureName gives the client's name for an architecture in a product, or "" where the client passes it over.
func (d Dialect) architectureName(name string) string {
	table := map[string][]string{
		"i686":        {"i386", "i586", "386", "x86", "generic_32"},
		"x86_64":      {"amd64", "generic_64"},
		"armv6l":      {"armel", "arm"},
		"armv7l":      {"armhf", "armhfp", "armv7a_hardfp", "armv7", "armv7a_vfpv3_hardfp"},
		"armv8l":      {},
		"aarch64":     {"arm64", "arm64_generic"},
		"ppc":         {"powerpc"},
		"ppc64":       {"powerpc64"},
		"ppc64le":     {"ppc64el"},
		"s390x":       {},
		"mips":        {"mipsel"},
		"mips64":      {"mips64el"},
		"riscv32":     {},
		"riscv64":     {},
		"loongarch64": {"loong64"},
	}
	if d == LXD {
		delete(table, "loongarch64")
	} else {
		table["x86_64"] = append(table["x86_64"], "x86_64_v1", "x86_64_v2", "x86_64_v3", "x86_64_v4")
		table["mips"] = append(table["mips"], "mipsle")
		table["mips64"] = append(table["mips64"], "mips64le")
	}
	for kernel, synonyms := range table {
		if name == kernel || slices.Contains(synonyms, name) {
			return kernel
		}
	}
	return ""
}
