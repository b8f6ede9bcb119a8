package streams

import (
	"cmp"
	"slices"

	"github.com/imgsrv/imgsrv/events"
)

// claim is a name that a product asks for.
type claim struct {
	name    string
	product int // index of the product that is listed for it
	rank    int
}

// Ranks of claims: where two products claim a name, the lower one has it.
const (
	rankBare    = iota // NAME: the default flavour of latest
	rankVersion        // NAME/VERSION[/FLAVOUR]
	rankAlias          // NAME/ALIAS[/FLAVOUR]
	rankFlavour        // NAME/FLAVOUR: another flavour of latest
)

// slot is what a name must be alone in. Variants of several types and architectures share their names, since clients choose
// among those by type and architecture (lxc/incus shared/simplestreams/simplestreams.go, applyAliases).
type slot struct {
	name, architecture string
	variantType        events.VariantType
}

// assign gives, for each listed product, the one that it is listed as (owners: itself, or an earlier one of the same
// fingerprint), and for each of those the names it is listed under.
//
// Clients also make NAME/ARCHITECTURE of each name. Who claims a name that is taken, itself or so extended, doesn't get it:
// else chance would decide where it leads. The rules of package events keep most such pairs from arising.
func assign(listed, all []Product, aliases []Alias) (owners []int, names [][]string) {
	owners, names = make([]int, len(listed)), make([][]string, len(listed))
	first := map[string]int{} // by fingerprint
	for i, p := range listed {
		if _, known := first[p.Fingerprint]; !known {
			first[p.Fingerprint] = i
		}
		owners[i] = first[p.Fingerprint]
	}

	taken := map[slot]int{}
	for _, c := range claims(listed, all, aliases) {
		owner := owners[c.product]
		variant := listed[owner].Variant
		short := slot{c.name, variant.Architecture, variant.Type}
		long := slot{c.name + "/" + variant.Architecture, variant.Architecture, variant.Type}
		if isOthers(taken, short, owner) || isOthers(taken, long, owner) {
			continue
		}
		taken[short], taken[long] = owner, owner
		names[owner] = append(names[owner], c.name)
	}
	return owners, names
}

func isOthers(taken map[slot]int, s slot, owner int) bool {
	holder, is := taken[s]
	return is && holder != owner
}

// claims lists what the products ask for, those first that go before others.
func claims(listed, all []Product, aliases []Alias) []claim {
	type version struct{ image, name string }
	versions := map[version]bool{}
	for _, p := range all {
		versions[version{p.Image, p.Version}] = true
	}
	pointing := map[version][]string{} // aliases by the version they name
	for _, a := range aliases {
		// An alias with the name of a version would lead elsewhere than that version does.
		if a.Version != "" && !versions[version{a.Image, a.Alias}] {
			pointing[version{a.Image, a.Version}] = append(pointing[version{a.Image, a.Version}], a.Alias)
		}
	}

	var claims []claim
	for i, p := range listed {
		suffix := ""
		if p.Variant.Flavour != events.DefaultFlavour {
			suffix = "/" + p.Variant.Flavour
		}
		claims = append(claims, claim{p.Image + "/" + p.Version + suffix, i, rankVersion})
		for _, alias := range pointing[version{p.Image, p.Version}] {
			claims = append(claims, claim{p.Image + "/" + alias + suffix, i, rankAlias})
			if alias == latest {
				rank := rankBare
				if suffix != "" {
					rank = rankFlavour
				}
				claims = append(claims, claim{p.Image + suffix, i, rank})
			}
		}
	}
	slices.SortFunc(claims, func(a, b claim) int {
		// The order of products puts the default flavour of a version before its others.
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.product, b.product), cmp.Compare(a.name, b.name))
	})
	return claims
}
