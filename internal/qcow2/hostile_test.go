package qcow2_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"runtime"
	"testing"

	"github.com/imgsrv/imgsrv/internal/qcow2"
)

// madeUp is a file of any size that has a few pieces and is 0 elsewhere; fill, where it is given, makes up the rest.
type madeUp struct {
	pieces map[int64][]byte
	fill   func(p []byte, offset int64)
	read   int64
}

func (s *madeUp) ReadAt(p []byte, offset int64) (int, error) {
	s.read += int64(len(p))
	clear(p)
	if s.fill != nil {
		s.fill(p, offset)
	}
	for at, piece := range s.pieces {
		if from, to := max(at, offset), min(at+int64(len(piece)), offset+int64(len(p))); from < to {
			copy(p[from-offset:to-offset], piece[from-at:to-at])
		}
	}
	return len(p), nil
}

var _ io.ReaderAt = (*madeUp)(nil)

// TestAbsurdClaimsCostLittle: headers that claim as much as their fields hold, in files that are as large as they need to be.
// Each is refused, or its walk ends with the context; memory and reading stay within what Inspect promises.
func TestAbsurdClaimsCostLittle(t *testing.T) {
	const clusterBits = 16
	header := func(change func(h []byte)) []byte {
		h := make([]byte, 112)
		copy(h, "QFI\xfb")
		binary.BigEndian.PutUint32(h[4:], 3)
		binary.BigEndian.PutUint32(h[20:], clusterBits)
		binary.BigEndian.PutUint64(h[24:], 1<<40)
		binary.BigEndian.PutUint32(h[36:], 4<<20) // L1 entries: as many as QEMU takes
		binary.BigEndian.PutUint64(h[40:], 1<<clusterBits)
		binary.BigEndian.PutUint64(h[48:], 1<<30)
		binary.BigEndian.PutUint32(h[56:], 1)
		binary.BigEndian.PutUint32(h[96:], 4)
		binary.BigEndian.PutUint32(h[100:], 104)
		change(h)
		return h
	}
	inL1 := func(offset int64) bool { return offset >= 1<<clusterBits && offset < 1<<clusterBits+32<<20 }
	for name, c := range map[string]struct {
		header []byte
		pieces map[int64][]byte
		fill   func(p []byte, offset int64)
		code   string // "" where the context has to end it
	}{
		"virtual size":   {header: header(func(h []byte) { binary.BigEndian.PutUint64(h[24:], math.MaxUint64) }), code: qcow2.CodeBadHeader},
		"L1 size":        {header: header(func(h []byte) { binary.BigEndian.PutUint32(h[36:], math.MaxUint32) }), code: qcow2.CodeBadHeader},
		"refcount table": {header: header(func(h []byte) { binary.BigEndian.PutUint32(h[56:], math.MaxUint32) }), code: qcow2.CodeBadHeader},
		"refcount order": {header: header(func(h []byte) { binary.BigEndian.PutUint32(h[96:], math.MaxUint32) }), code: qcow2.CodeBadHeader},
		"cluster size":   {header: header(func(h []byte) { binary.BigEndian.PutUint32(h[20:], 63) }), code: qcow2.CodeBadHeader},
		"header length":  {header: header(func(h []byte) { binary.BigEndian.PutUint32(h[100:], math.MaxUint32-7) }), code: qcow2.CodeBadHeader},
		"snapshots":      {header: header(func(h []byte) { binary.BigEndian.PutUint32(h[60:], math.MaxUint32) }), code: qcow2.CodeBadHeader},
		"backing name": {header: header(func(h []byte) {
			binary.BigEndian.PutUint64(h[8:], 512)
			binary.BigEndian.PutUint32(h[16:], math.MaxUint32)
		}), code: qcow2.CodeBackingFile},
		"a huge extension":                {header: append(header(func([]byte) {})[:104], 0x12, 0x34, 0x56, 0x78, 0xff, 0xff, 0xff, 0xff), code: qcow2.CodeBadHeader},
		"refcount blocks beyond the file": {header: header(func([]byte) {}), pieces: map[int64][]byte{1 << 30: {0x7f, 0xff, 0, 0, 0, 0, 0, 0}}, code: qcow2.CodeTruncated},
		"one L2 table for all": {header: header(func([]byte) {}), code: qcow2.CodeCorrupt, fill: func(p []byte, offset int64) {
			for at := 0; inL1(offset) && at+8 <= len(p); at += 8 {
				binary.BigEndian.PutUint64(p[at:], 2<<30)
			}
		}},
		"as many L2 tables as can be": {header: header(func([]byte) {}), fill: func(p []byte, offset int64) {
			for at := 0; inL1(offset) && at+8 <= len(p); at += 8 {
				binary.BigEndian.PutUint64(p[at:], 2<<30+uint64(offset+int64(at))<<13) // each 8 bytes further, a cluster further
			}
		}},
		"many snapshots with large tables": {code: qcow2.CodeUnsupportedFeature,
			header: header(func(h []byte) {
				binary.BigEndian.PutUint32(h[60:], 65536)
				binary.BigEndian.PutUint64(h[64:], 3<<30)
			}),
			fill: func(p []byte, offset int64) { // each snapshot is 56 bytes and has the same empty L1 table
				for at := 0; offset >= 3<<30 && at < len(p); at++ {
					switch (offset + int64(at) - 3<<30) % 56 {
					case 4: // L1 offset 1 << 30 + 1 << 16, in the refcount block's neighbourhood
						p[at] = 0x40
					case 5:
						p[at] = 1
					case 9: // 4 Mi entries
						p[at] = 0x40
					case 39: // extra data
						p[at] = 16
					}
				}
			}},
	} {
		t.Run(name, func(t *testing.T) {
			file := &madeUp{pieces: map[int64][]byte{0: c.header}, fill: c.fill}
			for at, piece := range c.pieces {
				file.pieces[at] = piece
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.code == "" { // what a file of this size may cost is its size; whoever waits may end it
				inner := c.fill
				file.fill = func(p []byte, offset int64) {
					if offset >= 2<<30 && file.read > 200<<20 {
						cancel()
					}
					inner(p, offset)
				}
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := qcow2.Inspect(ctx, file, 1<<50)
			runtime.ReadMemStats(&after)
			var refused *qcow2.Error
			switch {
			case c.code == "" && !errors.Is(err, context.Canceled):
				t.Errorf("Inspect = %v, want the context's end", err)
			case c.code != "" && (!errors.As(err, &refused) || refused.Code != c.code):
				t.Errorf("Inspect = %v, want %s", err, c.code)
			}
			// Growing slices count several times over in what is allotted.
			if allotted := after.TotalAlloc - before.TotalAlloc; allotted > 300<<20 {
				t.Errorf("%d MiB were allotted", allotted>>20)
			}
			if live := int64(after.HeapAlloc) - int64(before.HeapAlloc); live > 128<<20 {
				t.Errorf("%d MiB were held", live>>20)
			}
			if file.read > 1<<30 {
				t.Errorf("%d MiB were read", file.read>>20)
			}
		})
	}
}
