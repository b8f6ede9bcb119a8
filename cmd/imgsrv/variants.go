package main

import (
	"fmt"
	"strings"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/imagefile"
)

// declare makes the variants that the command line names, and their files: the one of the arguments, and those of --variant.
func (cmd *PublishCmd) declare(b *bundle) error {
	if len(cmd.Files) == 0 && len(cmd.Variant) == 0 {
		return usagef("which files? Name them, or give them to variants with --variant")
	}
	if len(cmd.Format) > 0 && len(cmd.Format) != len(cmd.Files) {
		return usagef("--format names %d formats for %d files: name one for each, in their order; an empty one is found by content", len(cmd.Format), len(cmd.Files))
	}
	if len(cmd.Files) > 0 {
		b.request.Variants = []client.NewVariant{{Architecture: cmd.Architecture, Type: cmd.Type, Flavour: cmd.Flavour}}
		for i, path := range cmd.Files {
			f := localFile{path: path}
			if len(cmd.Format) > 0 {
				f.format = cmd.Format[i]
			}
			b.files = append(b.files, f)
		}
	}
	places := map[string]int{} // by name
	for _, text := range cmd.Variant {
		variant, file, err := parseVariant(text)
		if err != nil {
			return err
		}
		name := variantName(variant)
		place, known := places[name]
		if !known {
			place = len(b.request.Variants)
			places[name] = place
			b.request.Variants = append(b.request.Variants, variant)
		}
		file.variant = place
		b.files = append(b.files, file)
	}
	return nil
}

// parseVariant reads ARCHITECTURE.TYPE.FLAVOUR[/FORMAT]=FILE. A flavour has no dot, and neither has an architecture.
func parseVariant(text string) (v client.NewVariant, f localFile, err error) {
	name, path, ok := strings.Cut(text, "=")
	name, format, _ := strings.Cut(name, "/")
	parts := strings.Split(name, ".")
	if !ok || path == "" || len(parts) < 2 || len(parts) > 3 {
		return v, f, usagef("--variant %s: wanted is ARCHITECTURE.TYPE[.FLAVOUR][/FORMAT]=FILE, such as amd64.container=rootfs.squashfs", text)
	}
	v = client.NewVariant{Architecture: parts[0], Type: parts[1], Flavour: events.DefaultFlavour}
	if len(parts) == 3 {
		v.Flavour = parts[2]
	}
	if v.Type != string(events.Container) && v.Type != string(events.VirtualMachine) {
		return v, f, usagef("--variant %s: the type is container or virtual-machine", text)
	}
	return v, localFile{path: path, format: format}, nil
}

// identify gives each file of a variant its format, and the variant its type, where the command line left them open.
func (b *bundle) identify(variant int) error {
	v := &b.request.Variants[variant]
	seen := map[string]string{}
	kind := ""
	for i := range b.files {
		f := &b.files[i]
		if f.variant != variant {
			continue
		}
		suggestion, err := imagefile.Suggest(f.file, f.size)
		if err != nil {
			return fmt.Errorf("look what %s is: %w", f.path, err)
		}
		if f.format == "" {
			f.format, f.guessed = suggestion.Format, suggestion.Kind == imagefile.Unknown
		}
		if other, taken := seen[f.format]; taken {
			return usagef("%s and %s are both %s: tell them apart with --format, or publish them as different flavours", other, f.path, f.format)
		}
		seen[f.format] = f.path
		switch {
		case v.Type != "" || suggestion.Type == "" || suggestion.Type == kind:
		case kind == "":
			kind = suggestion.Type
		default:
			return usagef("the files are partly for a %s, partly for a %s: say which with --type", kind, suggestion.Type)
		}
	}
	if v.Type == "" {
		v.Type = kind
	}
	if v.Type == "" {
		return usagef("these files don't tell whether they are for a virtual-machine or a container: say it with --type")
	}
	return nil
}
