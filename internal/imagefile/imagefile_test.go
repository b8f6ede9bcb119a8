package imagefile_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/imagefile"
)

// need skips a test whose tool is absent; where every tool is required, it fails instead.
func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("IMGSRV_TEST_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is not installed, and IMGSRV_TEST_REQUIRE_TOOLS=1 wants it", tool)
	}
	t.Skipf("%s is not installed", tool)
}

func run(t *testing.T, dir, tool string, args ...string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), tool, args...)
	command.Dir = dir
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", tool, strings.Join(args, " "), err, out)
	}
}

func write(t *testing.T, path string, body []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
}

func suggest(t *testing.T, path string) imagefile.Suggestion {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	suggestion, err := imagefile.Suggest(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return suggestion
}

// with puts texts at offsets into a file of zeros.
func with(sizeBytes int, texts map[int]string) []byte {
	body := make([]byte, sizeBytes)
	for offset, text := range texts {
		copy(body[offset:], text)
	}
	return body
}

func TestKindsAreToldByContent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		body []byte
		want imagefile.Kind
	}{
		{"empty", nil, imagefile.Unknown},
		{"zeros", make([]byte, 1<<17), imagefile.Unknown},
		{"qcow2", with(512, map[int]string{0: "QFI\xfb"}), imagefile.Qcow2},
		{"only the mark", []byte("QFI\xfb"), imagefile.Qcow2},
		{"a byte less than the mark", []byte("QFI"), imagefile.Unknown},
		{"vmdk", with(512, map[int]string{0: "KDMV"}), imagefile.VMDK},
		{"vmdk of ESX", with(512, map[int]string{0: "COWD"}), imagefile.VMDK},
		{"vmdk descriptor", []byte("# Disk DescriptorFile\nversion=1\n"), imagefile.VMDKDescriptor},
		{"vhdx", with(512, map[int]string{0: "vhdxfile"}), imagefile.VHDX},
		{"dynamic vhd", with(1024, map[int]string{0: "conectix"}), imagefile.VHD},
		{"fixed vhd", with(4096, map[int]string{4096 - 512: "conectix"}), imagefile.VHD},
		{"iso9660", with(1<<16, map[int]string{32769: "CD001"}), imagefile.ISO9660},
		{"iso9660 that boots as a disk", with(1<<16, map[int]string{510: "\x55\xaa", 32769: "CD001"}), imagefile.ISO9660},
		{"squashfs", with(512, map[int]string{0: "hsqs"}), imagefile.Squashfs},
		{"xz", []byte("\xfd7zXZ\x00\x00"), imagefile.XZ},
		{"zstd", []byte("\x28\xb5\x2f\xfd\x00"), imagefile.Zstd},
		{"zstd with a skippable frame first", []byte("\x5a\x2a\x4d\x18\x00\x00\x00\x00"), imagefile.Zstd},
		{"gzip", []byte("\x1f\x8b\x08"), imagefile.Gzip},
		{"tar", with(1024, map[int]string{0: "metadata.yaml", 257: "ustar\x0000"}), imagefile.Tar},
		{"GNU tar", with(1024, map[int]string{0: "metadata.yaml", 257: "ustar  \x00"}), imagefile.Tar},
		{"vcdiff", []byte("\xd6\xc3\xc4\x00"), imagefile.VCDIFF},
		{"qcow2 of a CD", with(1<<16, map[int]string{0: "QFI\xfb", 32769: "CD001"}), imagefile.Qcow2},
		{"text", []byte("hello"), imagefile.Unknown},
	}
	for _, test := range tests {
		got, err := imagefile.Detect(bytes.NewReader(test.body), int64(len(test.body)))
		if err != nil || got != test.want {
			t.Errorf("%s is %s, %v, want %s", test.name, got, err, test.want)
		}
	}
}

func TestNamesPromiseKinds(t *testing.T) {
	t.Parallel()
	want := map[string]imagefile.Kind{
		"disk.qcow2": imagefile.Qcow2, "DISK.QCOW2": imagefile.Qcow2, "disk-kvm.img": imagefile.Qcow2,
		"squashfs": imagefile.Squashfs, "rootfs.squashfs": imagefile.Squashfs,
		"incus.tar.xz": imagefile.XZ, "lxd.tar.xz": imagefile.XZ, "root.tar.xz": imagefile.XZ, "disk.raw.xz": imagefile.XZ,
		"disk.raw.zst": imagefile.Zstd, "incus_combined.tar.gz": imagefile.Gzip, "disk.raw.gz": imagefile.Gzip,
		"disk.vmdk": imagefile.VMDK, "disk.vhdx": imagefile.VHDX, "disk.vhd": imagefile.VHD, "boot.iso": imagefile.ISO9660,
		"root.tar": imagefile.Tar, "squashfs.vcdiff": imagefile.VCDIFF,
	}
	got := map[string]imagefile.Kind{}
	for name := range want {
		kind, promised := imagefile.Expect(name)
		if !promised {
			t.Errorf("%s promises nothing", name)
		}
		got[name] = kind
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("promises (-want +got):\n%s", diff)
	}
	for _, name := range []string{"", "disk.raw", "disk.img", "qcow2", "notes", "SHA256SUMS", "disk.qcow2.sig"} {
		if kind, promised := imagefile.Expect(name); promised {
			t.Errorf("%q promises %s, want nothing", name, kind)
		}
	}
}

func TestBrokenPromisesAreRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		format, body, says string
	}{
		{"disk.qcow2", "not an image", "disk.qcow2 should be qcow2 by its name, but its content has no mark of a known kind"},
		{"disk.qcow2", "KDMV", "but its content is vmdk"},
		{"incus.tar.xz", "\x1f\x8b\x08", "incus.tar.xz should be xz by its name, but its content is gzip"},
		{"disk.vmdk", "# Disk DescriptorFile\n", "but its content is vmdk-descriptor"},
		{"squashfs", "", "squashfs should be squashfs"},
	}
	for _, test := range tests {
		err := imagefile.Check(test.format, strings.NewReader(test.body), int64(len(test.body)))
		var wrong *imagefile.Error
		if !errors.As(err, &wrong) || wrong.Code != imagefile.CodeWrongFormat {
			t.Errorf("%s with %q: error is %v", test.format, test.body, err)
			continue
		}
		if !strings.Contains(err.Error(), test.says) {
			t.Errorf("error %q does not say %q", err, test.says)
		}
	}
	for format, body := range map[string]string{"disk.qcow2": "QFI\xfb", "disk.raw": "anything", "notes.txt": ""} {
		if err := imagefile.Check(format, strings.NewReader(body), int64(len(body))); err != nil {
			t.Errorf("%s with %q: %v", format, body, err)
		}
	}
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

func TestReadErrorsAreNotTakenForContent(t *testing.T) {
	t.Parallel()
	var wrong *imagefile.Error
	if err := imagefile.Check("disk.qcow2", broken{}, 512); !errors.Is(err, io.ErrClosedPipe) || errors.As(err, &wrong) {
		t.Errorf("Check says %v", err)
	}
	if _, err := imagefile.Suggest(broken{}, 512); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("Suggest says %v", err)
	}
	if _, err := imagefile.Detect(bytes.NewReader(nil), 512); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file shorter than its size gives %v", err)
	}
}

func TestNoMediaTypeIsShownByBrowsers(t *testing.T) {
	t.Parallel()
	want := map[string]string{
		"disk.qcow2": "application/x-qemu-disk", "disk.vmdk": "application/x-vmdk-disk", "disk.vhdx": "application/x-vhdx-disk",
		"disk.vhd": "application/x-vhd-disk", "boot.iso": "application/vnd.efi.iso", "squashfs": "application/vnd.squashfs",
		"incus.tar.xz": "application/x-xz", "disk.raw.zst": "application/zstd", "incus_combined.tar.gz": "application/gzip",
		"root.tar": "application/x-tar", "disk.raw": "application/octet-stream", "index.html": "application/octet-stream",
	}
	got := map[string]string{}
	for name := range want {
		got[name] = imagefile.MediaType(name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("media types (-want +got):\n%s", diff)
	}
}

func TestRealDiskFormatsAreSuggestedByContent(t *testing.T) {
	t.Parallel()
	need(t, "qemu-img")
	dir := t.TempDir()
	tests := []struct {
		name string
		args []string
		want imagefile.Suggestion
	}{
		{"qcow2", []string{"-f", "qcow2"}, imagefile.Suggestion{Kind: imagefile.Qcow2, Format: "disk.qcow2", Type: "virtual-machine"}},
		{"vmdk", []string{"-f", "vmdk"}, imagefile.Suggestion{Kind: imagefile.VMDK, Format: "disk.vmdk", Type: "virtual-machine"}},
		{"streamOptimized", []string{"-f", "vmdk", "-o", "subformat=streamOptimized"}, imagefile.Suggestion{Kind: imagefile.VMDK, Format: "disk.vmdk", Type: "virtual-machine"}},
		{"flat", []string{"-f", "vmdk", "-o", "subformat=monolithicFlat"}, imagefile.Suggestion{Kind: imagefile.VMDKDescriptor, Format: "disk.vmdk", Type: "virtual-machine"}},
		{"vhdx", []string{"-f", "vhdx"}, imagefile.Suggestion{Kind: imagefile.VHDX, Format: "disk.vhdx", Type: "virtual-machine"}},
		{"dynamic", []string{"-f", "vpc"}, imagefile.Suggestion{Kind: imagefile.VHD, Format: "disk.vhd", Type: "virtual-machine"}},
		{"fixed", []string{"-f", "vpc", "-o", "subformat=fixed"}, imagefile.Suggestion{Kind: imagefile.VHD, Format: "disk.vhd", Type: "virtual-machine"}},
		{"raw", []string{"-f", "raw"}, imagefile.Suggestion{Kind: imagefile.Unknown, Format: "disk.raw", Type: "virtual-machine"}},
	}
	for _, test := range tests {
		file := filepath.Join(dir, test.name)
		run(t, dir, "qemu-img", append(append([]string{"create", "-q"}, test.args...), file, "8M")...)
		if diff := cmp.Diff(test.want, suggest(t, file)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestSquashfsIsAContainerRoot(t *testing.T) {
	t.Parallel()
	need(t, "mksquashfs")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "root/etc/hostname"), []byte("x\n"))
	run(t, dir, "mksquashfs", "root", "root.sqfs", "-quiet", "-no-progress")
	want := imagefile.Suggestion{Kind: imagefile.Squashfs, Format: "rootfs.squashfs", Type: "container"}
	if diff := cmp.Diff(want, suggest(t, filepath.Join(dir, "root.sqfs"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
