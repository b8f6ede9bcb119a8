package convert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// selfName is who makes what needs no tool.
const selfName = "imgsrv"

// compress makes disk.raw.zst of a raw file in the folder, hashing on the way, and unpacks it once to see that the
// same bytes come out.
func (w *work) compress(ctx context.Context, raw, before, verified string) ([]File, error) {
	from, err := os.Open(filepath.Join(w.dir, raw))
	if err != nil {
		return nil, fmt.Errorf("compress %s: %w", raw, err)
	}
	defer from.Close() //nolint:errcheck // only read
	to, err := os.OpenFile(filepath.Join(w.dir, ZstdFormat), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("compress %s: %w", raw, err)
	}
	defer to.Close() //nolint:errcheck // closed below where it matters
	packedSum, rawSum := sha256.New(), sha256.New()
	encoder, err := zstd.NewWriter(io.MultiWriter(to, packedSum), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("compress %s: %w", raw, err)
	}
	_, err = io.Copy(io.MultiWriter(encoder, rawSum), reader{ctx, from})
	if err = errors.Join(err, encoder.Close()); err != nil {
		return nil, fmt.Errorf("compress %s: %w", raw, err)
	}
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("compress %s: %w", raw, err)
	}
	back := sha256.New()
	decoder, err := zstd.NewReader(reader{ctx, to}, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", ZstdFormat, err)
	}
	defer decoder.Close()
	if _, err := io.Copy(back, decoder); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", ZstdFormat, err)
	}
	if !bytes.Equal(back.Sum(nil), rawSum.Sum(nil)) {
		return nil, &Error{CodeNotSame, ZstdFormat + " unpacks to other bytes than went in"}
	}
	info, err := to.Stat()
	if err == nil {
		err = to.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compress %s: %w", raw, err)
	}
	file := File{Format: ZstdFormat, SHA256: hex.EncodeToString(packedSum.Sum(nil)), Size: info.Size(), Tool: selfName, Version: "zstd, level default",
		Arguments: before + "zstd " + raw, Verified: verified + "unpacked and compared by SHA-256 with " + raw}
	if before != "" {
		file.Tool, file.Version = toolName, w.version
	}
	return []File{file}, nil
}

// zeroMap is the content of disk.raw.map.json.
type zeroMap struct {
	Format string  `json:"format"` // of the file that it is about
	SHA256 string  `json:"sha256"` // of that file
	Size   int64   `json:"size"`   // bytes of that file, holes and all
	Data   []piece `json:"data"`   // what holds data, in order; all else is zero
}

type piece struct {
	Start  int64 `json:"start"`  // bytes
	Length int64 `json:"length"` // bytes
}

// maxPieces bounds the map: beyond it neighbours are joined, since what is called data may be zero as well.
const maxPieces = 1 << 16

// mapZeroes writes where a sparse file has data. What the file system calls a hole reads as zeroes, so there is
// nothing to compare.
func (w *work) mapZeroes(ctx context.Context, raw, digest string) (File, error) {
	f, err := os.Open(filepath.Join(w.dir, raw))
	if err != nil {
		return File{}, fmt.Errorf("map %s: %w", raw, err)
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return File{}, fmt.Errorf("map %s: %w", raw, err)
	}
	m := zeroMap{Format: raw, SHA256: digest, Size: info.Size(), Data: []piece{}}
	for at := int64(0); at < m.Size; {
		if err := ctx.Err(); err != nil {
			return File{}, err
		}
		start, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // lseek(2): no data to the end
			break
		}
		if err != nil {
			return File{}, fmt.Errorf("map %s: %w", raw, err)
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return File{}, fmt.Errorf("map %s: %w", raw, err)
		}
		if n := len(m.Data); n == maxPieces {
			m.Data[n-1].Length = end - m.Data[n-1].Start
		} else {
			m.Data = append(m.Data, piece{start, end - start})
		}
		at = end
	}
	data, err := json.MarshalIndent(m, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join(w.dir, MapFormat), append(data, '\n'), 0o600)
	}
	if err != nil {
		return File{}, fmt.Errorf("map %s: %w", raw, err)
	}
	file, err := w.hash(ctx, MapFormat)
	file.Tool, file.Version, file.Arguments, file.Verified = selfName, "1", "map of the holes of "+raw, "holes read as zeroes; "+raw+" was compared with its source"
	return file, err
}
