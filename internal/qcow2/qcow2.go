// Package qcow2 reads the header and the tables of qcow2 images and refuses those that cannot be published: damaged, cut off,
// or dependent on another file. It reads only, and must not know what is done with an image; it is no replacement for
// `qemu-img check`, since it does not compare reference counts or look for clusters that overlap.
//
// Source: QEMU's docs/interop/qcow2.txt ("the specification" below). Limits that the specification gives as QEMU's are
// refused here too, since an image that QEMU does not open is of no use. How long the file of a sound image must be is not in
// the specification; that was found by experiments with qemu-img 7.2 and is written where it is decided.
package qcow2

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Info is what an image says of itself, and what its tables hold.
type Info struct {
	Version            int    `json:"version"`             // 2 or 3
	VirtualSize        int64  `json:"virtual_size"`        // bytes that the guest sees
	ClusterSize        int64  `json:"cluster_size"`        // bytes
	Compression        string `json:"compression"`         // zlib or zstd: the method for compressed clusters, if there are any
	AllocatedClusters  int64  `json:"allocated_clusters"`  // clusters of the disk with a place in the file, as qemu-img check counts them
	CompressedClusters int64  `json:"compressed_clusters"` // of these, the compressed ones
	Encrypted          bool   `json:"encrypted"`
	Encryption         string `json:"encryption,omitempty"` // aes or luks
	Dirty              bool   `json:"dirty"`                // not closed cleanly: reference counts may be out of date, the guest's data is whole
	LazyRefcounts      bool   `json:"lazy_refcounts"`
	ExtendedL2         bool   `json:"extended_l2"`
	Snapshots          int    `json:"snapshots"` // internal snapshots
}

// Codes of an Error. They are stable: they reach users and tests.
const (
	CodeNotQcow2           = "not-qcow2"           // another magic
	CodeBadHeader          = "bad-header"          // a field of the header that no sound image has
	CodeUnsupportedFeature = "unsupported-feature" // a version, feature or method that is not known here
	CodeBackingFile        = "backing-file"        // needs another image
	CodeExternalDataFile   = "external-data-file"  // needs a file with its data
	CodeTruncated          = "truncated"           // refers to something beyond the end of the file
	CodeCorrupt            = "corrupt"             // marked as corrupt, or tables that contradict the specification
)

// Error is a refusal of an image for what it is. Errors of reading it are of other types.
type Error struct {
	Code   string
	Detail string // for people; names the value that offends
}

func (e *Error) Error() string { return "qcow2 image refused (" + e.Code + "): " + e.Detail }

func refuse(code, format string, args ...any) error {
	return &Error{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// Inspect reads an image of sizeBytes and walks all its mapping tables. An image that cannot be published is an *Error; other
// errors are those of reading or of the context, which ends a long walk.
//
// It reads the first cluster and each mapping table once, tables of snapshots too. Whatever the file says, it holds at most
// about 80 MiB: 32 MiB for the offsets of the active L2 tables, some 40 MiB for those of snapshots, and a few clusters.
func Inspect(ctx context.Context, r io.ReaderAt, sizeBytes int64) (Info, error) {
	im := &image{ctx: ctx, file: r, size: sizeBytes}
	if err := im.readHeader(); err != nil {
		return Info{}, err
	}
	if err := im.checkRefcountTable(); err != nil {
		return Info{}, err
	}
	if err := im.walkActive(); err != nil {
		return Info{}, err
	}
	if err := im.walkSnapshots(); err != nil {
		return Info{}, err
	}
	return im.info, nil
}

// image is an image while it is inspected.
type image struct {
	ctx  context.Context
	file io.ReaderAt
	size int64 // of the file
	h    header
	info Info

	activeL2   []uint64            // offsets of the active L2 tables, sorted
	snapshotL2 map[uint64]struct{} // offsets of further L2 tables, of snapshots
	l2         []byte              // one L2 table
	tail       map[uint64]struct{} // compressed clusters in the last sector that were decoded: see checkTail
}

// need refuses what does not lie in the file as a whole.
func (im *image) need(what string, offset, length uint64) error {
	end := offset + length
	if end < offset || end > uint64(im.size) {
		return refuse(CodeTruncated, "%s at offset %d needs %d bytes, but the file ends at %d", what, offset, length, im.size)
	}
	return nil
}

// readAt fills p. Its callers ask need first, so an end of file here is a file that is shorter than it was said to be.
func (im *image) readAt(p []byte, offset uint64, what string) error {
	n, err := im.file.ReadAt(p, int64(offset))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %s at offset %d: %w", what, offset, err)
}
