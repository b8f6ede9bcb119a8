package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus/tree"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// plannedVersion is a version to be published, with the images of the tree that are its variants, in the same order.
type plannedVersion struct {
	request client.NewImage
	images  []simplestreams.Image
	traits  simplestreams.Traits // what the tree says of them
	named   bool                 // the tree says which aliases it has
	state   string
	url     string // once it is published
}

// plan gathers images to versions, sorted by image and age. Two images that would be one variant are an error, since only a
// person can say how to name them apart.
func (run *treeImport) plan(contents *tree.Contents, template nameTemplate) ([]*plannedVersion, error) {
	planned := map[[2]string]*plannedVersion{}
	for _, image := range contents.Images {
		as, err := template.targetOf(image)
		if err == nil && !versionPattern.MatchString(as.version) {
			err = fmt.Errorf("%q is no name for a version", as.version)
		}
		if err != nil {
			run.bad("%s %s: %v", image.Product, image.Serial, err)
			continue
		}
		if match, _ := path.Match(run.cmd.Only, as.image); run.cmd.Only != "" && !match { // the pattern was checked
			continue
		}
		key := [2]string{as.image, as.version}
		v, there := planned[key]
		if !there {
			v = &plannedVersion{state: importPlanned, request: client.NewImage{Image: as.image, Version: as.version, OS: strings.ToLower(image.OS), Release: image.Release,
				Description: strings.TrimSpace(image.OS + " " + cmp.Or(image.ReleaseTitle, image.Release)), Visibility: run.cmd.Visibility}}
			planned[key] = v
		}
		if err := v.add(image, as.flavour); err != nil {
			return nil, err
		}
		v.traits = v.traits.With(image.Traits())
		v.named = v.named || as.aliases != nil
		for _, alias := range as.aliases {
			if !slices.Contains(v.request.Aliases, alias) {
				v.request.Aliases = append(v.request.Aliases, alias)
			}
		}
	}
	var versions []*plannedVersion
	for _, v := range planned {
		v.request.Traits = client.Traits(v.traits.At(time.Now()))
		versions = append(versions, v)
	}
	slices.SortFunc(versions, func(a, b *plannedVersion) int {
		return cmp.Or(cmp.Compare(a.request.Image, b.request.Image), cmp.Compare(a.images[0].Serial, b.images[0].Serial))
	})
	return versions, nil
}

// versionPattern is the server's rule for names of versions, mostly.
var versionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~-]{0,126}$`)

// add takes an image in as a variant. One that is there already is an error.
func (v *plannedVersion) add(image simplestreams.Image, flavour string) error {
	variant := client.NewVariant{Architecture: image.Architecture, Type: image.Type, Flavour: flavour, Fingerprint: image.Fingerprint}
	for i, other := range v.request.Variants {
		if variantName(other) == variantName(variant) {
			return fmt.Errorf("%s and %s would both be %s of %s %s: tell them apart with --name-template", v.images[i].Product, image.Product,
				variantName(variant), v.request.Image, v.request.Version)
		}
	}
	for _, f := range tree.Files(image) {
		variant.Files = append(variant.Files, client.NewFile{Format: f.Format(), Size: f.Size, SHA256: f.SHA256})
	}
	v.request.Variants = append(v.request.Variants, variant)
	v.images = append(v.images, image)
	return nil
}

// check asks the server for what it has, and verifies the files of the rest. A version with a file that is not sound is bad as a
// whole: published without one of its variants, it would be so for ever.
func (run *treeImport) check(ctx context.Context) error {
	var total, done int64
	for _, v := range run.versions {
		if err := run.compare(ctx, v); err != nil {
			return err
		}
		if v.state == importPlanned {
			for _, image := range v.images {
				for _, f := range tree.Files(image) {
					total += f.Size
				}
			}
		}
	}
	run.progress.start("checking", total)
	defer run.progress.stop()
	for _, v := range run.versions {
		if v.state != importPlanned {
			continue
		}
		for _, image := range v.images {
			err := run.tree.Verify(ctx, image, func(n int) {
				done += int64(n)
				run.progress.set(done)
			})
			var mismatch *tree.MismatchError
			switch {
			case errors.As(err, &mismatch):
				v.state = importBad
				run.bad("%s %s: %v", image.Product, image.Serial, mismatch)
			case err != nil:
				return fmt.Errorf("check %s %s: %w", image.Product, image.Serial, err)
			}
		}
	}
	return nil
}

// compare holds a planned version against a published one of its name. What is published identically isn't read again.
func (run *treeImport) compare(ctx context.Context, v *plannedVersion) error {
	published, err := run.client.Version(ctx, v.request.Image, v.request.Version)
	switch {
	case client.IsProblem(err, client.CodeNotFound):
		return nil
	case err != nil:
		return err
	case published.Version != v.request.Version: // an alias has the name; the server will refuse it, and say so
		return nil
	}
	v.url = run.client.VersionURL(published.Image, published.Version)
	v.state = importExisted
	if difference := v.differsFrom(published); difference != "" {
		v.state = importBad
		run.bad("%s %s is published already, and published versions never change: %s", v.request.Image, v.request.Version, difference)
	}
	return nil
}

// differsFrom says how a published version differs from the planned one, fingerprints above all; "" if it doesn't.
func (v *plannedVersion) differsFrom(published *client.Version) string {
	if difference := (&bundle{request: v.request}).differsFrom(published); difference != "" {
		return difference
	}
	for i, image := range v.images {
		name := variantName(v.request.Variants[i])
		for _, variant := range published.Variants {
			if variant.Name() == name && variant.Fingerprint != image.Fingerprint {
				return fmt.Sprintf("%s has the fingerprint %s there, and %s in the tree", name, cmp.Or(variant.Fingerprint, "(none)"), image.Fingerprint)
			}
		}
	}
	return ""
}

// giveAliases lets latest stand at each image's newest version, where that is one that is going to be published and latest doesn't
// stand at a newer one already.
func (run *treeImport) giveAliases(ctx context.Context) error {
	newest := map[string]*plannedVersion{}
	for _, v := range run.versions { // the oldest first
		if v.state != importBad && !v.named {
			newest[v.request.Image] = v
		}
	}
	for name, v := range newest {
		if v.state != importPlanned {
			continue
		}
		image, err := run.client.Image(ctx, name)
		if err != nil && !client.IsProblem(err, client.CodeNotFound) {
			return err
		}
		if err == nil && dated.MatchString(image.Aliases[latest]) && image.Aliases[latest] > v.request.Version {
			run.progress.note("%s: latest stays at %s", name, image.Aliases[latest])
			continue
		}
		v.request.Aliases = []string{latest}
	}
	return nil
}

const latest = "latest"

// dated is a version's name that begins with a date, as those of trees do: such names sort by time.
var dated = regexp.MustCompile(`^[0-9]{8}([^0-9]|$)`)
