package qcow2

import (
	"bytes"
	"compress/flate"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxTail is how many compressed clusters can lie in the last sector of a file and be sound: the shortest, of 512 bytes, takes
// some eight.
const maxTail = 64

// checkCompressed judges a compressed cluster's place in the file (specification, "Compressed Clusters Descriptor").
func (im *image) checkCompressed(guest, entry uint64) error {
	sizeBits := im.h.clusterBits - 8
	offsetBits := 62 - sizeBits
	offset := entry & (1<<offsetBits - 1)
	sectors := entry&^(flagCompressed|flagCopied)>>offsetBits + 1
	if offset>>56 != 0 {
		return refuse(CodeCorrupt, "the L2 entry for guest offset %d is %#x, with an offset beyond 56 bits", guest, entry)
	}
	end := offset&^(sectorBytes-1) + sectors*sectorBytes
	size := uint64(im.size)
	if end <= size {
		return nil
	}
	// The entry counts whole sectors. qemu-img fills the last one, but QEMU as such ends the file with the last byte it has
	// (qemu-io -c "write -c"), so there the data must tell.
	if offset < size && end-size < sectorBytes {
		return im.checkTail(guest, offset)
	}
	return refuse(CodeTruncated, "the compressed data for guest offset %d needs the file up to byte %d, but it ends at %d", guest, end, im.size)
}

// checkTail decodes a compressed cluster that reaches into the incomplete last sector of the file.
func (im *image) checkTail(guest, offset uint64) error {
	if _, done := im.tail[offset]; done {
		return nil
	}
	if len(im.tail) >= maxTail {
		return refuse(CodeCorrupt, "more than %d compressed clusters end in the last %d bytes of the file", maxTail, im.size%sectorBytes)
	}
	packed := make([]byte, uint64(im.size)-offset) // at most twice a cluster, as the entry has it
	if err := im.readAt(packed, offset, "compressed data"); err != nil {
		return err
	}
	var decoded io.Reader
	if im.h.zstd {
		decoder, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(max(im.h.clusterSize, zstd.MinWindowSize)))
		if err != nil {
			return refuse(CodeTruncated, "the compressed data for guest offset %d at the end of the file cannot be decoded: %v", guest, err)
		}
		defer decoder.Close()
		decoded = decoder
	} else {
		decoded = flate.NewReader(bytes.NewReader(packed))
	}
	if n, err := io.CopyN(io.Discard, decoded, int64(im.h.clusterSize)); err != nil {
		return refuse(CodeTruncated, "the compressed data for guest offset %d at the end of the file gives %d of %d bytes: %v",
			guest, n, im.h.clusterSize, err)
	}
	if im.tail == nil {
		im.tail = map[uint64]struct{}{}
	}
	im.tail[offset] = struct{}{}
	return nil
}
