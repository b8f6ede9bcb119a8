package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus/tree"
)

// ImportCmd takes over what other programs have made.
type ImportCmd struct {
	IncusSimplestreams ImportTreeCmd `cmd:"" name:"incus-simplestreams" help:"Publish the images of an existing simplestreams tree, with their fingerprints unchanged." example:"import incus-simplestreams /srv/www/images --dry-run"`
}

// ImportTreeCmd publishes each version of the products of a tree.
type ImportTreeCmd struct {
	clientFlags `embed:""`

	Dir          string `arg:"" help:"Folder of the tree: the one that has streams/v1/index.json." type:"existingdir"`
	NameTemplate string `help:"How images are named: {os}, {release}, {variant}, {-variant} (nothing for the variant default) and {alias} (the shortest one) are filled in; lower case, with - for what a name can't hold. A template without variant and alias makes the variant the flavour. Default: {os}-{release}{-variant}, and images of a tree that imgsrv exported keep their names and aliases." placeholder:"TEMPLATE"`
	Only         string `help:"Take over only images whose name matches, such as 'debian-*'." placeholder:"PATTERN"`
	Visibility   string `help:"public or private, for new images. Default: public." enum:",public,private" default:"" placeholder:"WHO"`
	DryRun       bool   `help:"Check the tree and list what would be published, and publish nothing."`
	KeepGoing    bool   `help:"Publish the versions that are sound even if others are not. The exit code is then 1 nevertheless."`
}

// The states of a version of the tree.
const (
	importPlanned   = "to be published"
	importPublished = "published"
	importExisted   = "was published before"
	importBad       = "bad"
)

// imported is what the command writes with --json.
type imported struct {
	DryRun     bool              `json:"dry_run"`
	Versions   []importedVersion `json:"versions"`
	PassedOver []string          `json:"passed_over"`
	Bad        []string          `json:"bad"`
}

// importedVersion is what became of a version.
type importedVersion struct {
	Image    string            `json:"image"`
	Version  string            `json:"version"`
	State    string            `json:"state"` // to be published, published, was published before, bad
	Aliases  []string          `json:"aliases"`
	Variants []importedVariant `json:"variants"`
	URL      string            `json:"version_url,omitempty"`
}

type importedVariant struct {
	Variant     string `json:"variant"`
	Product     string `json:"product"` // in the tree
	Serial      string `json:"serial"`
	Fingerprint string `json:"fingerprint"`
	Size        int64  `json:"size"` // bytes of its files
}

// treeImport is a run of the command.
type treeImport struct {
	cmd      *ImportTreeCmd
	t        Terminal
	progress *progress
	client   *client.Client
	tree     *tree.Tree
	versions []*plannedVersion
	result   imported
}

// Run imports.
func (cmd *ImportTreeCmd) Run(ctx context.Context, t Terminal) (err error) {
	template := nameTemplate(cmd.NameTemplate)
	if err := template.check(); err != nil {
		return err
	}
	if _, err := path.Match(cmd.Only, ""); err != nil {
		return usagef("--only %q is no pattern: * stands for any characters, ? for one", cmd.Only)
	}
	if !cmd.DryRun {
		if err := cmd.needToken(); err != nil {
			return err
		}
	}
	run := &treeImport{cmd: cmd, t: t, progress: newProgress(t, cmd.Quiet), result: imported{DryRun: cmd.DryRun, Versions: []importedVersion{}, PassedOver: []string{}, Bad: []string{}}}
	if run.client, err = cmd.connect(run.progress); err != nil {
		return err
	}
	if run.tree, err = tree.Open(cmd.Dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.tree.Close()) }()
	err = run.run(ctx, template)
	return errors.Join(err, run.report())
}

func (run *treeImport) run(ctx context.Context, template nameTemplate) error {
	contents, err := run.tree.Read()
	if err != nil {
		return err
	}
	for _, note := range contents.Passed {
		run.result.PassedOver = append(run.result.PassedOver, note.String())
		run.progress.note("passed over: %s", note)
	}
	if run.versions, err = run.plan(contents, template); err != nil {
		return err
	}
	if len(run.versions) == 0 && len(run.result.Bad) == 0 {
		return fmt.Errorf("%s lists no image to take over", run.cmd.Dir)
	}
	if err := run.check(ctx); err != nil {
		return interrupted(ctx, err, "nothing was published")
	}
	if err := run.giveAliases(ctx); err != nil {
		return interrupted(ctx, err, "nothing was published")
	}
	broken := len(run.result.Bad)
	if run.cmd.DryRun || broken > 0 && !run.cmd.KeepGoing {
		if broken > 0 {
			return fmt.Errorf("%d of what the tree lists is not sound, and nothing was published: mend it, or publish the rest with --keep-going", broken)
		}
		return nil
	}
	if err := run.publish(ctx); err != nil {
		return interrupted(ctx, err, resumeHint)
	}
	if broken := len(run.result.Bad); broken > 0 {
		return fmt.Errorf("%d of what the tree lists was not taken over", broken)
	}
	return nil
}

// bad says what is not sound about the tree, also to who wants no progress.
func (run *treeImport) bad(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	run.result.Bad = append(run.result.Bad, text)
	_, _ = fmt.Fprintf(run.t.Err, "bad: %s\n", strings.Join(strings.Fields(printable(text)), " "))
}

// publish publishes what is planned, each image's oldest version first: Incus and LXD take the one published last for the newest.
func (run *treeImport) publish(ctx context.Context) error {
	exchanged := ""
	for _, v := range run.versions {
		if v.state != importPlanned {
			continue
		}
		if v.request.Image != exchanged {
			// A token of the image's own outlives that of a CI platform.
			if err := run.client.Exchange(ctx, v.request.Image); err != nil {
				return err
			}
			exchanged = v.request.Image
		}
		err := run.publishVersion(ctx, v)
		var refused *client.Problem
		switch {
		case err == nil:
		case run.cmd.KeepGoing && ctx.Err() == nil && (errors.As(err, &refused) && refused.Status != 401 || errors.Is(err, errOtherFingerprint)):
			v.state = importBad
			run.bad("%s %s: %v", v.request.Image, v.request.Version, err)
		default:
			return fmt.Errorf("%s %s: %w", v.request.Image, v.request.Version, err)
		}
	}
	return nil
}

// errOtherFingerprint says that the server made another image of the files than the tree.
var errOtherFingerprint = errors.New("the published image has another fingerprint")

func (run *treeImport) publishVersion(ctx context.Context, v *plannedVersion) (err error) {
	run.progress.note("publishing %s %s", v.request.Image, v.request.Version)
	b := &bundle{request: v.request}
	defer b.close()
	for i, image := range v.images {
		declared := v.request.Variants[i]
		for n, f := range tree.Files(image) {
			file, err := run.tree.File(f)
			if err != nil {
				return err
			}
			b.files = append(b.files, localFile{path: f.Path, file: file, variant: i, format: declared.Files[n].Format, size: f.Size, sha256: f.SHA256})
		}
	}
	result, err := (&publishRun{client: run.client, progress: run.progress, bundle: b}).run(ctx)
	if err != nil {
		return err
	}
	version, err := run.client.VersionAt(ctx, result.VersionURL)
	if err != nil {
		return fmt.Errorf("published, but not read back: %w", err)
	}
	if difference := v.differsFrom(version); difference != "" {
		return fmt.Errorf("%w: %s", errOtherFingerprint, difference)
	}
	v.state, v.url = importPublished, result.VersionURL
	if result.Existed {
		v.state = importExisted
	}
	return nil
}

// report is the summary at the end, whatever the end is.
func (run *treeImport) report() error {
	count := map[string]int{}
	for _, v := range run.versions {
		count[v.state]++
		run.result.Versions = append(run.result.Versions, v.report())
	}
	if run.cmd.JSON {
		return writeJSON(run.t.Out, run.result)
	}
	if len(run.versions) == 0 {
		return nil
	}
	return run.result.print(run.t.Out, count)
}

func (r *imported) print(w io.Writer, count map[string]int) error {
	t := newTable(w)
	t.row("IMAGE\tVERSION\tVARIANTS\tALIASES\tSIZE\tSTATE")
	for _, v := range r.Versions {
		var variants []string
		var bytes int64
		for _, variant := range v.Variants {
			variants = append(variants, variant.Variant)
			bytes += variant.Size
		}
		t.row("%s\t%s\t%s\t%s\t%s\t%s", v.Image, v.Version, strings.Join(variants, ", "), orDash(strings.Join(v.Aliases, ", ")), size(bytes), v.State)
	}
	var sums []string
	for _, state := range []string{importPublished, importPlanned, importExisted, importBad} {
		if count[state] > 0 {
			sums = append(sums, fmt.Sprintf("%d %s", count[state], state))
		}
	}
	t.row("%s", strings.Join(sums, ", "))
	return t.flush()
}

func (v *plannedVersion) report() importedVersion {
	out := importedVersion{Image: v.request.Image, Version: v.request.Version, State: v.state, Aliases: slices.Clone(v.request.Aliases), URL: v.url}
	if out.Aliases == nil {
		out.Aliases = []string{}
	}
	for i, image := range v.images {
		variant := importedVariant{Variant: variantName(v.request.Variants[i]), Product: image.Product, Serial: image.Serial, Fingerprint: image.Fingerprint}
		for _, f := range tree.Files(image) {
			variant.Size += f.Size
		}
		out.Variants = append(out.Variants, variant)
	}
	return out
}
