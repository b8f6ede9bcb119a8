package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// OpenBlob opens a blob for reading; the caller closes it. Not there: fs.ErrNotExist; known to be damaged: a *DamagedError.
// The argument may come from a client: anything but 64 lower-case hex digits is ErrDigest before the file system is asked.
func (s *Store) OpenBlob(sha256hex string) (*os.File, fs.FileInfo, error) {
	err := checkDigest(sha256hex)
	if err == nil {
		err = s.Damaged(sha256hex)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("open blob: %w", err)
	}
	f, info, err := openRegular(s.blobPath(sha256hex))
	if err != nil {
		return nil, nil, fmt.Errorf("open blob %s: %w", sha256hex, err)
	}
	return f, info, nil
}

// BlobPath is where a blob's file is, for programs that take a path. They must not write to it, and can't: it is
// read-only.
func (s *Store) BlobPath(sha256hex string) (string, error) {
	if err := checkDigest(sha256hex); err != nil {
		return "", err
	}
	path := s.blobPath(sha256hex)
	_, err := statRegular(path)
	if damaged := s.Damaged(sha256hex); damaged != nil {
		err = damaged
	}
	if err != nil {
		return "", fmt.Errorf("find blob %s: %w", sha256hex, err)
	}
	return path, nil
}

// HasBlob reports whether a blob is there and not known to be damaged. One of another size than given is a
// *SizeMismatchError: either the store is damaged or the caller is wrong about the size.
func (s *Store) HasBlob(sha256hex string, sizeBytes int64) (bool, error) {
	if err := checkDigest(sha256hex); err != nil {
		return false, err
	}
	if damaged, err := s.isDamaged(sha256hex); damaged || err != nil {
		return false, err
	}
	return s.hasBlob(sha256hex, sizeBytes)
}

func (s *Store) hasBlob(sha256hex string, sizeBytes int64) (bool, error) {
	info, err := statRegular(s.blobPath(sha256hex))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for blob %s: %w", sha256hex, err)
	}
	if info.Size() != sizeBytes {
		return false, &SizeMismatchError{What: "blob " + sha256hex, WantBytes: sizeBytes, GotBytes: info.Size()}
	}
	return true, nil
}

// HashCombined returns the SHA-256 of prefix followed by all that r has, as 64 hex digits, and how many bytes r had.
// It is for where a fingerprint could not grow with the upload.
func HashCombined(ctx context.Context, prefix []byte, r io.Reader) (combinedhex string, n int64, err error) {
	h := sha256.New()
	_, _ = h.Write(prefix) // a hash never fails
	if n, err = hashInto(ctx, r, h); err != nil {
		return "", n, fmt.Errorf("hash prefix and file: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), n, nil
}
