package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
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
		err = f.put(ctx, sha256hex, sizeBytes, r)
	}
	if err != nil {
		return fmt.Errorf("put blob %s: %w", sha256hex, err)
	}
	return nil
}

func (f *Fill) put(ctx context.Context, sha256hex string, sizeBytes int64, r io.Reader) error {
	to := f.s.blobPath(sha256hex)
	if err := f.s.makeFolder(filepath.Dir(to)); err != nil {
		return err
	}
	temp, err := f.s.createTemp(f.s.casTemp())
	if err != nil {
		return err
	}
	err = f.receive(ctx, temp, sha256hex, sizeBytes, r)
	if err == nil {
		err = f.s.disk.Chmod(temp, blobMode)
	}
	if err == nil {
		err = f.s.disk.Sync(temp)
	}
	if err == nil {
		if err = f.s.moveNoReplace(temp.Name(), to); errors.Is(err, fs.ErrExist) {
			err = f.s.removeIfThere(temp.Name())
		}
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		err = errors.Join(err, f.s.removeIfThere(temp.Name()))
	}
	return err
}

func (f *Fill) receive(ctx context.Context, temp *os.File, sha256hex string, sizeBytes int64, r io.Reader) error {
	sum := sha256.New()
	n, readErr, writeErr := f.s.pump(ctx, temp, 0, sizeBytes, r, []hash.Hash{sum})
	if writeErr != nil {
		return writeErr
	}
	if readErr != nil && !errors.Is(readErr, io.EOF) {
		return readErr
	}
	if n == sizeBytes { // is there more?
		more, err := io.CopyN(io.Discard, r, 1)
		if n += more; err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	if n != sizeBytes {
		return &SizeMismatchError{What: "what was read", WantBytes: sizeBytes, GotBytes: n}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != sha256hex {
		return &DigestMismatchError{Want: sha256hex, Got: got}
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
