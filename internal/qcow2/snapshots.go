package qcow2

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
)

const (
	snapshotHeaderBytes = 40
	snapshotExtraBytes  = 16 // what is known of the extra data, required in version 3

	// Bounds of the work on snapshots. A disk of 1 TiB with clusters of 64 KiB has 2048 L1 entries, so that 32768 snapshots of it
	// stay below.
	maxSnapshotL1Entries = 64 << 20
	maxSnapshotL2Tables  = 1 << 20
)

// walkSnapshots checks the tables of the internal snapshots (specification, "Snapshots"). L2 tables that were walked already,
// since the disk or another snapshot shares them, are passed over.
func (im *image) walkSnapshots() error {
	offset, entriesLeft := im.h.snapshotsOffset, uint64(maxSnapshotL1Entries)
	for number := uint64(0); number < im.h.snapshots; number++ {
		what := fmt.Sprintf("snapshot %d of %d", number+1, im.h.snapshots)
		if err := im.ctx.Err(); err != nil {
			return fmt.Errorf("read %s: %w", what, err)
		}
		if err := im.need(what, offset, snapshotHeaderBytes); err != nil {
			return err
		}
		head := make([]byte, snapshotHeaderBytes+snapshotExtraBytes)
		if err := im.readAt(head[:snapshotHeaderBytes], offset, what); err != nil {
			return err
		}
		l1Offset := binary.BigEndian.Uint64(head)
		l1Entries := uint64(binary.BigEndian.Uint32(head[8:]))
		names := uint64(binary.BigEndian.Uint16(head[12:])) + uint64(binary.BigEndian.Uint16(head[14:]))
		extra := uint64(binary.BigEndian.Uint32(head[36:]))
		length := snapshotHeaderBytes + extra + names
		if err := im.need(what, offset, length); err != nil {
			return err
		}
		virtualSize := im.h.virtualSize
		if extra >= snapshotExtraBytes {
			if err := im.readAt(head, offset, what); err != nil {
				return err
			}
			virtualSize = binary.BigEndian.Uint64(head[snapshotHeaderBytes+8:])
			if virtualSize > math.MaxInt64 {
				return refuse(CodeCorrupt, "%s has a virtual size of %d bytes, more than 2^63", what, virtualSize)
			}
		} else if im.info.Version == 3 {
			return refuse(CodeCorrupt, "%s has %d bytes of extra data, version 3 needs %d", what, extra, snapshotExtraBytes)
		}
		offset += (length + 7) &^ 7

		if l1Entries*8 > maxL1Bytes || l1Offset%im.h.clusterSize != 0 || l1Entries > 0 && l1Offset == 0 {
			return refuse(CodeCorrupt, "%s has an L1 table of %d entries at offset %d", what, l1Entries, l1Offset)
		}
		if l1Entries > entriesLeft {
			return refuse(CodeUnsupportedFeature, "%d snapshots have more than %d L1 entries", im.h.snapshots, maxSnapshotL1Entries)
		}
		entriesLeft -= l1Entries
		if err := im.walkSnapshot("the L1 table of "+what, l1Offset, l1Entries, virtualSize); err != nil {
			return err
		}
	}
	return nil
}

func (im *image) walkSnapshot(what string, l1Offset, l1Entries, virtualSize uint64) error {
	if err := im.need(what, l1Offset, l1Entries*8); err != nil {
		return err
	}
	return im.eachEntry(what, l1Offset, l1Entries, func(index, entry uint64) error {
		offset, err := im.l2Offset(what, index, entry)
		if err != nil || offset == 0 {
			return err
		}
		if _, shared := slices.BinarySearch(im.activeL2, offset); shared {
			return nil
		}
		if _, seen := im.snapshotL2[offset]; seen {
			return nil
		}
		if len(im.snapshotL2) >= maxSnapshotL2Tables {
			return refuse(CodeUnsupportedFeature, "the snapshots have more than %d L2 tables of their own", maxSnapshotL2Tables)
		}
		if im.snapshotL2 == nil {
			im.snapshotL2 = map[uint64]struct{}{}
		}
		im.snapshotL2[offset] = struct{}{}
		return im.walkTable(l2Table{offset: offset, firstCluster: index * im.h.l2Entries, virtualSize: virtualSize})
	})
}
