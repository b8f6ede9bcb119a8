package incus_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"

	"github.com/imgsrv/imgsrv/internal/incus"
)

// member is a file of a tarball.
type member struct {
	name, content string
	kind          byte // 0: a regular file
}

func tarball(t testing.TB, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		header := &tar.Header{Name: m.name, Size: int64(len(m.content)), Mode: 0o644, Typeflag: m.kind}
		if m.kind == 0 {
			header.Typeflag = tar.TypeReg
		}
		if m.kind == tar.TypeSymlink {
			header.Linkname = "elsewhere"
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// qcow2Head is a version 3 header as far as it is looked at: version, offset of the backing file's name, incompatible features.
func qcow2Head(backing, features byte) string {
	head := make([]byte, 512)
	copy(head, "QFI\xfb\x00\x00\x00\x03")
	head[15], head[79] = backing, features
	return string(head)
}

const sound = "architecture: x86_64\ncreation_date: 1795550437\n"

func TestTarballsOfPublishersAreRead(t *testing.T) {
	t.Parallel()
	created := time.Unix(1795550437, 0).UTC()
	templates := "templates:\n  /etc/hostname: {when: [create], template: hostname.tpl}\n"
	for name, c := range map[string]struct {
		members []member
		want    incus.Tarball
	}{
		"metadata": {[]member{{name: "./metadata.yaml", content: sound + "expiry_date: 1895550437\nproperties: {os: debian, release: 12, \"requirements.secureboot\": false}\n"}},
			incus.Tarball{Architecture: "amd64", CreationDate: created, ExpiryDate: time.Unix(1895550437, 0).UTC(),
				Properties: map[string]string{"os": "debian", "release": "12", "requirements.secureboot": "false"}}},
		"templates": {[]member{{name: "metadata.yaml", content: sound + templates}, {name: "templates/", kind: tar.TypeDir}, {name: "templates/hostname.tpl", content: "x"}},
			incus.Tarball{Architecture: "amd64", CreationDate: created, Templates: []string{"/etc/hostname"}}},
		"a container": {[]member{{name: "rootfs/", kind: tar.TypeDir}, {name: "rootfs/bin/sh", content: "sh"}, {name: "metadata.yaml", content: sound}},
			incus.Tarball{Architecture: "amd64", CreationDate: created, Root: "container"}},
		"a container with its templates last": {[]member{{name: "metadata.yaml", content: sound + templates}, {name: "rootfs/a", content: "a"}, {name: "templates/hostname.tpl", content: "x"}},
			incus.Tarball{Architecture: "amd64", CreationDate: created, Root: "container", Templates: []string{"/etc/hostname"}}},
		"a virtual machine": {[]member{{name: "metadata.yaml", content: sound}, {name: "./rootfs.img", content: qcow2Head(0, 0)}},
			incus.Tarball{Architecture: "amd64", CreationDate: created, Root: "virtual-machine"}},
	} {
		got, err := incus.ReadTarball(t.Context(), bytes.NewReader(tarball(t, c.members...)), 1<<20)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestTarballsThatClientsStumbleOnAreRefused(t *testing.T) {
	t.Parallel()
	yaml := func(content string) []member { return []member{{name: "metadata.yaml", content: content}} }
	disk := func(content string) []member {
		return []member{{name: "metadata.yaml", content: sound}, {name: "rootfs.img", content: content}}
	}
	for says, members := range map[string][]member{
		"it has no metadata.yaml":                  {{name: "folder/metadata.yaml", content: sound}},
		"is there twice":                           append(yaml(sound), yaml(sound)...),
		"is no regular file":                       {{name: "metadata.yaml", kind: tar.TypeSymlink}},
		"metadata.yaml can't be read":              yaml("a: b: c"),
		"longer than 1 MiB":                        yaml(sound + strings.Repeat("#", 1<<20)),
		"cannot unmarshal":                         yaml(sound + "properties: {os: [debian]}\n"),
		"the architecture \"vax\"":                 yaml("architecture: vax\ncreation_date: 1\n"),
		"the architecture \"\"":                    yaml("creation_date: 1\n"),
		"the creation_date 0":                      yaml("architecture: x86_64\n"),
		"the creation_date -5":                     yaml("architecture: x86_64\ncreation_date: -5\n"),
		"the expiry_date 7":                        yaml(sound + "expiry_date: 7\n"),
		"control characters":                       yaml(sound + "properties: {os: \"a\\0b\"}\n"),
		"there is no file templates/hostname.tpl":  yaml(sound + "templates: {/etc/hostname: {template: hostname.tpl}}\n"),
		"doesn't name a file in templates/":        yaml(sound + "templates: {/etc/hostname: {template: ../../etc/shadow}}\n"),
		"\"/etc/x\" in metadata.yaml doesn't name": yaml(sound + "templates: {/etc/x: }\n"),
		"no file templates/link":                   append(yaml(sound+"templates: {/etc/x: {template: link}}\n"), member{name: "templates/link", kind: tar.TypeSymlink}),
		"leads out of it":                          append(yaml(sound), member{name: "templates/../../x", content: "x"}),
		"rootfs.img is no qcow2 disk":              disk(strings.Repeat("x", 512)),
		"needs another image":                      disk(qcow2Head(96, 0)),
		"has its data in another file":             disk(qcow2Head(0, 4)),
		"both rootfs/ and rootfs.img":              {{name: "rootfs/a"}, {name: "rootfs.img", content: qcow2Head(0, 0)}, {name: "metadata.yaml", content: sound}},
		"more than 1000 templates":                 manyTemplates(1001),
		"it unpacks to more than 4 MiB":            append(manyTemplates(1), member{name: "filler", content: strings.Repeat("x", 5<<20)}),
	} {
		_, err := incus.ReadTarball(t.Context(), bytes.NewReader(tarball(t, members...)), 4<<20)
		if !errors.Is(err, incus.ErrTarball) || !strings.Contains(err.Error(), says) {
			t.Errorf("error is %v, want one that says %q", err, says)
		}
	}
	whole := tarball(t, yaml(sound)...)
	if _, err := incus.ReadTarball(t.Context(), bytes.NewReader(whole[:530]), 1<<20); !errors.Is(err, incus.ErrTarball) || !strings.Contains(err.Error(), "no sound tar archive") {
		t.Errorf("half an archive: error is %v", err)
	}
	if _, err := incus.ReadTarball(t.Context(), strings.NewReader("text"), 1<<20); !errors.Is(err, incus.ErrTarball) {
		t.Errorf("no archive: error is %v", err)
	}
}

func manyTemplates(n int) []member {
	var members []member
	for i := range n {
		members = append(members, member{name: fmt.Sprintf("templates/%d", i)})
	}
	return members
}

func TestAReadersErrorIsNotTakenForContent(t *testing.T) {
	t.Parallel()
	whole := tarball(t, member{name: "metadata.yaml", content: sound})
	failing := io.MultiReader(bytes.NewReader(whole[:600]), iotestErr{})
	if _, err := incus.ReadTarball(t.Context(), failing, 1<<20); !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, incus.ErrTarball) {
		t.Errorf("error is %v, want the reader's", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := incus.ReadTarball(ended, bytes.NewReader(whole), 1<<20); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want the context's", err)
	}
}

type iotestErr struct{}

func (iotestErr) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestWhatIsMadeCanBeRead(t *testing.T) {
	t.Parallel()
	made := bookworm()
	made.CloudInit, made.Requirements = true, map[string]string{"secureboot": "false", "cdrom_agent": "true"}
	made.ExpiryDate = made.CreationDate.AddDate(2, 0, 0)
	data, err := made.Tarball()
	if err != nil {
		t.Fatal(err)
	}
	again, err := made.Tarball()
	if err != nil || !bytes.Equal(data, again) {
		t.Errorf("made again it has other bytes, or %v", err)
	}
	unpacked, err := xz.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	got, err := incus.ReadTarball(t.Context(), unpacked, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	const seed = "/var/lib/cloud/seed/nocloud-net/"
	want := []string{seed + "meta-data", seed + "network-config", seed + "user-data", seed + "vendor-data"}
	if diff := cmp.Diff(want, got.Templates); diff != "" {
		t.Errorf("templates (-want +got):\n%s", diff)
	}
	if got.Properties["requirements.secureboot"] != "false" || got.Properties["requirements.cdrom_agent"] != "true" || got.ExpiryDate.Unix() != made.ExpiryDate.Unix() || got.Root != "" {
		t.Errorf("read %+v", got)
	}
}

func FuzzReadTarball(f *testing.F) {
	f.Add(tarball(f, member{name: "metadata.yaml", content: sound + "templates: {/a: {template: b}}\n"}, member{name: "templates/b"}))
	f.Add(tarball(f, member{name: "metadata.yaml", content: sound}, member{name: "rootfs.img", content: qcow2Head(0, 0)}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		got, err := incus.ReadTarball(t.Context(), bytes.NewReader(archive), 1<<20)
		if err != nil && !errors.Is(err, incus.ErrTarball) {
			t.Fatalf("error %v is not of the content", err)
		}
		if err == nil && (got.Architecture == "" || got.CreationDate.Unix() <= 0) {
			t.Fatalf("accepted %+v", got)
		}
	})
}
