package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
)

// DownloadCmd fetches one file of a published version.
type DownloadCmd struct {
	clientFlags `embed:""`

	What    string `arg:"" name:"image" help:"IMAGE, or IMAGE/VERSION, or IMAGE/ALIAS. Without a version: the alias latest, else what was published last."`
	Variant string `help:"Variant, such as amd64.virtual-machine.default. Default: the only one, else the one for this machine's architecture." placeholder:"NAME"`
	Format  string `help:"Format, such as disk.qcow2. Default: what holds the disk or root file system." placeholder:"NAME"`
	Output  string `short:"o" help:"File to write; a folder to write into; - for standard output. Default: the format's or attachment's name, in the current folder." placeholder:"PATH"`

	Attachment string `help:"Attachment, such as sbom.spdx.json: a file of the version as a whole, and not of a variant." placeholder:"NAME"`

	Force bool `help:"Write over a file that exists."`

	Verify    bool   `help:"Check the file against checksums that the server's key has signed. Needs --public-key."`
	PublicKey string `help:"Public key of the server, or a file with it; implies --verify. Take it once from where you trust it: imgsrv signing-key, on the server itself, prints it." placeholder:"KEY|FILE"`
}

// downloaded is what the command writes with --json.
type downloaded struct {
	Image   string `json:"image"`
	Version string `json:"version"`
	Variant string `json:"variant,omitempty"`
	Format  string `json:"format,omitempty"`

	Attachment string `json:"attachment,omitempty"`

	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
	// SignedBy is the id of the key that has signed the checksum; "" for a download that wasn't verified.
	SignedBy string `json:"signed_by,omitempty"`
}

// Run downloads.
func (cmd *DownloadCmd) Run(ctx context.Context, t Terminal) error {
	if cmd.JSON && cmd.Output == "-" {
		return usagef("--json and -o - both want standard output")
	}
	if cmd.Attachment != "" && (cmd.Variant != "" || cmd.Format != "") {
		return usagef("an attachment belongs to the whole version: leave --variant and --format out")
	}
	key, verify, err := cmd.pinnedKey()
	if err != nil {
		return err
	}
	p := newProgress(t, cmd.Quiet)
	c, err := cmd.connect(p)
	if err != nil {
		return err
	}
	var v *client.Version
	var signed *signedVersion
	if verify {
		if signed, err = cmd.signed(ctx, c, key); err != nil {
			return err
		}
		v = signed.manifest
	} else if v, err = cmd.version(ctx, c); err != nil {
		return err
	}
	chosen, err := cmd.choose(c, v)
	if err != nil {
		return err
	}
	fetch := client.Fetch{URL: chosen.url, SHA256: hexOf(chosen.digest), Force: cmd.Force}
	var signedBy, signature string
	if verify {
		if fetch.SHA256, err = signed.sum(chosen); err != nil {
			return err
		}
		signedBy = key.ID()
		signature = ", signed by " + signedBy
	}
	p.start(chosen.name(), chosen.size)
	defer p.stop()
	fetch.Progress = func(done, _ int64) { p.set(done) }
	fetch.Checking = fetch.Progress
	if cmd.Output == "-" {
		_, err := c.DownloadTo(ctx, t.Out, fetch)
		return interrupted(ctx, err, "what was written is not the whole file")
	}
	target := cmd.Output
	switch info, err := os.Stat(target); {
	case target == "":
		target = chosen.name()
	case err == nil && info.IsDir():
		target = filepath.Join(target, chosen.name())
	}
	fetched, err := c.Download(ctx, target, fetch)
	p.stop()
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists: choose another name with -o, or write over it with --force", target)
	}
	if err != nil {
		return interrupted(ctx, err, "run the same command again to go on from "+target+client.PartSuffix)
	}
	if cmd.JSON {
		return writeJSON(t.Out, downloaded{Image: v.Image, Version: v.Version, Variant: chosen.variant, Format: chosen.format, Attachment: chosen.attachment,
			Path: target, Size: fetched.Size, SHA256: fetched.SHA256, SignedBy: signedBy})
	}
	what := chosen.variant
	if chosen.attachment != "" {
		what = "attachment"
	}
	_, err = fmt.Fprintf(t.Out, "%s  %s %s %s, %s, sha256 %s%s\n", target, v.Image, v.Version, what, size(fetched.Size), fetched.SHA256, signature)
	return err
}

// choice is the file that a command is about: a format of a variant, or an attachment.
type choice struct {
	variant, format, attachment string
	url, digest                 string
	size                        int64 // bytes
}

func (f *choice) name() string { return f.format + f.attachment }

// choose finds the file that the flags mean. Its URL has the version's own name: an alias may move while the bytes come.
func (cmd *DownloadCmd) choose(c *client.Client, v *client.Version) (*choice, error) {
	if cmd.Attachment != "" {
		var names []string
		for _, a := range v.Attachments {
			if a.Name == cmd.Attachment {
				return &choice{attachment: a.Name, url: c.AttachmentURL(v.Image, v.Version, a.Name), digest: a.Digest, size: a.Size}, nil
			}
			names = append(names, a.Name)
		}
		if len(names) == 0 {
			return nil, fmt.Errorf("%s %s has no attachments", v.Image, v.Version)
		}
		return nil, fmt.Errorf("%s %s has no attachment %s, but: %s", v.Image, v.Version, cmd.Attachment, strings.Join(names, ", "))
	}
	variant, err := chooseVariant(v, cmd.Variant)
	if err != nil {
		return nil, err
	}
	format, err := chooseFormat(variant, cmd.Format)
	if err != nil {
		return nil, err
	}
	return &choice{variant: variant.Name(), format: format.Format, digest: format.Digest, size: format.Size,
		url: c.FormatURL(v.Image, v.Version, variant.Name(), format.Format)}, nil
}

// version finds the version that the argument means.
func (cmd *DownloadCmd) version(ctx context.Context, c *client.Client) (*client.Version, error) {
	image, name, given, err := cmd.names()
	if err != nil {
		return nil, err
	}
	if given {
		return c.Version(ctx, image, name)
	}
	v, err := c.Version(ctx, image, "latest")
	if !client.IsProblem(err, client.CodeNotFound) {
		return v, err
	}
	newest, err := newestVersion(ctx, c, image)
	if err != nil {
		return nil, err
	}
	return c.Version(ctx, image, newest)
}

// names is what the argument says; given is false where it names no version.
func (cmd *DownloadCmd) names() (image, version string, given bool, err error) {
	image, version, given = strings.Cut(cmd.What, "/")
	if image == "" || given && version == "" {
		return "", "", false, usagef("say what to download as IMAGE, IMAGE/VERSION or IMAGE/ALIAS, not %q", cmd.What)
	}
	return image, version, given, nil
}

// newestVersion is the name of the version that was published last.
func newestVersion(ctx context.Context, c *client.Client, image string) (string, error) {
	for newest, err := range c.Versions(ctx, image) {
		return newest.Version, err
	}
	return "", fmt.Errorf("image %s has no published version", image)
}

// chooseVariant finds the named variant; without a name the only one, or the only one for this machine.
func chooseVariant(v *client.Version, name string) (*client.Variant, error) {
	var names []string
	var native []*client.Variant
	for i := range v.Variants {
		variant := &v.Variants[i]
		names = append(names, variant.Name())
		if variant.Name() == name || name == "" && len(v.Variants) == 1 {
			return variant, nil
		}
		if variant.Architecture == hostArchitecture() {
			native = append(native, variant)
		}
	}
	if name != "" {
		return nil, fmt.Errorf("%s %s has no variant %s, but: %s", v.Image, v.Version, name, strings.Join(names, ", "))
	}
	if len(native) == 1 {
		return native[0], nil
	}
	return nil, fmt.Errorf("%s %s has several variants: choose one with --variant: %s", v.Image, v.Version, strings.Join(names, ", "))
}

// chooseFormat finds the named format; without a name the root, or the only one.
func chooseFormat(v *client.Variant, name string) (*client.Format, error) {
	var names []string
	published := 0 // what was made since doesn't make the choice harder
	for _, f := range v.Formats {
		if f.MadeBy == nil {
			published++
		}
	}
	for i := range v.Formats {
		f := &v.Formats[i]
		names = append(names, f.Format)
		if name == "" && (f.Format == v.Root || published == 1 && f.MadeBy == nil) || name != "" && f.Format == name {
			return f, nil
		}
	}
	if name != "" {
		return nil, fmt.Errorf("variant %s has no format %s, but: %s", v.Name(), name, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("variant %s has several formats: choose one with --format: %s", v.Name(), strings.Join(names, ", "))
}
