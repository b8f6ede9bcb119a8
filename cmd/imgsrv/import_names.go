package main

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/internal/incus/tree"
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
func (n nameTemplate) name(i tree.Image) (string, error) {
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
func (n nameTemplate) flavour(i tree.Image) string {
	if n.tellsVariants() || i.Variant == "" {
		return defaultFlavour
	}
	return strings.Trim(regexp.MustCompile(`[^a-z0-9_-]+`).ReplaceAllString(strings.ToLower(i.Variant), "-"), "-_")
}

// versionName is a version's key without what a name can't hold: 20260131_0524 for 20260131_05:24.
func versionName(serial string) string { return strings.ReplaceAll(serial, ":", "") }
