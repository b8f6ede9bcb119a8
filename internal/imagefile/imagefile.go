// Package imagefile tells what an image file is by its content, so that a file's name is a promise that can be checked. It
// reads a few bytes at known places and, only to suggest a name, the beginning of an archive; it must not know where files
// come from or what becomes of them.
package imagefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Kind is what a file is by its content.
type Kind string

// The kinds that Detect tells apart. Unknown is also what a raw disk is: it has no mark of its own.
const (
	Unknown        Kind = "unknown"
	Qcow2          Kind = "qcow2"
	VMDK           Kind = "vmdk"
	VMDKDescriptor Kind = "vmdk-descriptor" // text that names other files as its content
	VHDX           Kind = "vhdx"
	VHD            Kind = "vhd"
	ISO9660        Kind = "iso9660"
	Squashfs       Kind = "squashfs"
	XZ             Kind = "xz"
	Zstd           Kind = "zstd"
	Gzip           Kind = "gzip"
	Tar            Kind = "tar"
	VCDIFF         Kind = "vcdiff"
)

// mark is a text at a known place that makes a file of a kind.
type mark struct {
	offset int64
	text   string
	kind   Kind
}

// marks are looked for in this order: what stands at offset 0 says more than what stands inside, where a disk may hold a file
// system with a mark of its own.
func marks() []mark {
	return []mark{
		{0, "QFI\xfb", Qcow2},                        // QEMU docs/interop/qcow2.txt; version 1 (qcow) is refused by its reader
		{0, "KDMV", VMDK},                            // VMware Virtual Disk Format 5.0, hosted sparse extent
		{0, "COWD", VMDK},                            // the same, ESX sparse extent
		{0, "# Disk DescriptorFile", VMDKDescriptor}, // the same, text descriptor
		{0, "vhdxfile", VHDX},                        // Microsoft [MS-VHDX] 2.2.1
		{0, "conectix", VHD},                         // Microsoft VHD specification 1.0: dynamic disks begin with a copy of the footer
		{0, "hsqs", Squashfs},                        // Linux fs/squashfs/squashfs_fs.h, SQUASHFS_MAGIC, little endian
		{0, "\xfd7zXZ\x00", XZ},                      // The .xz File Format 1.2.1, 2.1.1.1
		{0, "\x28\xb5\x2f\xfd", Zstd},                // RFC 8878 3.1.1
		{0, "\x1f\x8b", Gzip},                        // RFC 1952 2.3.1
		{0, "\xd6\xc3\xc4", VCDIFF},                  // RFC 3284 4.1
		{257, "ustar", Tar},                          // POSIX.1-2017 pax, ustar interchange format; GNU tar too
		{16*2048 + 1, "CD001", ISO9660},              // ECMA-119 8.1.2: volume descriptors begin at sector 16
		{17*2048 + 1, "CD001", ISO9660},              // a descriptor of another standard may stand before
	}
}

// Detect tells what a file is. sizeBytes is the file's whole size. The error is one of reading; a file that is too short for a
// mark, even an empty one, just does not have it.
func Detect(r io.ReaderAt, sizeBytes int64) (Kind, error) {
	for _, m := range marks() {
		found, err := hasText(r, sizeBytes, m.offset, m.text)
		if err != nil {
			return Unknown, err
		}
		if found {
			return m.kind, nil
		}
	}
	// A zstd file may begin with a skippable frame (RFC 8878 3.1.2): 0x184D2A50 to 0x184D2A5F, little endian.
	var head [4]byte
	if sizeBytes >= 4 {
		if err := readAt(r, head[:], 0); err != nil {
			return Unknown, err
		}
		if head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}) {
			return Zstd, nil
		}
	}
	// A fixed VHD is a raw disk with its mark in the last sector.
	found, err := hasText(r, sizeBytes, sizeBytes-512, "conectix")
	if err != nil || !found {
		return Unknown, err
	}
	return VHD, nil
}

func hasText(r io.ReaderAt, sizeBytes, offset int64, text string) (bool, error) {
	if offset < 0 || offset+int64(len(text)) > sizeBytes {
		return false, nil
	}
	got := make([]byte, len(text))
	if err := readAt(r, got, offset); err != nil {
		return false, err
	}
	return string(got) == text, nil
}

// readAt fills p. An io.ReaderAt may say io.EOF with the last byte.
func readAt(r io.ReaderAt, p []byte, offset int64) error {
	n, err := r.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at offset %d: %w", len(p), offset, err)
}

// Expect gives the kind that the name of a format promises: qcow2 for disk.qcow2, xz for incus.tar.xz. It reports false for a
// name that promises nothing, such as disk.raw. Capitals do not matter.
func Expect(format string) (Kind, bool) {
	format = strings.ToLower(format)
	switch format {
	case "disk-kvm.img", "disk1.img", "uefi1.img": // names that Incus and LXD give qcow2 disks
		return Qcow2, true
	case "squashfs":
		return Squashfs, true
	}
	dot := strings.LastIndexByte(format, '.')
	if dot < 0 {
		return Unknown, false
	}
	kind, promised := map[string]Kind{
		"qcow2": Qcow2, "vmdk": VMDK, "vhdx": VHDX, "vhd": VHD, "iso": ISO9660, "squashfs": Squashfs,
		"xz": XZ, "txz": XZ, "zst": Zstd, "gz": Gzip, "tgz": Gzip, "tar": Tar, "vcdiff": VCDIFF,
	}[format[dot+1:]]
	if !promised {
		return Unknown, false
	}
	return kind, true
}

// CodeWrongFormat is the Code of each Error of this package.
const CodeWrongFormat = "wrong-format"

// Error says that a file is not what its format's name promises.
type Error struct {
	Code   string // CodeWrongFormat
	Format string // the name
	Want   Kind
	Got    Kind
}

func (e *Error) Error() string {
	got := "is " + string(e.Got)
	if e.Got == Unknown {
		got = "has no mark of a known kind (a raw disk, or damaged)"
	}
	return fmt.Sprintf("%s should be %s by its name, but its content %s", e.Format, e.Want, got)
}

// Check holds a file against the promise of its format's name. A broken promise is an *Error, any other error one of reading.
func Check(format string, r io.ReaderAt, sizeBytes int64) error {
	want, promised := Expect(format)
	if !promised {
		return nil
	}
	got, err := Detect(r, sizeBytes)
	if err != nil {
		return fmt.Errorf("look what %s is: %w", format, err)
	}
	if got != want {
		return &Error{Code: CodeWrongFormat, Format: format, Want: want, Got: got}
	}
	return nil
}

// MediaType gives the media type for a format's name, application/octet-stream where it promises nothing. None is a type that
// a browser would show. Registered types are IANA's, the others those of freedesktop.org's shared-mime-info.
func MediaType(format string) string {
	kind, _ := Expect(format)
	switch kind {
	case Qcow2:
		return "application/x-qemu-disk"
	case VMDK:
		return "application/x-vmdk-disk"
	case VHDX:
		return "application/x-vhdx-disk"
	case VHD:
		return "application/x-vhd-disk"
	case ISO9660:
		return "application/vnd.efi.iso"
	case Squashfs:
		return "application/vnd.squashfs"
	case XZ:
		return "application/x-xz"
	case Zstd:
		return "application/zstd" // RFC 8878
	case Gzip:
		return "application/gzip" // RFC 6713
	case Tar:
		return "application/x-tar"
	default:
		return "application/octet-stream"
	}
}
