package imagefile

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz/lzma"
)

// maxXZDictionary is the largest dictionary that an .xz file may ask a reader to allot: what `xz -9` asks for.
const maxXZDictionary = 64 << 20

// ErrPacking is the cause of each error of [Unpack] and its reader that lies in the packed bytes, rather than in reading them.
var ErrPacking = errors.New("the compressed data can't be unpacked")

// Unpack gives what is packed in an archive of a kind: XZ, Zstd, Gzip, or Tar, which is given as it is. It needs at most 128 MiB of
// memory, whatever the file asks for; how much comes out is for the caller to bound. Close frees the memory.
func Unpack(kind Kind, source io.Reader) (io.ReadCloser, error) {
	u := &unpacker{source: &recorder{r: source}}
	switch kind {
	case XZ:
		x := &xzReader{source: bufio.NewReaderSize(u.source, 64<<10)}
		u.decoded, u.close = x, func() { x.block, x.err = nil, io.ErrClosedPipe }
	case Zstd:
		decoder, err := zstd.NewReader(u.source, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, u.failed(err)
		}
		u.decoded, u.close = decoder, decoder.Close
	case Gzip:
		decoder, err := gzip.NewReader(u.source)
		if err != nil {
			return nil, u.failed(err)
		}
		u.decoded = decoder
	case Tar:
		u.decoded = u.source
	default:
		return nil, fmt.Errorf("%w: %s is no kind of archive", ErrPacking, kind)
	}
	return u, nil
}

// unpacker tells a decoder's errors from those of its source.
type unpacker struct {
	source  *recorder
	decoded io.Reader
	close   func() // nil: nothing to free
}

func (u *unpacker) Read(p []byte) (int, error) {
	n, err := u.decoded.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = u.failed(err)
	}
	return n, err
}

func (u *unpacker) failed(err error) error {
	if u.source.err != nil {
		return u.source.err
	}
	return fmt.Errorf("%w: %w", ErrPacking, err)
}

func (u *unpacker) Close() error {
	if u.close != nil {
		u.close()
	}
	return nil
}

// xzReader decodes the blocks of an .xz stream (The .xz File Format 1.2.1). The xz package's reader allots the dictionary that a
// block asks for, up to 4 GiB, so the framing is read here and the LZMA2 data by the lzma package. Blocks with a second filter are
// refused. The index and what follows it are not looked at.
type xzReader struct {
	source  *bufio.Reader
	started bool
	check   func() (sum hash.Hash, sizeBytes int)
	block   io.Reader // nil between blocks
	counter *counter
	sum     hash.Hash // nil: a check that isn't known, whose bytes are passed over
	sumSize int
	err     error
}

// counter counts what a block takes from the file, since its padding depends on that.
type counter struct {
	source *bufio.Reader
	n      int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.source.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *counter) ReadByte() (byte, error) {
	b, err := c.source.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func (x *xzReader) Read(p []byte) (int, error) {
	for x.err == nil && len(p) > 0 {
		if x.block == nil {
			x.fail(x.open())
			continue
		}
		n, err := x.block.Read(p)
		if x.sum != nil {
			x.sum.Write(p[:n])
		}
		switch {
		case err == io.EOF:
			x.fail(x.end())
		case err != nil:
			x.fail(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	if len(p) == 0 {
		return 0, nil
	}
	return 0, x.err
}

func (x *xzReader) fail(err error) {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the xz stream ends early")
	}
	x.err = err
}

// open reads the header of the next block; io.EOF where the index begins.
func (x *xzReader) open() error {
	if !x.started {
		var head [12]byte
		if err := full(x.source, head[:]); err != nil {
			return err
		}
		if string(head[:6]) != "\xfd7zXZ\x00" || head[6] != 0 || crc32.ChecksumIEEE(head[6:8]) != binary.LittleEndian.Uint32(head[8:]) {
			return errors.New("the header of the xz stream is damaged")
		}
		x.started, x.check = true, xzCheck(head[7])
	}
	x.counter = &counter{source: x.source}
	var size [1]byte
	if err := full(x.counter, size[:]); err != nil {
		return err
	}
	if size[0] == 0 {
		return io.EOF
	}
	header := make([]byte, (int(size[0])+1)*4)
	header[0] = size[0]
	if err := full(x.counter, header[1:]); err != nil {
		return err
	}
	body, sum := header[:len(header)-4], header[len(header)-4:]
	if crc32.ChecksumIEEE(body) != binary.LittleEndian.Uint32(sum) {
		return errors.New("the header of an xz block is damaged")
	}
	dictionary, err := xzDictionary(body)
	if err != nil {
		return err
	}
	if dictionary > maxXZDictionary {
		return fmt.Errorf("it needs a dictionary of %d MiB, at most %d are allotted: pack it with xz -9 or less", dictionary>>20, maxXZDictionary>>20)
	}
	x.sum, x.sumSize = x.check()
	x.block, err = lzma.Reader2Config{DictCap: max(int(dictionary), lzma.MinDictCap)}.NewReader2(x.counter)
	return err
}

// end reads what follows a block: padding to four bytes, and the checksum.
func (x *xzReader) end() error {
	x.block = nil
	rest := make([]byte, int(-x.counter.n&3)+x.sumSize)
	if err := full(x.source, rest); err != nil {
		return err
	}
	if x.sum == nil {
		return nil
	}
	got := x.sum.Sum(nil)
	if x.sumSize < sha256.Size { // the CRCs stand in the file in the other byte order
		for i, k := 0, len(got)-1; i < k; i, k = i+1, k-1 {
			got[i], got[k] = got[k], got[i]
		}
	}
	if string(got) != string(rest[len(rest)-x.sumSize:]) {
		return errors.New("a checksum in the xz stream is wrong: the file is damaged")
	}
	return nil
}

// xzCheck makes the sums of a stream's blocks (2.1.1.2, 3.4).
func xzCheck(id byte) func() (hash.Hash, int) {
	switch id & 0x0f {
	case 0x01:
		return func() (hash.Hash, int) { return crc32.NewIEEE(), 4 }
	case 0x04:
		table := crc64.MakeTable(crc64.ECMA)
		return func() (hash.Hash, int) { return crc64.New(table), 8 }
	case 0x0a:
		return func() (hash.Hash, int) { return sha256.New(), sha256.Size }
	}
	size := []int{0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64}[id&0x0f]
	return func() (hash.Hash, int) { return nil, size }
}

// xzDictionary reads the size of the dictionary off a block's header (3.1), which is given without its checksum.
func xzDictionary(header []byte) (sizeBytes int64, err error) {
	flags, rest := header[1], header[2:]
	if flags&0x03 != 0 {
		return 0, errors.New("it is packed with a filter beside LZMA2: pack it without one")
	}
	for _, bit := range []byte{0x40, 0x80} { // compressed and uncompressed size, where given
		if flags&bit == 0 {
			continue
		}
		_, n := binary.Uvarint(rest)
		if n <= 0 {
			return 0, errors.New("the header of an xz block ends early")
		}
		rest = rest[n:]
	}
	if len(rest) < 3 || rest[0] != 0x21 || rest[1] != 1 { // filter LZMA2 with one byte of properties
		return 0, errors.New("an xz block is not LZMA2")
	}
	return lzma.DecodeDictCap(rest[2])
}

func full(r io.Reader, p []byte) error {
	if _, err := io.ReadFull(r, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}
