package mirrors

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// latest is the alias that a bare image name stands for.
const latest = "latest"

// defaultImageName is the template for servers that aren't imgsrv.
const defaultImageName = "{os}-{release}-{variant}-{arch}"

// wanted is a version that is to be here.
type wanted struct {
	Image, Version           string
	OS, Release, Description string
	Traits                   simplestreams.Traits `json:",omitzero"` // as upstream says: an end of support that passes changes nothing
	Variants                 []wantedVariant
	Aliases                  []string `json:",omitempty"` // that lead to it

	serial     string // upstream's, the greatest of the variants'
	ownAliases bool   // upstream says itself where latest leads
}

// wantedVariant is one of upstream's images, as a variant.
type wantedVariant struct {
	events.Variant
	Fingerprint string // hex
	Files       []wantedFile

	root   string                // its path at upstream
	deltas []simplestreams.Delta // that make the root; upstream makes them when it likes, so they are not part of what is wanted
}

// wantedFile is a file of upstream's, under the name of a format.
type wantedFile struct {
	Format string
	simplestreams.File
}

func (w wanted) String() string { return w.Image + " " + w.Version }

// digest tells apart what upstream says of the version; where the aliases point doesn't count.
func (w wanted) digest() string {
	w.Aliases = nil
	return sum(w)
}

// key is the same for the same publication, in every run and on every node.
func (w wanted) key() string { return "mirror-" + sum(w) }

func sum(w wanted) string {
	data, err := json.Marshal(w)
	if err != nil {
		panic(err) // it has texts and numbers only
	}
	digest := sha256.Sum256(data)
	return hex.EncodeToString(digest[:])
}

// plan chooses what a mirror wants of upstream's images: what its filters match, under the names that it has here, the newest
// Keep versions of each image; oldest first, in the order of the images' names.
func plan(m events.Mirror, images []simplestreams.Image) (versions []wanted, problems []string) {
	type name struct{ image, version string }
	found := map[name]*wanted{}
	for _, image := range images {
		if !matches(m, image) {
			continue
		}
		at, variant := place(m, image)
		n := name{at.Image, at.Version}
		if err := cmp.Or(events.CheckImageName(at.Image), events.CheckVersionName(at.Version)); err != nil {
			problems = append(problems, fmt.Sprintf("%s %s: %v", image.Product, image.Serial, err))
			continue
		}
		if found[n] == nil {
			found[n] = &at
		}
		w := found[n]
		if slices.ContainsFunc(w.Variants, func(v wantedVariant) bool { return v.Variant == variant.Variant }) {
			problems = append(problems, fmt.Sprintf("%s %s: %s has a variant %s already: give the mirror names that differ", image.Product, image.Serial, w, variant.Name()))
			continue
		}
		w.Variants = append(w.Variants, variant)
		w.Traits = w.Traits.With(image.Traits())
		w.serial = max(w.serial, image.Serial)
		for _, alias := range at.Aliases {
			if !slices.Contains(w.Aliases, alias) {
				w.Aliases = append(w.Aliases, alias)
			}
		}
	}
	of := map[string][]wanted{}
	for _, w := range found {
		slices.SortFunc(w.Variants, func(a, b wantedVariant) int { return cmp.Compare(a.Name(), b.Name()) })
		slices.Sort(w.Aliases)
		of[w.Image] = append(of[w.Image], *w)
	}
	for _, list := range of {
		slices.SortFunc(list, func(a, b wanted) int {
			return cmp.Or(cmp.Compare(a.serial, b.serial), cmp.Compare(a.Version, b.Version))
		})
		list = list[max(0, len(list)-m.Keep):]
		newest := &list[len(list)-1]
		if !newest.ownAliases {
			newest.Aliases = append(newest.Aliases, latest)
		}
		versions = append(versions, list...)
	}
	slices.SortStableFunc(versions, func(a, b wanted) int { return cmp.Compare(a.Image, b.Image) })
	return versions, problems
}

// matches: a filter is compared with the product's key, its colons as slashes, and with each of its aliases.
func matches(m events.Mirror, image simplestreams.Image) bool {
	if len(m.Architectures) > 0 && !slices.Contains(m.Architectures, image.Architecture) {
		return false
	}
	if len(m.Filters) == 0 {
		return true
	}
	names := append([]string{strings.ReplaceAll(image.Product, ":", "/")}, image.Aliases...)
	return slices.ContainsFunc(m.Filters, func(filter string) bool {
		return slices.ContainsFunc(names, func(name string) bool { return events.MatchStars(filter, name) })
	})
}

// place says as what an image of upstream's appears here.
func place(m events.Mirror, image simplestreams.Image) (wanted, wantedVariant) {
	w := wanted{Version: clean(image.Serial), OS: image.OS, Release: image.Release}
	variant := wantedVariant{Variant: events.Variant{Architecture: image.Architecture, Type: events.VariantType(image.Type), Flavour: events.DefaultFlavour},
		Fingerprint: image.Fingerprint, root: image.Root.Path, deltas: image.Deltas}
	for _, f := range []simplestreams.File{image.Metadata, image.Root} { // of a unified image the root is all
		if f.Path != "" {
			variant.Files = append(variant.Files, wantedFile{f.Format(), f})
		}
	}
	template := cmp.Or(m.ImageName, defaultImageName)
	if name, version, flavour, ok := ofImgsrv(image); ok {
		w.Version, variant.Flavour = version, flavour
		w.Aliases, w.ownAliases = aliasesOf(image, name, version, flavour), true
		if m.ImageName == "" {
			w.Image = name
			return w, variant
		}
	} else {
		w.Description = strings.TrimSpace(image.OS + " " + cmp.Or(image.ReleaseTitle, image.Release))
	}
	w.Image = clean(strings.ToLower(strings.NewReplacer("{os}", image.OS, "{release}", image.Release, "{variant}", image.Variant,
		"{arch}", image.Architecture, "{type}", image.Type).Replace(template)))
	return w, variant
}

// ofImgsrv reads the products of another imgsrv: NAME:VERSION:ARCHITECTURE:TYPE:FLAVOUR, each with its parts in fields of its own.
func ofImgsrv(image simplestreams.Image) (name, version, flavour string, ok bool) {
	if !image.ByImgsrv() {
		return "", "", "", false
	}
	parts := strings.Split(image.Product, ":")
	return parts[0], parts[1], parts[4], events.CheckFlavour(parts[4]) == nil
}

// aliasesOf are the movable names of a version of another imgsrv, which stand among the product's as NAME/ALIAS[/FLAVOUR].
func aliasesOf(image simplestreams.Image, name, version, flavour string) (aliases []string) {
	for _, full := range image.Aliases {
		alias, ok := strings.CutPrefix(full, name+"/")
		if !ok {
			continue
		}
		if flavour != events.DefaultFlavour {
			if alias, ok = strings.CutSuffix(alias, "/"+flavour); !ok {
				continue
			}
		}
		if alias != version && events.CheckAliasName(alias) == nil {
			aliases = append(aliases, alias)
		}
	}
	return aliases
}

// clean makes a name of a text: what names can't have becomes a dash, and none is left at the ends or beside another.
func clean(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '.':
			b.WriteRune(r)
		default:
			b.WriteByte('-')
		}
	}
	parts := strings.FieldsFunc(b.String(), func(r rune) bool { return r == '-' })
	name := strings.Trim(strings.Join(parts, "-"), "._-")
	for strings.Contains(name, "..") {
		name = strings.ReplaceAll(name, "..", ".")
	}
	return name
}
