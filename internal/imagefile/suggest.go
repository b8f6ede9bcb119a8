package imagefile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
)

// Types of instances, as Incus names them.
const (
	Container      = "container"
	VirtualMachine = "virtual-machine"
)

// maxZstdWindow is the largest window that the zstd decoder may allot: what the zstd command accepts by default.
const maxZstdWindow = 128 << 20

// peekBytes is how much of a compressed file is decoded to see what is in it. Archives of images have metadata.yaml at the
// front.
const peekBytes = 4 << 20

// Suggestion is how a file could be published.
type Suggestion struct {
	Kind   Kind
	Format string // the name of the format, e.g. disk.qcow2
	Type   string // Container, VirtualMachine, or "" for a file that fits both (metadata, a delta)
}

// Suggest looks at a file's content for a name of its format and the type of instance it makes. It decodes at most 4 MiB of a
// compressed file; a file that cannot be decoded is named after its outer kind. The error is one of reading the file.
func Suggest(r io.ReaderAt, sizeBytes int64) (Suggestion, error) {
	kind, err := Detect(r, sizeBytes)
	if err != nil {
		return Suggestion{}, err
	}
	source := &recorder{r: io.NewSectionReader(r, 0, sizeBytes)}
	s := suggest(kind, source)
	if source.err != nil {
		return Suggestion{}, fmt.Errorf("read the %s file: %w", kind, source.err)
	}
	return s, nil
}

func suggest(kind Kind, source io.Reader) Suggestion {
	switch kind {
	case Qcow2:
		return Suggestion{kind, "disk.qcow2", VirtualMachine}
	case VMDK:
		return Suggestion{kind, "disk.vmdk", VirtualMachine}
	case VMDKDescriptor: // the name promises more than the file has: publishing it will be refused, with the reason
		return Suggestion{kind, "disk.vmdk", VirtualMachine}
	case VHDX:
		return Suggestion{kind, "disk.vhdx", VirtualMachine}
	case VHD:
		return Suggestion{kind, "disk.vhd", VirtualMachine}
	case ISO9660:
		return Suggestion{kind, "disk.iso", VirtualMachine}
	case Squashfs:
		return Suggestion{kind, "rootfs.squashfs", Container}
	case VCDIFF:
		return Suggestion{kind, "delta.vcdiff", ""}
	case XZ, Zstd, Gzip, Tar:
		return suggestPacked(kind, source)
	default:
		return Suggestion{Unknown, "disk.raw", VirtualMachine}
	}
}

func suggestPacked(kind Kind, source io.Reader) Suggestion {
	suffix := map[Kind]string{XZ: ".xz", Zstd: ".zst", Gzip: ".gz", Tar: ""}[kind]
	archive := look(peek(kind, source))
	switch {
	case !archive.isTar:
		return Suggestion{kind, "disk.raw" + suffix, VirtualMachine}
	case archive.metadata && archive.disk:
		return Suggestion{kind, "incus_combined.tar" + suffix, VirtualMachine}
	case archive.metadata && archive.rootfs:
		return Suggestion{kind, "incus_combined.tar" + suffix, Container}
	case archive.metadata:
		return Suggestion{kind, "incus.tar" + suffix, ""}
	default:
		return Suggestion{kind, "root.tar" + suffix, Container}
	}
}

// contents is what the beginning of an archive holds.
type contents struct {
	isTar    bool
	metadata bool // metadata.yaml
	rootfs   bool // a folder rootfs
	disk     bool // rootfs.img
}

// look reads names as the Incus daemon does (lxc/incus cmd/incusd/images.go, getImageMetadata).
func look(head []byte) contents {
	var c contents
	archive := tar.NewReader(bytes.NewReader(head))
	for {
		// The head may end in the middle of a file: what was seen until then counts.
		header, err := archive.Next()
		if err != nil {
			return c
		}
		c.isTar = true
		switch name := strings.TrimPrefix(header.Name, "./"); {
		case name == "metadata.yaml":
			c.metadata = true
		case name == "rootfs.img":
			c.disk = true
		case name == "rootfs" || strings.HasPrefix(name, "rootfs/"):
			c.rootfs = true
		}
		if c.metadata && (c.rootfs || c.disk) {
			return c
		}
	}
}

// peek decodes the beginning of a file: less than peekBytes where it ends or is damaged.
func peek(kind Kind, source io.Reader) []byte {
	var decoded io.Reader
	switch kind {
	case XZ:
		block, err := firstXZBlock(source)
		if err != nil {
			return nil
		}
		decoded = block
	case Zstd:
		decoder, err := zstd.NewReader(source, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil
		}
		defer decoder.Close()
		decoded = decoder
	case Gzip:
		decoder, err := gzip.NewReader(source)
		if err != nil {
			return nil
		}
		decoded = decoder
	default:
		decoded = source
	}
	head, _ := io.ReadAll(io.LimitReader(decoded, peekBytes))
	return head
}

// firstXZBlock decodes the first block of an .xz file.
//
// The xz package allots the dictionary that each block asks for, up to 4 GiB. Nothing within the first peekBytes can refer
// back further than that, so a smaller dictionary does; for that the block's header is read here (The .xz File Format 1.2.1,
// 3.1) and its LZMA2 data by the lzma package. A block with a second filter is an error. Checksums are not looked at.
func firstXZBlock(source io.Reader) (io.Reader, error) {
	const streamHeaderBytes = 12
	head := make([]byte, streamHeaderBytes+1)
	if _, err := io.ReadFull(source, head); err != nil {
		return nil, fmt.Errorf("read the stream header: %w", err)
	}
	// The size byte counts itself, the checksum at the end, and four bytes for each of its units. 0 begins the index: no block.
	size := (int(head[streamHeaderBytes]) + 1) * 4
	if size == 4 {
		return nil, fmt.Errorf("the stream has no block")
	}
	header := make([]byte, size-1)
	if _, err := io.ReadFull(source, header); err != nil {
		return nil, fmt.Errorf("read the block header: %w", err)
	}
	flags, rest := header[0], header[1:len(header)-4]
	if flags&0x03 != 0 {
		return nil, fmt.Errorf("the block has %d filters", flags&0x03+1)
	}
	for _, bit := range []byte{0x40, 0x80} { // compressed and uncompressed size, where given
		if flags&bit == 0 {
			continue
		}
		_, n := binary.Uvarint(rest)
		if n <= 0 {
			return nil, fmt.Errorf("the block header ends early")
		}
		rest = rest[n:]
	}
	if len(rest) < 3 || rest[0] != 0x21 || rest[1] != 1 { // filter LZMA2 with one byte of properties, the dictionary's size
		return nil, fmt.Errorf("the block is not LZMA2")
	}
	block, err := lzma.Reader2Config{DictCap: peekBytes}.NewReader2(source)
	if err != nil {
		return nil, fmt.Errorf("start the block: %w", err)
	}
	return block, nil
}

// recorder keeps the first error of the source, to tell it from damage in what was read.
type recorder struct {
	r   io.Reader
	err error
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF && r.err == nil {
		r.err = err
	}
	return n, err
}
