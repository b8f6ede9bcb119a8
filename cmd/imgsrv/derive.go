package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
)

// DeriveCmd asks for a further format of a published version, or for it again where it failed.
type DeriveCmd struct {
	clientFlags `embed:""`

	Version string `arg:"" name:"image/version" help:"Version, or an alias of it: debian-bookworm/12.5.0."`
	Format  string `arg:"" help:"disk.compressed.qcow2, disk.raw (with disk.raw.map.json), disk.raw.zst, disk.vhdx or disk.vmdk."`
	Variant string `help:"Variant to make it of, such as amd64.virtual-machine.default. Default: every virtual machine's." placeholder:"NAME"`
}

// Run asks.
func (cmd *DeriveCmd) Run(ctx context.Context, t Terminal) error {
	image, version, ok := strings.Cut(cmd.Version, "/")
	if !ok || image == "" || version == "" {
		return &usageError{fmt.Sprintf("%q: a version is written IMAGE/VERSION, such as debian-bookworm/12.5.0", cmd.Version)}
	}
	if err := cmd.needToken(); err != nil {
		return err
	}
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	v, err := c.Version(ctx, image, version)
	if err != nil {
		return err
	}
	asked := []client.Derived{}
	for i := range v.Variants {
		variant := &v.Variants[i]
		if cmd.Variant != "" && variant.Name() != cmd.Variant || cmd.Variant == "" && variant.Type != "virtual-machine" {
			continue
		}
		d, err := c.Derive(ctx, v.Image, v.Version, variant.Name(), cmd.Format)
		if err != nil {
			return fmt.Errorf("%s: %w", variant.Name(), err)
		}
		asked = append(asked, *d)
	}
	switch {
	case len(asked) == 0 && cmd.Variant != "":
		return fmt.Errorf("%s %s has no variant %s", v.Image, v.Version, cmd.Variant)
	case len(asked) == 0:
		return fmt.Errorf("%s %s has no virtual machine to make a format of", v.Image, v.Version)
	case cmd.JSON:
		return writeJSON(t.Out, asked)
	}
	table := newTable(t.Out)
	for _, d := range asked {
		table.row("%s of %s\t%s\t%s", d.Format, d.Variant, d.State, d.URL)
	}
	return table.flush()
}
