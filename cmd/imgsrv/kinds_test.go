package main

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/internal/lxctest"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

// member is a file of a tarball that a publisher made.
type member struct{ name, content string }

// tarGz packs files as a publisher does.
func tarGz(t *testing.T, members ...member) string {
	t.Helper()
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	archive := tar.NewWriter(packed)
	for _, m := range members {
		if err := archive.WriteHeader(&tar.Header{Name: m.name, Size: int64(len(m.content)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(archive, m.content); err != nil {
			t.Fatal(err)
		}
	}
	for _, closer := range []io.Closer{archive, packed} {
		if err := closer.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.String()
}

func yamlFor(architecture, more string) member {
	return member{"metadata.yaml", "architecture: " + architecture + "\ncreation_date: 1763985600\nproperties:\n  os: Debian\n  release: 12\n" + more}
}

// packed is a folder with one file, as a tool packs it: a root as containers have it.
func packed(t *testing.T, tool string, args ...string) string {
	t.Helper()
	testtool.Need(t, tool)
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "root", "etc"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root", "etc", "hostname"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), tool, args...)
	command.Dir = dir
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
	content, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// One command publishes all kinds of image side by side, with all that can be said of a version; a real client finds each by each of
// its names, and what it downloads hashes to the fingerprint.
func TestEveryKindOfImageIsListedAndExported(t *testing.T) {
	t.Parallel()
	disk := string(qcow2Image(t, 100_000))
	squash := packed(t, "mksquashfs", "root", "out", "-quiet", "-no-progress")
	rootXZ := packed(t, "tar", "-cJf", "out", "-C", "root", ".")
	ours := tarGz(t, yamlFor("x86_64", "  requirements.nesting: true\nexpiry_date: 1900000000\ntemplates:\n  /etc/hostname: {when: [create], template: hostname.tpl}\n"), member{"templates/hostname.tpl", "{{ instance.name }}\n"})
	whole := tarGz(t, yamlFor("amd64", ""), member{"rootfs/etc/hostname", "x\n"})
	wholeVM := tarGz(t, member{"rootfs.img", disk}, yamlFor("x86_64", ""))
	files := write(t, disk, squash, ours, rootXZ, whole, wholeVM, squash)

	node := startChild(t, nodeFlags(t))
	flags := []string{"--server", node.HTTPURL, "--token", node.Token}
	code, out, errs := command(t.Context(), with(flags, "publish", files[0], "--image=debian", "--version=12.5.0", "--architecture=x86_64",
		"--variant=amd64.container="+files[1], "--variant=amd64.container="+files[2], "--variant=x86_64.container.packed/root.tar.xz="+files[3],
		"--variant=amd64.container.whole="+files[4], "--variant=amd64.virtual-machine.whole="+files[5], "--variant=arm64.container="+files[6],
		"--os=Debian", "--release=bookworm", "--release-title=12 (bookworm)", "--codename=bookworm", "--support-eol=2038-06-30", "--no-supported",
		"--label=build=47,11", "--label=team=a=b", "--requirement=secureboot=false", "--requirement=cdrom_agent=true", "--cloud-init", "--alias=latest", "--json")...)
	if code != 0 {
		t.Fatalf("publish: exit code %d: %s", code, errs)
	}

	p := node.stranger(t)
	var version client.Version
	p.call("GET", "/api/images/debian/versions/latest", nil, &version)
	no := false
	wantTraits := client.Traits{ReleaseTitle: "12 (bookworm)", Codename: "bookworm", SupportEOL: "2038-06-30", Supported: &no,
		Labels: map[string]string{"build": "47,11", "team": "a=b"}, Requirements: map[string]string{"secureboot": "false", "cdrom_agent": "true"}}
	if diff := gocmp.Diff(wantTraits, version.Traits); diff != "" {
		t.Errorf("traits (-want +got):\n%s", diff)
	}
	fingerprints, metadataOf := map[string]string{}, map[string]*client.ImageInfo{}
	for _, v := range version.Variants {
		fingerprints[v.Name()] = v.Fingerprint
		for _, f := range v.Formats {
			if f.Incus != nil {
				metadataOf[v.Name()+" "+f.Format] = f.Incus
			}
		}
	}
	if got := metadataOf["amd64.container.default incus.tar.gz"]; got == nil || got.Properties["requirements.nesting"] != "true" || got.ExpiresAt.Unix() != 1_900_000_000 ||
		!slices.Equal(got.Templates, []string{"/etc/hostname"}) || got.CreatedAt.Unix() != 1_763_985_600 {
		t.Errorf("read of the publisher's metadata: %+v", got)
	}
	for name, want := range map[string]string{"amd64.container.whole": whole, "amd64.virtual-machine.whole": wholeVM, "amd64.container.default": ours + squash} {
		if fingerprints[name] != hexSum(want) {
			t.Errorf("%s has the fingerprint %s, want %s", name, fingerprints[name], hexSum(want))
		}
	}

	lxc := lxctest.New(t, node.HTTPSURL, node.CertFile)
	type seen struct{ Kind, Type, Requirement, Title string }
	got := map[string]seen{}
	for _, image := range lxc.List() {
		got[image.Fingerprint] = seen{image.Type, image.Properties["type"], image.Properties["requirements.secureboot"], image.Properties["description"][:len("Debian 12 (bookworm)")]}
	}
	want := map[string]seen{
		fingerprints["amd64.virtual-machine.default"]: {"virtual-machine", "disk-kvm.img", "false", "Debian 12 (bookworm)"},
		fingerprints["amd64.container.default"]:       {"container", "squashfs", "false", "Debian 12 (bookworm)"},
		fingerprints["amd64.container.packed"]:        {"container", "root.tar.xz", "false", "Debian 12 (bookworm)"},
		fingerprints["amd64.container.whole"]:         {"container", "tar.gz", "false", "Debian 12 (bookworm)"}, // LXD would take the machine's for a container
		fingerprints["arm64.container.default"]:       {"container", "squashfs", "false", "Debian 12 (bookworm)"},
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("lxc lists (-want +got):\n%s", diff)
	}
	for _, c := range []struct {
		name, variant, root string
		flags               []string
	}{
		{"debian", "amd64.virtual-machine.default", disk, []string{"--vm"}},
		{"debian", "amd64.container.default", squash, nil},
		{"debian/12.5.0", "amd64.container.default", squash, nil},
		{"debian/latest/packed", "amd64.container.packed", rootXZ, nil},
		{"debian/whole", "amd64.container.whole", "", nil},
		{"debian/12.5.0/whole", "amd64.container.whole", "", nil},
		{"debian/arm64", "arm64.container.default", squash, nil},
		{fingerprints["amd64.container.whole"][:16], "amd64.container.whole", "", nil},
		{fingerprints["amd64.virtual-machine.default"], "amd64.virtual-machine.default", disk, nil},
	} {
		info := lxc.Info(c.name, c.flags...)
		if info["Fingerprint"] != fingerprints[c.variant] || !strings.HasPrefix(info["Expires"], "2038/06/30") {
			t.Errorf("%s %v is shown as %v", c.name, c.flags, info)
		}
		exported := lxc.Export(c.name, c.flags...)
		metadata, root := contentOf(t, exported.Metadata), ""
		if exported.Root != "" {
			root = contentOf(t, exported.Root)
		}
		if root != c.root || hexSum(metadata+root) != fingerprints[c.variant] {
			t.Errorf("%s %v: exported %+v hashes to %s, want %s", c.name, c.flags, exported, hexSum(metadata+root), fingerprints[c.variant])
		}
	}

	// What Incus sees that LXD doesn't: the unified virtual machine, under the same name as the container.
	var index []byte
	p.call("GET", "/"+incus.IndexPath, nil, &index)
	images, err := clientrules.Read(index, func(path string) (document []byte, err error) {
		_, err = p.try("GET", "/"+path, nil, &document)
		return document, err
	}, clientrules.Incus)
	if err != nil || len(images) != 6 {
		t.Fatalf("Incus sees %d images: %v", len(images), err)
	}
	machine, err := clientrules.Resolve(images, "x86_64", "virtual-machine", "debian/whole")
	if err != nil || machine.Fingerprint != hexSum(wholeVM) {
		t.Errorf("debian/whole as a virtual machine is %+v, %v", machine, err)
	}
	var products incus.Products
	p.call("GET", "/"+incus.ImagesPath, nil, &products)
	for key, product := range products.Products {
		if product.ReleaseCodename != "bookworm" || product.SupportEOL != "2038-06-30" || product.Supported || product.ReleaseTitle != "12 (bookworm)" {
			t.Errorf("product %s: %+v", key, product)
		}
	}

	// The metadata made for the virtual machine says the same, and has the templates.
	made := metadataOf["amd64.virtual-machine.default incus.tar.xz"]
	if made == nil || made.Properties["requirements.secureboot"] != "false" || made.ExpiresAt.Format("2006-01-02") != "2038-06-30" || len(made.Templates) != 4 {
		t.Errorf("made metadata: %+v", made)
	}

	again, _, errs := command(t.Context(), with(flags, "publish", "--image=debian", "--version=12.5.0", "--variant=amd64.container="+files[1], "--variant=arm64.container="+files[6])...)
	if again != 0 {
		t.Errorf("publishing some of it again: exit code %d, %s%s", again, out, errs)
	}
}

func contentOf(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Metadata that contradicts its variant, or that no client could use, is refused for good, with the reason.
func TestTarballsThatDontFitAreRefusedForGood(t *testing.T) {
	t.Parallel()
	flags, _ := server(t)
	disk := string(qcow2Image(t, 1000))
	for i, c := range []struct{ says, variant, content, root string }{
		{"is for the architecture arm64, and the variant for amd64", "amd64.container/incus.tar.gz", tarGz(t, yamlFor("aarch64", "")), squashfs},
		{"it has no metadata.yaml", "amd64.container/incus.tar.gz", tarGz(t, member{"rootfs/a", ""}), squashfs},
		{"creation_date is 2286", "amd64.container/incus.tar.gz", tarGz(t, member{"metadata.yaml", "architecture: amd64\ncreation_date: 9999999999\n"}), squashfs},
		{"there is no file templates/a.tpl", "amd64.container/lxd.tar.gz", tarGz(t, yamlFor("amd64", "templates:\n  /etc/a: {when: [create], template: a.tpl}\n")), squashfs},
		{"it is a unified image: publish it as", "amd64.container/incus.tar.gz", tarGz(t, yamlFor("amd64", ""), member{"rootfs/a", "a"}), squashfs},
		{"holds neither rootfs/ nor rootfs.img", "amd64.container/incus_combined.tar.gz", tarGz(t, yamlFor("amd64", "")), ""},
		{"holds the root of a virtual-machine, and the variant is a container", "amd64.container/incus_combined.tar.gz", tarGz(t, yamlFor("amd64", ""), member{"rootfs.img", disk}), ""},
		{"the gzip stream", "amd64.container/incus_combined.tar.gz", "\x1f\x8b\x08 and no more", ""},
	} {
		args := []string{"publish", "--image=refused", fmt.Sprintf("--version=%d", i)}
		name, _, _ := strings.Cut(c.variant, "/")
		contents := []string{c.content}
		if c.root != "" {
			contents = append(contents, c.root)
		}
		for k, path := range write(t, contents...) {
			args = append(args, "--variant="+[]string{c.variant, name}[k]+"="+path)
		}
		code, _, errs := command(t.Context(), with(flags, args...)...)
		if says := cmp.Or(map[bool]string{true: "can't be unpacked"}[c.says == "the gzip stream"], c.says); code != 1 || !strings.Contains(errs, says) ||
			!strings.Contains(errs, "(bad-metadata)") || strings.Contains(errs, "jobs retry") {
			t.Errorf("exit code %d, want a final refusal that says %q:\n%s", code, says, errs)
		}
	}
}

func TestVariantsOfTheCommandLine(t *testing.T) {
	t.Parallel()
	for _, wrong := range []string{"amd64.container", "amd64=x", "amd64.container=", "amd64.pod=x", "a.container.b.c=x"} {
		if _, _, err := parseVariant(wrong); err == nil {
			t.Errorf("--variant %s is accepted", wrong)
		}
	}
	v, f, err := parseVariant("x86_64.virtual-machine.cloud/disk.raw=/a=b/c")
	if err != nil || v.Architecture != "x86_64" || v.Type != "virtual-machine" || v.Flavour != "cloud" || f.format != "disk.raw" || f.path != "/a=b/c" {
		t.Errorf("%+v, %+v, %v", v, f, err)
	}
	if code, _, errs := command(t.Context(), "publish", "--image=a", "--version=1", "--token=x"); code == 0 || !strings.Contains(errs, "which files?") {
		t.Errorf("without files: exit code %d, %s", code, errs)
	}
}
