package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// bundle is what a publish command is about: open files, and the request that declares them.
type bundle struct {
	request     client.NewImage
	files       []localFile // of the variants
	attachments []localFile // of the version as a whole; their format is the name
}

// localFile is a file on this machine.
type localFile struct {
	path    string
	file    *os.File
	variant int    // its variant's place in the request; meaningless for an attachment
	format  string // "" until it is known
	guessed bool   // the content doesn't tell the format
	size    int64
	sha256  string // hex
}

func (b *bundle) close() {
	for _, f := range b.all() {
		if f.file != nil {
			_ = f.file.Close() // only read
		}
	}
}

// all are the files to be uploaded.
func (b *bundle) all() []*localFile {
	var all []*localFile
	for _, files := range [][]localFile{b.files, b.attachments} {
		for i := range files {
			all = append(all, &files[i])
		}
	}
	return all
}

func (b *bundle) file(variant, format string) *localFile {
	if variant == client.AttachmentVariant {
		for i := range b.attachments {
			if b.attachments[i].format == format {
				return &b.attachments[i]
			}
		}
	}
	for i := range b.files {
		if f := &b.files[i]; f.format == format && variantName(b.request.Variants[f.variant]) == variant {
			return f
		}
	}
	// The session was compared with the request, so this is a fault of the program.
	panic("no file of format " + format)
}

// variantName is a declared variant's name, with its architecture by the server's name for it.
func variantName(v client.NewVariant) string {
	architecture := v.Architecture
	if canonical, ok := incus.Canonical(architecture); ok {
		architecture = canonical
	}
	return architecture + "." + v.Type + "." + v.Flavour
}

// bundle looks at the files, names what the flags left open, and hashes them.
func (cmd *PublishCmd) bundle(ctx context.Context, p *progress) (_ *bundle, err error) {
	b := &bundle{request: client.NewImage{
		Image: cmd.Image, Version: cmd.Version, OS: cmd.OS, Release: cmd.Release, Description: cmd.Description,
		Traits: client.Traits{ReleaseTitle: cmd.ReleaseTitle, Codename: cmd.Codename, SupportEOL: cmd.SupportEOL, Supported: cmd.Supported,
			Labels: cmd.Label, Requirements: cmd.Requirement},
		CloudInit: cmd.CloudInit, Visibility: cmd.Visibility, Aliases: cmd.Alias, Derive: cmd.Derive,
	}}
	if err := cmd.declare(b); err != nil {
		return nil, err
	}
	for _, path := range cmd.Attach {
		b.attachments = append(b.attachments, localFile{path: path, format: filepath.Base(path)})
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	for _, f := range b.all() {
		if f.file, err = os.Open(f.path); err != nil { //nolint:gosec // named on the command line
			return nil, err // says the path
		}
	}
	if err := b.measure(); err != nil {
		return nil, err
	}
	for i := range b.request.Variants {
		if err := b.identify(i); err != nil {
			return nil, err
		}
	}
	if err := b.hash(ctx, p); err != nil {
		return nil, err
	}
	for _, f := range b.files {
		v := &b.request.Variants[f.variant]
		v.Files = append(v.Files, client.NewFile{Format: f.format, Size: f.size, SHA256: f.sha256})
	}
	for _, a := range b.attachments {
		b.request.Attachments = append(b.request.Attachments, client.NewAttachment{Name: a.format, Size: a.size, SHA256: a.sha256})
	}
	return b, nil
}

// measure gives each file its size.
func (b *bundle) measure() error {
	for _, f := range b.all() {
		info, err := f.file.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a file", f.path)
		}
		if f.size = info.Size(); f.size == 0 {
			return fmt.Errorf("%s is empty", f.path)
		}
	}
	seen := map[string]string{}
	for _, a := range b.attachments {
		if other, taken := seen[a.format]; taken {
			return usagef("%s and %s would both be the attachment %s: rename one", other, a.path, a.format)
		}
		seen[a.format] = a.path
	}
	return nil
}

// hash computes each file's SHA-256.
func (b *bundle) hash(ctx context.Context, p *progress) error {
	var total, done int64
	for _, f := range b.all() {
		total += f.size
	}
	p.start("checking", total)
	defer p.stop()
	buffer := make([]byte, 1<<20)
	for _, f := range b.all() {
		sum := sha256.New()
		var n int64
		for n < f.size {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			got, err := f.file.ReadAt(buffer[:min(int64(len(buffer)), f.size-n)], n)
			sum.Write(buffer[:got])
			n += int64(got)
			p.set(done + n)
			if errors.Is(err, io.EOF) && n < f.size {
				return fmt.Errorf("%s became shorter while it was read: is it still being written?", f.path)
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read %s: %w", f.path, err)
			}
		}
		f.sha256 = hex.EncodeToString(sum.Sum(nil))
		done += f.size
	}
	return nil
}

// differsFrom says how a published version differs from the bundle, "" if it has all its files.
func (b *bundle) differsFrom(v *client.Version) string {
	for _, variant := range b.request.Variants {
		if difference := variantDiffers(v, variant); difference != "" {
			return difference
		}
	}
	return b.attachmentsDiffer(v)
}

func variantDiffers(v *client.Version, declared client.NewVariant) string {
	name := variantName(declared)
	for i := range v.Variants {
		if v.Variants[i].Name() != name {
			continue
		}
		have := map[string]string{}
		for _, f := range v.Variants[i].Formats {
			have[f.Format] = hexOf(f.Digest)
		}
		for _, f := range declared.Files {
			switch have[f.Format] {
			case f.SHA256:
			case "":
				return "it has no " + f.Format
			default:
				return "its " + f.Format + " is another file"
			}
		}
		return ""
	}
	return "it has no variant " + name
}

// attachmentsDiffer is as differsFrom, for the attachments.
func (b *bundle) attachmentsDiffer(v *client.Version) string {
	have := map[string]string{}
	for _, a := range v.Attachments {
		have[a.Name] = hexOf(a.Digest)
	}
	for _, a := range b.request.Attachments {
		switch have[a.Name] {
		case a.SHA256:
		case "":
			return "it has no attachment " + a.Name
		default:
			return "its attachment " + a.Name + " is another file"
		}
	}
	return ""
}

// differsFromUpload says how another session differs from the bundle, "" if it declares the same files.
func (b *bundle) differsFromUpload(u *client.Upload) string {
	want := len(b.request.Attachments)
	for _, v := range b.request.Variants {
		want += len(v.Files)
	}
	if len(u.Files) != want {
		return fmt.Sprintf("it declares %d files, this one %d", len(u.Files), want)
	}
	for _, v := range b.request.Variants {
		for _, f := range v.Files {
			if difference := differsFromDeclared(u, variantName(v), f); difference != "" {
				return difference
			}
		}
	}
	for _, a := range b.request.Attachments {
		if difference := differsFromDeclared(u, client.AttachmentVariant, client.NewFile{Format: a.Name, Size: a.Size, SHA256: a.SHA256}); difference != "" {
			return difference
		}
	}
	return ""
}

func differsFromDeclared(u *client.Upload, variant string, f client.NewFile) string {
	declared, ok := u.File(variant, f.Format)
	switch {
	case !ok:
		return fmt.Sprintf("it doesn't declare %s of %s", f.Format, variant)
	case declared.Size != f.Size:
		return fmt.Sprintf("its %s has %d bytes, this one %d", f.Format, declared.Size, f.Size)
	case declared.SHA256 == "":
		return fmt.Sprintf("it doesn't say which %s it is for", f.Format)
	case hexOf(declared.SHA256) != f.SHA256:
		return fmt.Sprintf("its %s is another file", f.Format)
	}
	return ""
}

// hexOf is a digest without its algorithm.
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }
