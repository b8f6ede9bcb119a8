package imagefile_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgsrv/imgsrv/internal/imagefile"
)

// noise is bytes of which half can be packed, longer than an LZMA2 chunk.
func noise(sizeBytes int) []byte {
	body := make([]byte, sizeBytes)
	source := rand.New(rand.NewPCG(1, 2))
	for i := range body {
		if i/1000%2 == 0 {
			body[i] = byte(source.Uint32())
		}
	}
	return body
}

func unpack(kind imagefile.Kind, packed []byte) ([]byte, error) {
	r, err := imagefile.Unpack(kind, bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return io.ReadAll(r)
}

func TestWhatOtherToolsPackedIsUnpacked(t *testing.T) {
	t.Parallel()
	body := noise(400_000)
	for _, test := range []struct {
		kind imagefile.Kind
		tool string
		args []string
	}{
		{imagefile.XZ, "xz", []string{"-0"}},
		{imagefile.XZ, "xz", []string{"-0", "--check=crc32"}},
		{imagefile.XZ, "xz", []string{"-0", "--check=sha256"}},
		{imagefile.XZ, "xz", []string{"-0", "--check=none"}},
		{imagefile.XZ, "xz", []string{"-0", "-T2", "--block-size=50001"}}, // several blocks with sizes and padding
		{imagefile.XZ, "xz", []string{"-9", "--lzma2=preset=0,dict=64MiB"}},
		{imagefile.Gzip, "gzip", nil},
		{imagefile.Zstd, "zstd", []string{"-q"}},
	} {
		need(t, test.tool)
		dir := t.TempDir()
		file := filepath.Join(dir, "x")
		write(t, file, body)
		run(t, dir, test.tool, append(append([]string{}, test.args...), file)...)
		names, err := filepath.Glob(file + ".*")
		if err != nil || len(names) != 1 {
			t.Fatalf("%s left %v, %v", test.tool, names, err)
		}
		packed, err := os.ReadFile(names[0])
		if err != nil {
			t.Fatal(err)
		}
		got, err := unpack(test.kind, packed)
		if err != nil || !bytes.Equal(got, body) {
			t.Errorf("%s %v gives %d bytes, %v", test.tool, test.args, len(got), err)
		}
		if _, err := unpack(test.kind, packed[:len(packed)/2]); !errors.Is(err, imagefile.ErrPacking) {
			t.Errorf("half a file of %s %v gives %v, want it to be damaged", test.tool, test.args, err)
		}
		if test.tool == "xz" && test.args[len(test.args)-1] != "--check=none" {
			damaged := bytes.Clone(packed)
			damaged[len(damaged)/2] ^= 0x40
			if _, err := unpack(test.kind, damaged); !errors.Is(err, imagefile.ErrPacking) {
				t.Errorf("a changed byte in a file of xz %v gives %v, want it to be damaged", test.args, err)
			}
		}
	}
}

func TestAnXZFileCannotAskForMoreMemory(t *testing.T) {
	t.Parallel()
	// A block header that asks for 4 GiB - 1, the largest dictionary; checksums right.
	sum := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(bytes.Clone(b), crc32.ChecksumIEEE(b)) }
	file := append([]byte("\xfd7zXZ\x00"), sum([]byte{0, 1})...)
	file = append(file, sum([]byte{2, 0, 0x21, 1, 40, 0, 0, 0})...)
	file = append(file, make([]byte, 100)...)
	if _, err := unpack(imagefile.XZ, file); !errors.Is(err, imagefile.ErrPacking) || !bytes.Contains([]byte(err.Error()), []byte("4095 MiB")) {
		t.Errorf("error is %v, want the dictionary refused", err)
	}
}

func TestADiskThatFailsIsNotTakenForADamagedArchive(t *testing.T) {
	t.Parallel()
	for _, kind := range []imagefile.Kind{imagefile.XZ, imagefile.Gzip, imagefile.Zstd, imagefile.Tar} {
		r, err := imagefile.Unpack(kind, io.NewSectionReader(broken{}, 0, 512))
		if err == nil {
			_, err = io.ReadAll(r)
			_ = r.Close()
		}
		if !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, imagefile.ErrPacking) {
			t.Errorf("%s: error is %v, want that of the disk", kind, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte("\xfd7zXZ\x00\x00\x04"), 0)
	f.Add([]byte("\x1f\x8b\x08"), 1)
	f.Fuzz(func(t *testing.T, packed []byte, which int) {
		kind := []imagefile.Kind{imagefile.XZ, imagefile.Gzip, imagefile.Zstd}[uint(which)%3]
		r, err := imagefile.Unpack(kind, bytes.NewReader(packed))
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(r, 8<<20))
			_ = r.Close()
		}
		if err != nil && !errors.Is(err, imagefile.ErrPacking) {
			t.Errorf("error %v is not one of the packing", err)
		}
	})
}
