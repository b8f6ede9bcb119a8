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

// Promote makes a job's file the blob of the given digest. On one file system that is a rename and costs the same for
// any size; the bytes are not read, so the caller must have verified the digest. Across file systems they are copied,
// and verified on the way. The blob appears complete, synced and read-only, and is never replaced: if it exists, the
// job's file is just removed. Run again after it has worked, or at once with others, it does nothing. A blob that is known
// to be damaged (SetDamage) is no blob: its file goes to the quarantine, and the job's file takes its place; without one,
// what lies there is read, and is a *DamagedError unless it is right after all.
//
// A blob that has not the length of its job's file, which is right, is a *DamagedError too. The job's file or, without one,
// an existing blob of another size is a *SizeMismatchError, copied bytes of another digest a
// *DigestMismatchError; without job's file and blob the error is fs.ErrNotExist.
func (s *Store) Promote(ctx context.Context, job, name, sha256hex string, sizeBytes int64) error {
	err := errors.Join(checkName("job", job), checkName("file", name), checkDigest(sha256hex))
	if err == nil {
		err = s.promote(ctx, filepath.Join(s.jobFolder(job), name), sha256hex, sizeBytes)
	}
	if err != nil {
		return fmt.Errorf("promote %s/%s: %w", job, name, err)
	}
	return nil
}

func (s *Store) promote(ctx context.Context, from, sha256hex string, sizeBytes int64) error {
	if damaged := s.Damaged(sha256hex); damaged != nil {
		if err := s.clearAway(ctx, from, sha256hex, sizeBytes, damaged); err != nil {
			return err
		}
	}
	there, err := s.hasBlob(sha256hex, sizeBytes)
	if err != nil {
		return s.blame(from, sha256hex, sizeBytes, err)
	}
	if there {
		return s.settle(from, sha256hex)
	}
	err = s.moveToCAS(ctx, from, sha256hex, sizeBytes)
	if err == nil {
		return s.settle(from, sha256hex)
	}
	// Another run may have been faster: it has made the blob, or taken the job's file away to make it.
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		if there, hasErr := s.hasBlob(sha256hex, sizeBytes); hasErr != nil {
			return hasErr
		} else if there {
			return s.settle(from, sha256hex)
		}
	}
	return err
}

// blame tells a blob that has lost its length from a caller that is wrong about it, by the job's file.
func (s *Store) blame(from, sha256hex string, sizeBytes int64, err error) error {
	var mismatch *SizeMismatchError
	if info, statErr := statRegular(from); errors.As(err, &mismatch) && statErr == nil && info.Size() == sizeBytes {
		return &DamagedError{Digest: sha256hex, Reason: RotSize}
	}
	return err
}

// clearAway makes room for the right bytes of a damaged blob, or, where the job's file is gone, as after an earlier run, makes
// sure that the right ones are there.
func (s *Store) clearAway(ctx context.Context, from, sha256hex string, sizeBytes int64, damaged error) error {
	source, err := statRegular(from)
	if err == nil {
		if there, statErr := os.Lstat(s.blobPath(sha256hex)); statErr != nil || !os.SameFile(source, there) {
			_, err = s.quarantine(sha256hex, nil)
			return err
		}
		// Another name of the file that lies there: it is as good or bad.
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, rot, err := s.VerifyBlob(ctx, sha256hex, sizeBytes, func(ctx context.Context, _ int) error { return ctx.Err() })
	if err == nil && rot != nil {
		err = damaged
	}
	return err
}

// moveToCAS makes the blob or fails with fs.ErrExist.
func (s *Store) moveToCAS(ctx context.Context, from, sha256hex string, sizeBytes int64) error {
	info, err := statRegular(from)
	if err != nil {
		return err
	}
	if info.Size() != sizeBytes {
		return &SizeMismatchError{What: "ingress file", WantBytes: sizeBytes, GotBytes: info.Size()}
	}
	to := s.blobPath(sha256hex)
	if err := s.makeFolder(filepath.Dir(to)); err != nil {
		return err
	}
	// A file that moves into a folder whose own name a power failure takes away would be gone from both.
	if err := s.disk.SyncFolder(s.sha256Folder()); err != nil {
		return err
	}
	if err := s.sealFile(from); err != nil {
		return err
	}
	err = s.moveNoReplace(from, to)
	if err != nil && canCopyInstead(err) {
		err = s.copyFile(ctx, from, s.casTemp(), to, sha256hex, sizeBytes, blobMode)
	}
	return err
}

// settle ends a promotion whose blob is there: makes its name durable, which another run may not have come to yet,
// and only then lets go of the job's file.
func (s *Store) settle(from, sha256hex string) error {
	if err := s.disk.SyncFolder(filepath.Dir(s.blobPath(sha256hex))); err != nil {
		return err
	}
	if err := s.removeIfThere(from); err != nil {
		return err
	}
	if err := s.disk.SyncFolder(filepath.Dir(from)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sealFile makes a file read-only and its bytes and mode durable.
func (s *Store) sealFile(path string) error {
	f, _, err := openRegular(path)
	if err != nil {
		return err
	}
	err = s.disk.Chmod(f, blobMode)
	if err == nil {
		err = s.disk.Sync(f)
	}
	return errors.Join(err, f.Close())
}

// copyFile puts a copy of a file at a path that must be free (fs.ErrExist), through a temporary file in tempFolder,
// which is on the path's file system. Where the file system can share the extents nothing is read; else the bytes are
// hashed on the way and compared with sha256hex, unless that is "". The folder of the path is left to the caller to
// sync.
func (s *Store) copyFile(
	ctx context.Context, from, tempFolder, to, sha256hex string, sizeBytes int64, mode fs.FileMode,
) (err error) {
	src, info, err := openRegular(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if info.Size() != sizeBytes {
		return &SizeMismatchError{What: "file to copy", WantBytes: sizeBytes, GotBytes: info.Size()}
	}
	temp, err := s.createTemp(tempFolder)
	if err != nil {
		return err
	}
	err = s.copyBytes(ctx, temp, src, sha256hex, sizeBytes)
	if err == nil {
		err = s.disk.Chmod(temp, mode)
	}
	if err == nil {
		err = s.disk.Sync(temp)
	}
	if err == nil {
		err = s.moveNoReplace(temp.Name(), to) // still locked, or a sweep might take it away
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		err = errors.Join(err, s.removeIfThere(temp.Name()))
	}
	return err
}

func (s *Store) copyBytes(ctx context.Context, dst, src *os.File, sha256hex string, sizeBytes int64) error {
	if s.disk.Reflink(dst, src) {
		return nil
	}
	sum := sha256.New()
	var hashes []hash.Hash
	if sha256hex != "" {
		hashes = append(hashes, sum)
	}
	n, readErr, writeErr := s.pump(ctx, dst, 0, sizeBytes, src, hashes)
	if writeErr != nil {
		return writeErr
	}
	if readErr != nil && !errors.Is(readErr, io.EOF) {
		return readErr
	}
	if n != sizeBytes {
		return &SizeMismatchError{What: "copy", WantBytes: sizeBytes, GotBytes: n}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); len(hashes) > 0 && got != sha256hex {
		return &DigestMismatchError{Want: sha256hex, Got: got}
	}
	return nil
}

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

// HasBlob reports whether a blob is there and not known to be damaged. One of another size than given is a
// *SizeMismatchError: either the store is damaged or the caller is wrong about the size.
func (s *Store) HasBlob(sha256hex string, sizeBytes int64) (bool, error) {
	if err := checkDigest(sha256hex); err != nil {
		return false, err
	}
	if s.Damaged(sha256hex) != nil {
		return false, nil
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
