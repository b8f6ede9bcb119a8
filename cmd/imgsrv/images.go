package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
)

// ImagesCmd is about images.
type ImagesCmd struct {
	List       ImagesListCmd       `cmd:"" default:"withargs" help:"List images, or the versions of one. The same as: imgsrv images" example:"images debian-bookworm"`
	Visibility ImagesVisibilityCmd `cmd:"" help:"Make an image public or private, with all its versions." example:"images visibility debian-bookworm private"`
}

// ImagesVisibilityCmd says who may see an image.
type ImagesVisibilityCmd struct {
	clientFlags `embed:""`

	Image      string `arg:"" help:"Image."`
	Visibility string `arg:"" help:"public: for everybody; private: for those with a token that may read it." enum:"public,private"`
}

// Run changes it.
func (cmd *ImagesVisibilityCmd) Run(ctx context.Context, t Terminal) error {
	if err := cmd.needToken(); err != nil {
		return err
	}
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	if err := c.SetVisibility(ctx, cmd.Image, cmd.Visibility); err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, map[string]string{"image": cmd.Image, "visibility": cmd.Visibility})
	}
	_, err = fmt.Fprintf(t.Out, "%s is %s\n", cmd.Image, cmd.Visibility)
	return err
}

// ImagesListCmd lists images, or the versions of one.
type ImagesListCmd struct {
	clientFlags `embed:""`

	Image string `arg:"" optional:"" help:"Image whose versions are listed. Default: all images."`
	At    string `help:"Answer as the catalog stood then: sequence of an event, or a time such as 2026-01-31T12:00:00Z. For all images it needs a token." placeholder:"SEQ|TIME"`
}

// Run lists.
func (cmd *ImagesListCmd) Run(ctx context.Context, t Terminal) error {
	c, err := cmd.connect(newProgress(t, cmd.Quiet))
	if err != nil {
		return err
	}
	if cmd.Image != "" {
		versions, err := collect(c.VersionsAsOf(ctx, cmd.Image, cmd.At))
		if err != nil {
			return err
		}
		if cmd.JSON {
			return writeJSON(t.Out, versions)
		}
		return printVersions(t.Out, versions)
	}
	images, err := collect(c.ImagesAsOf(ctx, cmd.At))
	if err != nil {
		return err
	}
	if cmd.JSON {
		return writeJSON(t.Out, images)
	}
	if len(images) == 0 {
		newProgress(t, cmd.Quiet).note("no image is published yet: imgsrv publish FILE --image NAME --version NAME")
		return nil
	}
	return printImages(t.Out, images)
}

// collect gathers a list that comes in pages.
func collect[T any](list func(func(T, error) bool)) ([]T, error) {
	all := []T{} // not nil, since programs expect a list
	for entry, err := range list {
		if err != nil {
			return nil, err
		}
		all = append(all, entry)
	}
	return all, nil
}

func printImages(w io.Writer, images []client.Image) error {
	t := newTable(w)
	t.row("IMAGE\tLATEST\tVERSIONS\tALIASES\tOS\tVISIBILITY\tPUBLISHED")
	for _, i := range images {
		var aliases []string
		for name, version := range i.Aliases {
			aliases = append(aliases, name+"="+version)
		}
		slices.Sort(aliases)
		t.row("%s\t%s\t%s\t%s\t%s\t%s\t%s", i.Name, orDash(i.Latest), strconv.Itoa(i.Versions), orDash(strings.Join(aliases, ", ")),
			orDash(strings.TrimSpace(i.OS+" "+i.Release)), i.Visibility, localTime(i.PublishedAt))
	}
	return t.flush()
}

func printVersions(w io.Writer, versions []client.VersionSummary) error {
	t := newTable(w)
	t.row("VERSION\tALIASES\tVARIANTS\tATTACHMENTS\tPUBLISHED")
	for _, v := range versions {
		t.row("%s\t%s\t%s\t%s\t%s", v.Version, orDash(strings.Join(v.Aliases, ", ")), strings.Join(v.Variants, ", "), orDash(strings.Join(v.Attachments, ", ")), localTime(v.PublishedAt))
	}
	return t.flush()
}
