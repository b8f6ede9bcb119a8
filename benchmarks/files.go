package main

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// formats that are uploaded: of each, what the files begin with.
const (
	formatContainer = "rootfs.squashfs" // a digest, and the Incus fingerprint beside it
	formatVM        = "disk.qcow2"      // the same
	formatPlain     = "disk.raw.zst"    // no root of an instance: a digest alone
)

var magic = map[string]string{formatContainer: "hsqs", formatVM: "QFI\xfb", formatPlain: "\x28\xb5\x2f\xfd"}

// kindOf is the variant that a format is for.
func kindOf(format string) string {
	if format == formatContainer {
		return "container"
	}
	return "virtual-machine"
}

// randomFile makes a file of random bytes that begins as the format does.
func randomFile(folder, format string, size int64) (*os.File, error) {
	f, err := os.CreateTemp(folder, "file-")
	if err != nil {
		return nil, err
	}
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rand.Uint64())
	if _, err := io.CopyN(f, rand.NewChaCha8(seed), size); err != nil {
		return nil, err
	}
	return f, distinguish(f, format)
}

// sparseFile is one of zeroes, which take no room.
func sparseFile(folder, format string, size int64) (*os.File, error) {
	f, err := os.CreateTemp(folder, "sparse-")
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	return f, distinguish(f, format)
}

// distinguish makes a file another one by its first bytes, so that nobody has it already.
func distinguish(f *os.File, format string) error {
	head := append([]byte(magic[format]), make([]byte, 8)...)
	binary.LittleEndian.PutUint64(head[len(head)-8:], rand.Uint64())
	_, err := f.WriteAt(head, 0)
	return err
}

// readThrough brings a file into memory, so that no side reads it from the disk.
func readThrough(path string) error {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	_, err = io.Copy(io.Discard, f)
	return err
}
