package pieces

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

var errSeek = errors.New("seek: there is no such place")

// Coding is a way to compress a body.
type Coding int

// Gzip (RFC 1952) is one member, since not every client goes on after the first: the pieces are blocks of its one deflate stream, none
// of which refers to another piece. Zstd (RFC 8878) is a frame for each piece; a decoder takes frames one after the other for one text.
const (
	Gzip Coding = iota
	Zstd
	codings = 2
)

// String is the coding's name in HTTP.
func (c Coding) String() string { return [codings]string{"gzip", "zstd"}[c] }

// Coder compresses bodies. It may be used by several goroutines.
type Coder struct {
	deflate sync.Pool // of *flate.Writer
	zstd    func() (*zstd.Encoder, error)
}

// NewCoder makes a coder.
func NewCoder() *Coder {
	return &Coder{zstd: sync.OnceValues(func() (*zstd.Encoder, error) {
		// A window of at most 8 MiB is what HTTP clients must take (RFC 9659).
		return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(8<<20))
	})}
}

// Around the blocks of a gzip member: no name, no time, unknown system; an empty last block.
var (
	gzipHead  = [...]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}
	lastBlock = [...]byte{3, 0}
)

// Compress gives the compressed body. Pieces that were compressed before are not compressed again.
func (c *Coder) Compress(b Body, coding Coding) (*Parts, error) {
	parts := make([][]byte, 0, len(b)+2)
	if coding == Gzip {
		parts = append(parts, gzipHead[:])
	}
	for _, p := range b {
		part, err := c.piece(p, coding)
		if err != nil {
			return nil, fmt.Errorf("compress with %s: %w", coding, err)
		}
		parts = append(parts, part)
	}
	if coding == Gzip {
		sum := uint32(0)
		for _, p := range b {
			sum = crc32.Update(sum, crc32.IEEETable, p.plain)
		}
		tail := binary.LittleEndian.AppendUint32(lastBlock[:len(lastBlock):len(lastBlock)], sum)
		parts = append(parts, binary.LittleEndian.AppendUint32(tail, uint32(b.Len())))
	}
	return newParts(parts), nil
}

func (c *Coder) piece(p *Piece, coding Coding) ([]byte, error) {
	kept := &p.coded[coding]
	kept.once.Do(func() {
		switch coding {
		case Zstd:
			var encoder *zstd.Encoder
			if encoder, kept.err = c.zstd(); kept.err == nil {
				kept.bytes = bytes.Clone(encoder.EncodeAll(p.plain, make([]byte, 0, len(p.plain)/2)))
			}
		case Gzip:
			kept.bytes, kept.err = c.blocks(p.plain)
		}
	})
	return kept.bytes, kept.err
}

// blocks is a part of a deflate stream that ends at a byte and isn't the last.
func (c *Coder) blocks(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	w, ok := c.deflate.Get().(*flate.Writer)
	if ok {
		w.Reset(&out)
	} else {
		var err error
		if w, err = flate.NewWriter(&out, flate.DefaultCompression); err != nil {
			return nil, err
		}
	}
	defer c.deflate.Put(w)
	_, err := w.Write(plain)
	if err := errors.Join(err, w.Flush()); err != nil {
		return nil, err
	}
	return bytes.Clone(out.Bytes()), nil
}
