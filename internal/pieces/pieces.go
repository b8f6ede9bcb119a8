// Package pieces makes bodies of HTTP answers of pieces that never change. A body that differs in a few pieces from the one before it
// costs these alone: what a piece's bytes hash to, and what they are compressed to, is found out once.
//
// It knows nothing of what is in a piece, nor of HTTP.
package pieces

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"slices"
	"sync"
)

// Piece is a part of a body. It is never changed.
type Piece struct {
	plain []byte
	sum   [sha256.Size]byte
	// By coding, without what stands before the first and after the last piece.
	coded [codings]struct {
		once  sync.Once
		bytes []byte
		err   error
	}
}

// New makes a piece of bytes that the caller doesn't change any more.
func New(plain []byte) *Piece { return &Piece{plain: plain, sum: sha256.Sum256(plain)} }

// Bytes are the piece's; they must not be changed.
func (p *Piece) Bytes() []byte { return p.plain }

// Body is pieces one after the other.
type Body []*Piece

// Len is the number of bytes.
func (b Body) Len() (n int64) {
	for _, p := range b {
		n += int64(len(p.plain))
	}
	return n
}

// Tag names the bytes, for one way of cutting bodies into pieces: the SHA-256 (hex) of their SHA-256 sums one after the other.
func (b Body) Tag() string {
	sum := sha256.New()
	for _, p := range b {
		_, _ = sum.Write(p.sum[:]) // a hash takes everything
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// Bytes puts the pieces together.
func (b Body) Bytes() []byte {
	out := make([]byte, 0, b.Len())
	for _, p := range b {
		out = append(out, p.plain...)
	}
	return out
}

// Parts are the bytes of the pieces.
func (b Body) Parts() *Parts {
	parts := make([][]byte, len(b))
	for i, p := range b {
		parts[i] = p.plain
	}
	return newParts(parts)
}

// Parts are bytes in parts, to be read by any number of readers.
type Parts struct {
	parts [][]byte
	ends  []int64 // of each part
}

func newParts(parts [][]byte) *Parts {
	p := &Parts{parts: parts, ends: make([]int64, len(parts))}
	var end int64
	for i, part := range parts {
		end += int64(len(part))
		p.ends[i] = end
	}
	return p
}

// Size is the number of bytes.
func (p *Parts) Size() int64 {
	if len(p.ends) == 0 {
		return 0
	}
	return p.ends[len(p.ends)-1]
}

// Reader reads them one after the other, as if they were one.
func (p *Parts) Reader() *Reader { return &Reader{Parts: p} }

// Reader reads parts. It is for one goroutine.
type Reader struct {
	*Parts
	at int64
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (n int, err error) {
	i, found := slices.BinarySearch(r.ends, r.at)
	if found {
		i++
	}
	for ; i < len(r.parts) && n < len(p); i++ {
		start := r.ends[i] - int64(len(r.parts[i]))
		copied := copy(p[n:], r.parts[i][r.at-start:])
		n += copied
		r.at += int64(copied)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Seek implements io.Seeker.
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.Size()
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, errSeek
	}
	r.at = offset
	return offset, nil
}
