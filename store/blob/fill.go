package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Fill puts many blobs into a store that nobody uses yet, as a restore does: it syncs each blob's bytes at once, but the folders only in
// Settle. Until then a power failure may take blobs away again, whole ones; none is ever seen half.
type Fill struct{ s *Store }

// Fill begins to fill the store.
func (s *Store) Fill() *Fill { return &Fill{s} }

// Put reads a blob from r, up to its end, and verifies it on the way: a *SizeMismatchError or *DigestMismatchError leaves nothing. It may
// be called at once for several blobs.
func (f *Fill) Put(ctx context.Context, sha256hex string, sizeBytes int64, r io.Reader) error {
	err := checkDigest(sha256hex)
	if err == nil {
		err = f.s.makeFolder(filepath.Dir(f.s.blobPath(sha256hex)))
	}
	if err == nil {
		err = f.s.place(f.s.casTemp(), blobMode, func(temp *os.File) error { return f.s.receive(ctx, temp, r, sha256hex, sizeBytes) },
			func(temp string) error { return f.s.moveNoReplace(temp, f.s.blobPath(sha256hex)) })
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("put blob %s: %w", sha256hex, err)
	}
	return nil
}

// Settle makes the names of all blobs durable.
func (f *Fill) Settle() error {
	folders, err := os.ReadDir(f.s.sha256Folder())
	for _, folder := range folders {
		if err == nil && folder.IsDir() {
			err = f.s.disk.SyncFolder(filepath.Join(f.s.sha256Folder(), folder.Name()))
		}
	}
	if err == nil {
		err = f.s.disk.SyncFolder(f.s.sha256Folder())
	}
	if err != nil {
		return fmt.Errorf("make blobs durable: %w", err)
	}
	return nil
}
