package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// nameTemplate makes names of images from what a simplestreams tree says of a product.
type nameTemplate string

const placeholders = "{os}, {release}, {variant}, {-variant} and {alias}"

var placeholder = regexp.MustCompile(`\{[^}]*\}`)

// check says what is wrong with the template.
func (n nameTemplate) check() error {
	for _, found := range placeholder.FindAllString(string(n), -1) {
		if !slices.Contains([]string{"{os}", "{release}", "{variant}", "{-variant}", "{alias}"}, found) {
			return usagef("--name-template knows %s, not %s", placeholders, found)
		}
	}
	return nil
}

// tellsVariants says whether products that differ by their variant alone get different names; else the variant is the flavour.
func (n nameTemplate) tellsVariants() bool {
	return strings.Contains(string(n), "variant}") || strings.Contains(string(n), "{alias}")
}

// notInNames is what a name of an image can't hold.
var notInNames = regexp.MustCompile(`[^a-z0-9._-]+`)

// name is the name of an image of the tree: the template filled in, in lower case, with a hyphen for whatever a name can't hold.
func (n nameTemplate) name(i simplestreams.Image) (string, error) {
	suffix := ""
	if i.Variant != "" && i.Variant != defaultFlavour {
		suffix = "-" + i.Variant
	}
	alias := ""
	for _, a := range i.Aliases {
		if alias == "" || len(a) < len(alias) {
			alias = a
		}
	}
	if alias == "" && strings.Contains(string(n), "{alias}") {
		return "", fmt.Errorf("it has no alias to be named after")
	}
	text := strings.NewReplacer("{os}", i.OS, "{release}", i.Release, "{variant}", cmp.Or(i.Variant, defaultFlavour), "{-variant}", suffix, "{alias}", alias).Replace(string(n))
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(text), "-"), "-._")
	if name == "" || len(name) > 127 || strings.Contains(name, "..") {
		return "", fmt.Errorf("%q is no name for an image", text)
	}
	return name, nil
}

const defaultFlavour = "default"

// flavour is the flavour of an image of the tree.
func (n nameTemplate) flavour(i simplestreams.Image) string {
	if n.tellsVariants() || i.Variant == "" {
		return defaultFlavour
	}
	return strings.Trim(regexp.MustCompile(`[^a-z0-9_-]+`).ReplaceAllString(strings.ToLower(i.Variant), "-"), "-_")
}

// target is what an image of a tree is to be called.
type target struct {
	image, version, flavour string
	aliases                 []string // of the version; nil: as its age says
}

// targetOf names an image by the template; without one an image that imgsrv has exported keeps the names it had, and others are named by
// defaultTemplate.
func (n nameTemplate) targetOf(i simplestreams.Image) (target, error) {
	if n == "" {
		if t, ok := exportedAs(i); ok {
			return t, nil
		}
		n = defaultTemplate
	}
	name, err := n.name(i)
	return target{image: name, version: versionName(i.Serial), flavour: n.flavour(i)}, err
}

const defaultTemplate nameTemplate = "{os}-{release}{-variant}"

// exportedAs reads the names off a product of imgsrv's: its key is IMAGE:VERSION:ARCHITECTURE:TYPE:FLAVOUR, and among its aliases is
// IMAGE/VERSION, with /FLAVOUR at the end of all aliases where that is not the default one.
func exportedAs(i simplestreams.Image) (target, bool) {
	if !i.ByImgsrv() {
		return target{}, false
	}
	parts := strings.Split(i.Product, ":")
	t := target{image: parts[0], version: parts[1], flavour: parts[4], aliases: []string{}}
	suffix := ""
	if t.flavour != defaultFlavour {
		suffix = "/" + t.flavour
	}
	if !slices.Contains(i.Aliases, t.image+"/"+t.version+suffix) {
		return target{}, false
	}
	for _, alias := range i.Aliases {
		name, isOf := strings.CutPrefix(strings.TrimSuffix(alias, suffix), t.image+"/")
		if isOf && name != t.version && !strings.Contains(name, "/") {
			t.aliases = append(t.aliases, name)
		}
	}
	return t, true
}

// versionName is a version's key without what a name can't hold: 20260131_0524 for 20260131_05:24.
func versionName(serial string) string { return strings.ReplaceAll(serial, ":", "") }
