package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/imgsrv/imgsrv/internal/qcow2"
)

// metered is a file that is read between its ends only, and counts what is read.
type metered struct {
	t    *testing.T
	body []byte
	read int64 // bytes
}

func (m *metered) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset+int64(len(p)) > int64(len(m.body)) {
		m.t.Errorf("read of %d bytes at %d of %d", len(p), offset, len(m.body))
	}
	m.read += int64(len(p))
	return bytes.NewReader(m.body).ReadAt(p, offset)
}

// FuzzInspect feeds damaged images. Those in testdata/fuzz/FuzzInspect were made by qemu-img 7.2 with clusters of 512 bytes:
// empty and with data, version 2, compressed by zlib and zstd, with snapshots.
func FuzzInspect(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	extended := handmade(14, 1<<20)
	extended.put64(72, 16)
	table := extended.addL2()
	extended.put64(table, uint64(extended.add(nil)))
	extended.put64(table+8, 0xf0)
	f.Add(extended.body)
	f.Fuzz(func(t *testing.T, body []byte) {
		inspect := func(body []byte) (qcow2.Info, error) {
			file := &metered{t: t, body: body}
			info, err := qcow2.Inspect(context.Background(), file, int64(len(body)))
			// Without snapshots each table is read at most twice, and the last sector's clusters (64 at most) once.
			snapshots := len(body) >= 64 && binary.BigEndian.Uint32(body[60:]) > 0
			if most := 70*int64(len(body)) + 4096; !snapshots && file.read > most {
				t.Errorf("read %d bytes of a file of %d", file.read, len(body))
			}
			return info, err
		}
		info, err := inspect(body)
		if err != nil {
			var refused *qcow2.Error
			if !errors.As(err, &refused) || refused.Code == "" || refused.Detail == "" {
				t.Fatalf("an error that is no refusal: %v", err)
			}
			return
		}
		if info.VirtualSize < 0 || info.ClusterSize < 512 || info.ClusterSize&(info.ClusterSize-1) != 0 || info.CompressedClusters > info.AllocatedClusters {
			t.Fatalf("impossible values: %+v", info)
		}
		// What is whole stays whole when bytes are added.
		if longer, err := inspect(append(bytes.Clone(body), make([]byte, 700)...)); err != nil || longer != info {
			t.Fatalf("with bytes added: %+v, %v, before %+v", longer, err, info)
		}
	})
}
