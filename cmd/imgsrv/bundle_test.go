package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// Beginnings of files, as much as tells their kind.
const (
	squashfs = "hsqs and the rest of it"
	qcow2    = "QFI\xfb and the rest of it"
)

func metadataTarball(t *testing.T) string {
	t.Helper()
	data, err := incus.Metadata{Architecture: "amd64", CreationDate: time.Unix(1, 0), Name: "x", OS: "debian", Release: "bookworm", Version: "1"}.Tarball()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func write(t *testing.T, contents ...string) (paths []string) {
	t.Helper()
	dir := t.TempDir()
	for i, content := range contents {
		path := filepath.Join(dir, "file"+string(rune('0'+i)))
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func hexSum(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func TestFilesAreKnownByTheirContent(t *testing.T) {
	t.Parallel()
	metadata := metadataTarball(t)
	for name, c := range map[string]struct {
		files   []string
		cmd     PublishCmd
		kind    string
		formats []string
		refused string // part of the error
		usage   bool
	}{
		"a disk":                     {files: []string{qcow2}, kind: "virtual-machine", formats: []string{"disk.qcow2"}},
		"metadata and a root":        {files: []string{metadata, squashfs}, kind: "container", formats: []string{"incus.tar.xz", "rootfs.squashfs"}},
		"metadata and a disk":        {files: []string{metadata, qcow2}, kind: "virtual-machine", formats: []string{"incus.tar.xz", "disk.qcow2"}},
		"what has no mark is raw":    {files: []string{"bytes"}, kind: "virtual-machine", formats: []string{"disk.raw"}},
		"names that were given":      {files: []string{"bytes", qcow2}, cmd: PublishCmd{Format: []string{"firmware.fd", ""}}, kind: "virtual-machine", formats: []string{"firmware.fd", "disk.qcow2"}},
		"a type that was given":      {files: []string{squashfs, qcow2}, cmd: PublishCmd{Type: "container"}, kind: "container", formats: []string{"rootfs.squashfs", "disk.qcow2"}},
		"metadata alone":             {files: []string{metadata}, refused: "--type", usage: true},
		"both types":                 {files: []string{squashfs, qcow2}, refused: "--type", usage: true},
		"two of one format":          {files: []string{qcow2, qcow2}, refused: "--format", usage: true},
		"fewer formats than files":   {files: []string{qcow2, squashfs}, cmd: PublishCmd{Format: []string{"a"}}, refused: "--format", usage: true},
		"an empty file can't be one": {files: []string{""}, refused: "is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := c.cmd
			cmd.Files, cmd.Image, cmd.Version, cmd.Architecture, cmd.Flavour = write(t, c.files...), "a", "1", "x86_64", "default"
			b, err := cmd.bundle(t.Context(), newProgress(Terminal{}, true))
			if c.refused != "" {
				var usage *usageError
				if err == nil || !strings.Contains(err.Error(), c.refused) || errors.As(err, &usage) != c.usage {
					t.Errorf("error %v, want one with %q", err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer b.close()
			want := client.NewVariant{Architecture: "x86_64", Type: c.kind, Flavour: "default"}
			for i, format := range c.formats {
				want.Files = append(want.Files, client.NewFile{Format: format, Size: int64(len(c.files[i])), SHA256: hexSum(c.files[i])})
			}
			if diff := cmp.Diff([]client.NewVariant{want}, b.request.Variants); diff != "" {
				t.Errorf("declared (-want +got):\n%s", diff)
			}
		})
	}
}

func diskBundle() *bundle {
	return &bundle{request: client.NewImage{Image: "a", Version: "1", Variants: []client.NewVariant{{Architecture: "x86_64", Type: "virtual-machine", Flavour: "default",
		Files: []client.NewFile{{Format: "disk.qcow2", Size: 4, SHA256: hexSum("disk")}}}}}}
}

func TestSessionOfAnEarlierRunIsTakenUpOnlyForTheSameFiles(t *testing.T) {
	t.Parallel()
	same := client.UploadFile{Variant: "amd64.virtual-machine.default", Format: "disk.qcow2", Size: 4, SHA256: hexSum("disk")}
	for name, c := range map[string]struct {
		change func(*client.Upload)
		says   string
	}{
		"the same":        {func(*client.Upload) {}, ""},
		"another size":    {func(u *client.Upload) { u.Files[0].Size = 5 }, "5 bytes"},
		"another digest":  {func(u *client.Upload) { u.Files[0].SHA256 = hexSum("other") }, "another file"},
		"no digest":       {func(u *client.Upload) { u.Files[0].SHA256 = "" }, "doesn't say"},
		"another variant": {func(u *client.Upload) { u.Files[0].Variant = "arm64.virtual-machine.default" }, "doesn't declare"},
		"another format":  {func(u *client.Upload) { u.Files[0].Format = "disk.raw" }, "doesn't declare"},
		"more files":      {func(u *client.Upload) { u.Files = append(u.Files, client.UploadFile{}) }, "2 files"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := &client.Upload{Files: []client.UploadFile{same}}
			c.change(u)
			got := diskBundle().differsFromUpload(u)
			if (got == "") != (c.says == "") || !strings.Contains(got, c.says) {
				t.Errorf("got %q, want %q", got, c.says)
			}
		})
	}
}

func TestPublishedVersionIsTheSameOnlyWithTheSameFiles(t *testing.T) {
	t.Parallel()
	made := client.Format{Format: "incus.tar.xz", Digest: "sha256:" + hexSum("made by the server")}
	disk := client.Format{Format: "disk.qcow2", Digest: "sha256:" + hexSum("disk")}
	version := func(architecture string, formats ...client.Format) *client.Version {
		return &client.Version{Variants: []client.Variant{{Architecture: architecture, Type: "virtual-machine", Flavour: "default", Formats: formats}}}
	}
	if got := diskBundle().differsFrom(version("amd64", made, disk)); got != "" {
		t.Errorf("the same: %q", got)
	}
	other := disk
	other.Digest = "sha256:" + hexSum("other")
	for name, v := range map[string]*client.Version{"another file": version("amd64", other), "no disk.qcow2": version("amd64", made), "no variant": version("arm64", disk)} {
		if got := diskBundle().differsFrom(v); !strings.Contains(got, name) {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestDownloadChoosesOrNamesTheChoices(t *testing.T) {
	t.Parallel()
	native := client.Variant{Architecture: hostArchitecture(), Type: "container", Flavour: "default", Root: "rootfs.squashfs", Formats: []client.Format{{Format: "incus.tar.xz"}, {Format: "rootfs.squashfs"}}}
	cloud := native
	cloud.Flavour = "cloud"
	foreign := client.Variant{Architecture: "s390x", Type: "container", Flavour: "default", Formats: []client.Format{{Format: "a"}, {Format: "b"}}}
	for name, c := range map[string]struct {
		variants []client.Variant
		given    string
		want     string
	}{
		"the only one":   {[]client.Variant{foreign}, "", foreign.Name()},
		"this machine's": {[]client.Variant{foreign, native}, "", native.Name()},
		"the named one":  {[]client.Variant{foreign, native, cloud}, cloud.Name(), cloud.Name()},
		"two for us":     {[]client.Variant{foreign, native, cloud}, "", ""},
		"one that isn't": {[]client.Variant{native}, "x", ""},
	} {
		v, err := chooseVariant(&client.Version{Variants: c.variants}, c.given)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%s: got %s", name, v.Name())
		case c.want == "":
			for _, choice := range c.variants {
				if !strings.Contains(err.Error(), choice.Name()) {
					t.Errorf("%s: the error doesn't name %s: %v", name, choice.Name(), err)
				}
			}
		case err != nil || v.Name() != c.want:
			t.Errorf("%s: got %v (%v), want %s", name, v, err, c.want)
		}
	}
	if f, err := chooseFormat(&native, ""); err != nil || f.Format != "rootfs.squashfs" {
		t.Errorf("without a name: %v (%v), want the root", f, err)
	}
	if f, err := chooseFormat(&native, "incus.tar.xz"); err != nil || f.Format != "incus.tar.xz" {
		t.Errorf("by name: %v (%v)", f, err)
	}
	for _, name := range []string{"", "c"} {
		if _, err := chooseFormat(&foreign, name); err == nil || !strings.Contains(err.Error(), "a, b") {
			t.Errorf("format %q without a root: %v, want the choices", name, err)
		}
	}
}

func TestFileThatShrinksWhileItIsReadIsRefused(t *testing.T) {
	t.Parallel()
	path := write(t, "some bytes")[0]
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b := &bundle{files: []localFile{{path: path, file: f, size: 100}}}
	defer b.close()
	var out bytes.Buffer
	if err := b.hash(t.Context(), newProgress(Terminal{Err: &out}, false)); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("error %v", err)
	}
}
