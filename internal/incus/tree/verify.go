package tree

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// maxMetadataBytes bounds a metadata tarball, which is held in memory while its root is hashed.
const maxMetadataBytes = 64 << 20

// MismatchError says that a file of the tree is not what the documents say it is.
type MismatchError struct{ Text string }

func (e *MismatchError) Error() string { return e.Text }

// File opens a file of the tree, which is to be closed.
func (t *Tree) File(f simplestreams.File) (*os.File, error) {
	file, err := t.root.Open(f.Path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", f.FileType, err)
	}
	return file, nil
}

// Verify reads an image's files, each once, and holds sizes, digests and the fingerprint against the documents: a difference, or a
// file that isn't there, is a *MismatchError. read is told of each piece that was read, in bytes; it may be nil.
func (t *Tree) Verify(ctx context.Context, i simplestreams.Image, read func(bytes int)) error {
	if !i.Unified() && i.Metadata.Size > maxMetadataBytes {
		return &MismatchError{fmt.Sprintf("%s has %d bytes: no metadata tarball has more than %d", i.Metadata.FileType, i.Metadata.Size, maxMetadataBytes)}
	}
	combined := sha256.New()
	for _, f := range Files(i) {
		if err := t.verify(ctx, f, combined, read); err != nil {
			return err
		}
	}
	if got := hex.EncodeToString(combined.Sum(nil)); got != i.Fingerprint {
		return &MismatchError{fmt.Sprintf("%s has the fingerprint %s with its metadata, not %s", i.Root.FileType, got, i.Fingerprint)}
	}
	return nil
}

func (t *Tree) verify(ctx context.Context, f simplestreams.File, combined hash.Hash, read func(int)) (err error) {
	file, err := t.root.Open(f.Path)
	if err != nil {
		return &MismatchError{fmt.Sprintf("%s can't be opened: %v", f.FileType, err)}
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", f.Path, err)
	}
	if !info.Mode().IsRegular() {
		return &MismatchError{fmt.Sprintf("%s is not a file", f.Path)}
	}
	if info.Size() != f.Size {
		return &MismatchError{fmt.Sprintf("%s has %d bytes, not %d", f.Path, info.Size(), f.Size)}
	}
	sum := sha256.New()
	into := io.MultiWriter(sum, combined)
	buffer := make([]byte, 1<<20)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := file.Read(buffer)
		_, _ = into.Write(buffer[:n]) // hashes take everything
		if read != nil {
			read(n)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Path, err)
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != f.SHA256 {
		return &MismatchError{fmt.Sprintf("%s has the SHA-256 %s, not %s", f.Path, got, f.SHA256)}
	}
	return nil
}
