package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
)

const (
	sectorBytes = 512

	// Entries of the L1 and L2 tables: bits 9 to 55 are an offset.
	offsetMask     = 0x00ff_ffff_ffff_fe00
	flagCopied     = 1 << 63
	flagCompressed = 1 << 62
	flagZero       = 1 << 0
	l1Reserved     = ^uint64(flagCopied | offsetMask)
	l2Reserved     = ^uint64(flagCopied | flagCompressed | offsetMask | flagZero)

	subclusters = 32 // in a cluster, with extended L2 entries

	chunkBytes = 64 << 10 // tables are read in pieces of this size
)

// eachEntry streams a table of 64-bit entries that need has found in the file, and visits those that are not 0.
func (im *image) eachEntry(what string, offset, entries uint64, visit func(index, entry uint64) error) error {
	buffer := make([]byte, min(chunkBytes, entries*8))
	for index := uint64(0); index < entries; {
		if err := im.ctx.Err(); err != nil {
			return fmt.Errorf("read %s: %w", what, err)
		}
		piece := buffer[:min(uint64(len(buffer)), (entries-index)*8)]
		if err := im.readAt(piece, offset+index*8, what); err != nil {
			return err
		}
		for ; len(piece) > 0; piece, index = piece[8:], index+1 {
			if entry := binary.BigEndian.Uint64(piece); entry != 0 {
				if err := visit(index, entry); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkRefcountTable wants the refcount table and the blocks it names in the file (specification, "Host cluster management").
// The counts themselves are not looked at.
func (im *image) checkRefcountTable() error {
	if err := im.need("the refcount table", im.h.refcountOffset, im.h.refcountBytes); err != nil {
		return err
	}
	return im.eachEntry("the refcount table", im.h.refcountOffset, im.h.refcountBytes/8, func(index, entry uint64) error {
		if entry%im.h.clusterSize != 0 {
			return refuse(CodeCorrupt, "refcount table entry %d is %#x, not the offset of a cluster", index, entry)
		}
		return im.need("a refcount block", entry, im.h.clusterSize)
	})
}

// l2Table is one L2 table of the disk or of a snapshot.
type l2Table struct {
	offset       uint64
	firstCluster uint64 // number of the guest's cluster that its first entry maps
	virtualSize  uint64 // of the disk or the snapshot
	active       bool   // its clusters are counted in Info
}

// walkActive checks the tables of the disk as it is now (specification, "Cluster mapping").
func (im *image) walkActive() error {
	const what = "the L1 table"
	if err := im.need(what, im.h.l1Offset, im.h.l1Entries*8); err != nil {
		return err
	}
	err := im.eachEntry(what, im.h.l1Offset, im.h.l1Entries, func(index, entry uint64) error {
		offset, err := im.l2Offset(what, index, entry)
		if err == nil && offset != 0 {
			im.activeL2 = append(im.activeL2, offset)
		}
		return err
	})
	if err != nil {
		return err
	}
	// No writer shares an L2 table between two parts of one disk. Refusing that bounds the walk by the size of the file.
	slices.Sort(im.activeL2)
	for i := 1; i < len(im.activeL2); i++ {
		if im.activeL2[i] == im.activeL2[i-1] {
			return refuse(CodeCorrupt, "two entries of the L1 table name the L2 table at offset %d", im.activeL2[i])
		}
	}
	return im.eachEntry(what, im.h.l1Offset, im.h.l1Entries, func(index, entry uint64) error {
		offset, err := im.l2Offset(what, index, entry)
		if err != nil || offset == 0 {
			return err
		}
		return im.walkTable(l2Table{offset: offset, firstCluster: index * im.h.l2Entries, virtualSize: im.h.virtualSize, active: true})
	})
}

// l2Offset gives the offset in an L1 entry, 0 for none.
func (im *image) l2Offset(table string, index, entry uint64) (uint64, error) {
	offset := entry & offsetMask
	if entry&l1Reserved != 0 || offset%im.h.clusterSize != 0 {
		return 0, refuse(CodeCorrupt, "entry %d of %s is %#x, not the offset of a cluster", index, table, entry)
	}
	return offset, nil
}

// walkTable checks that what an L2 table names lies in the file.
func (im *image) walkTable(table l2Table) error {
	what := fmt.Sprintf("the L2 table for guest offset %d", table.firstCluster*im.h.clusterSize)
	if err := im.ctx.Err(); err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	if err := im.need(what, table.offset, im.h.clusterSize); err != nil {
		return err
	}
	if im.l2 == nil {
		im.l2 = make([]byte, im.h.clusterSize)
	}
	if err := im.readAt(im.l2, table.offset, what); err != nil {
		return err
	}
	stride := int(im.entryBytes())
	guest := table.firstCluster * im.h.clusterSize
	for at := 0; at < len(im.l2); at, guest = at+stride, guest+im.h.clusterSize {
		entry := binary.BigEndian.Uint64(im.l2[at:])
		var bitmap uint64
		if im.h.extendedL2 {
			bitmap = binary.BigEndian.Uint64(im.l2[at+8:])
		}
		if entry == 0 && bitmap == 0 {
			continue
		}
		if err := im.checkEntry(table, guest, entry, bitmap); err != nil {
			return err
		}
	}
	return nil
}

// checkEntry judges one L2 entry (specification, "L2 table entry" to "Extended L2 Entries"). bitmap is that of an extended
// entry.
func (im *image) checkEntry(table l2Table, guest, entry, bitmap uint64) error {
	if entry&flagCompressed != 0 {
		if table.active {
			im.info.AllocatedClusters++
			im.info.CompressedClusters++
		}
		return im.checkCompressed(guest, entry)
	}
	host := entry & offsetMask
	zeroAllowed := im.info.Version == 3 && !im.h.extendedL2
	if entry&l2Reserved != 0 || host%im.h.clusterSize != 0 || entry&flagZero != 0 && !zeroAllowed {
		return refuse(CodeCorrupt, "the L2 entry for guest offset %d is %#x, which the format does not allow", guest, entry)
	}
	allocated := uint32(bitmap)
	if zeros := uint32(bitmap >> 32); allocated&zeros != 0 || allocated != 0 && host == 0 {
		return refuse(CodeCorrupt, "the subclusters for guest offset %d are %#x at host offset %d, which the format does not allow", guest, bitmap, host)
	}
	if host == 0 {
		return nil
	}
	if table.active {
		im.info.AllocatedClusters++
	}
	if end := host + im.dataBytes(table, guest, entry, allocated); end > uint64(im.size) {
		return refuse(CodeTruncated, "the data for guest offset %d needs the file up to byte %d, but it ends at %d", guest, end, im.size)
	}
	return nil
}

// dataBytes is how much of a cluster must be in the file. QEMU leaves the last cluster of a file short where the rest of it is
// beyond the end of the disk, or consists of subclusters that are not allocated. Of a cluster that reads as zeros nothing is
// needed, but it begins within the file: to qemu-img check a file is damaged that is short by a whole cluster. Beyond the disk
// only the state of a machine is stored.
func (im *image) dataBytes(table l2Table, guest, entry uint64, allocated uint32) uint64 {
	length := im.h.clusterSize
	if im.h.extendedL2 {
		length = uint64(bits.Len32(allocated)) * (im.h.clusterSize / subclusters)
	}
	switch {
	case entry&flagZero != 0:
		length = 0
	case guest >= table.virtualSize:
		length = min(length, sectorBytes)
	default:
		length = min(length, ceilDiv(table.virtualSize-guest, sectorBytes)*sectorBytes)
	}
	return max(1, length)
}
