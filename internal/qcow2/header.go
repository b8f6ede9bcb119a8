package qcow2

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"strings"
)

const (
	minClusterBits         = 9
	maxClusterBits         = 21 // QEMU's limit: 2 MiB
	minExtendedClusterBits = 14
	maxL1Bytes             = 32 << 20 // QEMU's limit
	maxRefcountTableBytes  = 8 << 20  // QEMU's limit
	maxRefcountOrder       = 6
	maxSnapshots           = 65536 // QEMU's limit (block/qcow2.h, QCOW_MAX_SNAPSHOTS)

	headerBytesV2 = 72
	headerBytesV3 = 104

	bitDirty        = 1 << 0
	bitCorrupt      = 1 << 1
	bitExternalData = 1 << 2
	bitCompression  = 1 << 3
	bitExtendedL2   = 1 << 4
	knownBits       = 1<<5 - 1

	extensionEnd           = 0x00000000
	extensionBackingFormat = 0xe2792aca
	extensionEncryption    = 0x0537be77
	extensionBitmaps       = 0x23852875
	extensionDataFile      = 0x44415441
)

// header is the part of the header that the walk needs.
type header struct {
	clusterBits     uint
	clusterSize     uint64
	virtualSize     uint64
	l1Entries       uint64
	l1Offset        uint64
	refcountOffset  uint64
	refcountBytes   uint64
	snapshots       uint64
	snapshotsOffset uint64
	extendedL2      bool
	zstd            bool
	l2Entries       uint64 // in one table
}

// readHeader reads and judges the header and its extensions (specification, "Header" to "Header extensions").
func (im *image) readHeader() error {
	if im.size < headerBytesV2 {
		head := make([]byte, max(0, min(4, im.size)))
		if err := im.readAt(head, 0, "the header"); err != nil {
			return err
		}
		if string(head) != "QFI\xfb" {
			return refuse(CodeNotQcow2, "the file begins with %q instead of \"QFI\\xfb\"", head)
		}
		return refuse(CodeTruncated, "the file has %d bytes, the header alone has %d", im.size, headerBytesV2)
	}
	fixed := make([]byte, min(headerBytesV3, im.size))
	if err := im.readAt(fixed, 0, "the header"); err != nil {
		return err
	}
	if string(fixed[:4]) != "QFI\xfb" {
		return refuse(CodeNotQcow2, "the file begins with %q instead of \"QFI\\xfb\"", fixed[:4])
	}
	version := binary.BigEndian.Uint32(fixed[4:])
	if version != 2 && version != 3 {
		return refuse(CodeUnsupportedFeature, "the version is %d, not 2 or 3", version)
	}
	im.info.Version = int(version)

	h := &im.h
	h.clusterBits = uint(binary.BigEndian.Uint32(fixed[20:]))
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return refuse(CodeBadHeader, "cluster_bits is %d, not %d to %d", h.clusterBits, minClusterBits, maxClusterBits)
	}
	h.clusterSize = 1 << h.clusterBits
	if err := im.need("the first cluster, which holds the header,", 0, h.clusterSize); err != nil {
		return err
	}
	first := make([]byte, h.clusterSize)
	if err := im.readAt(first, 0, "the first cluster"); err != nil {
		return err
	}
	if err := im.readFeatures(first); err != nil {
		return err
	}
	if err := im.readGeometry(first); err != nil {
		return err
	}
	return im.readExtensions(first)
}

func (im *image) headerBytes(first []byte) uint64 {
	if im.info.Version == 2 {
		return headerBytesV2
	}
	return uint64(binary.BigEndian.Uint32(first[100:]))
}

// readFeatures judges what the image depends on: backing file, feature bits, compression and encryption.
func (im *image) readFeatures(first []byte) error {
	h, info := &im.h, &im.info
	if offset := binary.BigEndian.Uint64(first[8:]); offset != 0 {
		return refuse(CodeBackingFile, "the image needs the backing file %s", im.backingName(offset, binary.BigEndian.Uint32(first[16:])))
	}
	var incompatible uint64
	info.Compression = "zlib"
	if info.Version == 3 {
		incompatible = binary.BigEndian.Uint64(first[72:])
		info.LazyRefcounts = binary.BigEndian.Uint64(first[80:])&1 != 0
		length := im.headerBytes(first)
		if length < headerBytesV3 || length%8 != 0 || length > h.clusterSize {
			return refuse(CodeBadHeader, "header_length is %d, not a multiple of 8 from %d to the cluster's %d bytes", length, headerBytesV3, h.clusterSize)
		}
		if order := binary.BigEndian.Uint32(first[96:]); order > maxRefcountOrder {
			return refuse(CodeBadHeader, "refcount_order is %d, more than %d", order, maxRefcountOrder)
		}
	}
	switch {
	case incompatible&bitCorrupt != 0:
		return refuse(CodeCorrupt, "QEMU has marked the image as corrupt (incompatible_features is %#x)", incompatible)
	case incompatible&bitExternalData != 0:
		return refuse(CodeExternalDataFile, "the data is in another file (incompatible_features is %#x)", incompatible)
	case incompatible&^knownBits != 0:
		return refuse(CodeUnsupportedFeature, "incompatible_features has the unknown bits %s", bitNumbers(incompatible&^knownBits))
	}
	info.Dirty = incompatible&bitDirty != 0
	h.extendedL2 = incompatible&bitExtendedL2 != 0
	info.ExtendedL2 = h.extendedL2
	if h.extendedL2 && h.clusterBits < minExtendedClusterBits {
		return refuse(CodeBadHeader, "cluster_bits is %d, less than the %d that extended L2 entries need", h.clusterBits, minExtendedClusterBits)
	}

	var method byte
	if im.headerBytes(first) > headerBytesV3 {
		method = first[headerBytesV3]
	}
	switch declared := incompatible&bitCompression != 0; {
	case declared && method == 1:
		h.zstd, info.Compression = true, "zstd"
	case declared && method == 0, !declared && method != 0:
		return refuse(CodeBadHeader, "compression_type is %d, which contradicts incompatible_features %#x", method, incompatible)
	case declared:
		return refuse(CodeUnsupportedFeature, "compression_type is %d, not 0 (zlib) or 1 (zstd)", method)
	}

	switch method := binary.BigEndian.Uint32(first[32:]); method {
	case 0:
	case 1:
		info.Encrypted, info.Encryption = true, "aes"
	case 2:
		info.Encrypted, info.Encryption = true, "luks"
	default:
		return refuse(CodeUnsupportedFeature, "crypt_method is %d, not 0 (none), 1 (AES) or 2 (LUKS)", method)
	}
	return nil
}

// backingName reads the backing file's name for the refusal, if it can be read.
func (im *image) backingName(offset uint64, length uint32) string {
	const maxName = 1023
	if length > maxName || im.need("name", offset, uint64(length)) != nil {
		return fmt.Sprintf("whose name is said to have %d bytes at offset %d", length, offset)
	}
	name := make([]byte, length)
	if err := im.readAt(name, offset, "the backing file's name"); err != nil {
		return "whose name cannot be read"
	}
	return fmt.Sprintf("%q", name)
}

// readGeometry judges sizes and the places of the tables.
func (im *image) readGeometry(first []byte) error {
	h := &im.h
	h.virtualSize = binary.BigEndian.Uint64(first[24:])
	h.l1Entries = uint64(binary.BigEndian.Uint32(first[36:]))
	h.l1Offset = binary.BigEndian.Uint64(first[40:])
	h.refcountOffset = binary.BigEndian.Uint64(first[48:])
	h.refcountBytes = uint64(binary.BigEndian.Uint32(first[56:])) * h.clusterSize
	h.snapshots = uint64(binary.BigEndian.Uint32(first[60:]))
	h.snapshotsOffset = binary.BigEndian.Uint64(first[64:])
	h.l2Entries = h.clusterSize / im.entryBytes()

	if h.virtualSize > math.MaxInt64 {
		return refuse(CodeBadHeader, "the virtual size is %d bytes, more than 2^63", h.virtualSize)
	}
	if h.l1Entries*8 > maxL1Bytes {
		return refuse(CodeBadHeader, "l1_size is %d entries, more than %d MiB", h.l1Entries, maxL1Bytes>>20)
	}
	if want := ceilDiv(h.virtualSize, h.clusterSize*h.l2Entries); h.l1Entries < want {
		return refuse(CodeBadHeader, "l1_size is %d entries, but the virtual size of %d bytes needs %d", h.l1Entries, h.virtualSize, want)
	}
	if h.refcountBytes == 0 || h.refcountBytes > maxRefcountTableBytes {
		return refuse(CodeBadHeader, "the refcount table has %d bytes, not 1 to %d MiB", h.refcountBytes, maxRefcountTableBytes>>20)
	}
	if h.snapshots > maxSnapshots {
		return refuse(CodeBadHeader, "nb_snapshots is %d, more than %d", h.snapshots, maxSnapshots)
	}
	tables := []struct {
		name   string
		offset uint64
		used   bool
	}{
		{"l1_table_offset", h.l1Offset, h.l1Entries > 0},
		{"refcount_table_offset", h.refcountOffset, true},
		{"snapshots_offset", h.snapshotsOffset, h.snapshots > 0},
	}
	for _, table := range tables {
		if table.used && (table.offset == 0 || table.offset%h.clusterSize != 0) {
			return refuse(CodeBadHeader, "%s is %d, not at a cluster after the header", table.name, table.offset)
		}
	}
	im.info.VirtualSize = int64(h.virtualSize)
	im.info.ClusterSize = int64(h.clusterSize)
	im.info.Snapshots = int(h.snapshots)
	return nil
}

// readExtensions looks for extensions that make the image depend on another file, and for those that place data in the file.
// The area ends with the first cluster; without an end mark it is full.
func (im *image) readExtensions(first []byte) error {
	area := first[im.headerBytes(first):]
	for len(area) >= 8 {
		kind, length := binary.BigEndian.Uint32(area), uint64(binary.BigEndian.Uint32(area[4:]))
		area = area[8:]
		if kind == extensionEnd {
			return nil
		}
		if length > uint64(len(area)) {
			return refuse(CodeBadHeader, "header extension %#08x has %d bytes, more than the %d left in the first cluster", kind, length, len(area))
		}
		if err := im.judgeExtension(kind, area[:length], first); err != nil {
			return err
		}
		area = area[min(uint64(len(area)), (length+7)&^7):]
	}
	return nil
}

func (im *image) judgeExtension(kind uint32, data, first []byte) error {
	switch kind {
	case extensionBackingFormat:
		if len(data) > 0 {
			return refuse(CodeBackingFile, "the image names the format %q for a backing file", data)
		}
	case extensionDataFile:
		return refuse(CodeExternalDataFile, "the data is in the file %q", data)
	case extensionEncryption:
		if len(data) < 16 {
			return refuse(CodeBadHeader, "the encryption header's pointer has %d bytes, not 16", len(data))
		}
		return im.need("the encryption header", binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data[8:]))
	case extensionBitmaps:
		consistent := im.info.Version == 3 && binary.BigEndian.Uint64(first[88:])&1 != 0
		if !consistent {
			return nil // to be ignored
		}
		if len(data) < 24 {
			return refuse(CodeBadHeader, "the bitmaps extension has %d bytes, not 24", len(data))
		}
		return im.need("the bitmap directory", binary.BigEndian.Uint64(data[16:]), binary.BigEndian.Uint64(data[8:]))
	}
	return nil
}

// entryBytes is the size of an L2 entry.
func (im *image) entryBytes() uint64 {
	if im.h.extendedL2 {
		return 16
	}
	return 8
}

// ceilDiv rounds up, without overflow.
func ceilDiv(a, b uint64) uint64 {
	if a == 0 {
		return 0
	}
	return (a-1)/b + 1
}

func bitNumbers(mask uint64) string {
	var numbers []string
	for mask != 0 {
		numbers = append(numbers, fmt.Sprint(bits.TrailingZeros64(mask)))
		mask &= mask - 1
	}
	return strings.Join(numbers, ", ")
}
