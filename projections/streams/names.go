package streams

import (
	"cmp"
	"slices"

	"github.com/imgsrv/imgsrv/events"
)

// claim is a name that a product asks for.
type claim struct {
	name    string
	product *listing
	place   int // of the product in the order of publication
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

// assign gives the names that an image's products claim, by the fingerprint of the product that is listed under them: each is
// listed as its owner, which is itself or another product of the same fingerprint, maybe of another image. Only products of one
// image claim the same names, since all of them begin with the image's.
//
// Clients also make NAME/ARCHITECTURE of each name. Who claims a name that is taken, itself or so extended, doesn't get it:
// else chance would decide where it leads. The rules of package events keep most such pairs from arising.
func assign(line *Line, owner func(fingerprint string) *listing) map[string][]string {
	names := make(map[string][]string, len(line.products))
	taken := make(map[slot]string, 2*len(line.products)) // by fingerprint
	for _, c := range claims(line) {
		fingerprint := c.product.Fingerprint
		variant := owner(fingerprint).Variant
		short := slot{c.name, variant.Architecture, variant.Type}
		long := slot{c.name + "/" + variant.Architecture, variant.Architecture, variant.Type}
		if isOthers(taken, short, fingerprint) || isOthers(taken, long, fingerprint) {
			continue
		}
		taken[short], taken[long] = fingerprint, fingerprint
		names[fingerprint] = append(names[fingerprint], c.name)
	}
	return names
}

func isOthers(taken map[slot]string, s slot, fingerprint string) bool {
	holder, is := taken[s]
	return is && holder != fingerprint
}

// claims lists what an image's products ask for, those first that go before others.
func claims(line *Line) []claim {
	versions := make(map[string]bool, len(line.products)) // also of products that aren't shown
	for _, p := range line.products {
		versions[p.Version] = true
	}
	pointing := map[string][]string{} // aliases by the version they name
	for _, a := range line.aliases {
		// An alias with the name of a version would lead elsewhere than that version does.
		if a.Version != "" && !versions[a.Alias] {
			pointing[a.Version] = append(pointing[a.Version], a.Alias)
		}
	}

	claims := make([]claim, 0, len(line.products))
	for i, p := range line.products {
		if !p.shown() {
			continue
		}
		suffix := ""
		if p.Variant.Flavour != events.DefaultFlavour {
			suffix = "/" + p.Variant.Flavour
		}
		claims = append(claims, claim{p.Image + "/" + p.Version + suffix, p, i, rankVersion})
		for _, alias := range pointing[p.Version] {
			claims = append(claims, claim{p.Image + "/" + alias + suffix, p, i, rankAlias})
			if alias == latest {
				rank := rankBare
				if suffix != "" {
					rank = rankFlavour
				}
				claims = append(claims, claim{p.Image + suffix, p, i, rank})
			}
		}
	}
	slices.SortFunc(claims, func(a, b claim) int {
		// The order of products puts the default flavour of a version before its others.
		return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.place, b.place), cmp.Compare(a.name, b.name))
	})
	return claims
}
