package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Admit makes a job's file the blob of the given digest. It stays where it is, as another name of the blob's bytes, or, where
// hard links can't go, beside a copy of its own: so that a blob that somebody is just removing can be made again. Who is done
// with the job's files removes them with RemoveIngress.
//
// A link costs the same for any size; the bytes are not read, so the caller must have verified the digest. A copy is verified on the
// way. The blob appears complete, synced and read-only, and is never replaced. Run again after it has worked, or at once with others,
// Admit does nothing. A blob that is known to be damaged (SetDamage) is no blob: its file goes to the quarantine, and the job's file
// takes its place; without one, what lies there is read, and is a *DamagedError unless it is right after all.
//
// A blob that has not the length of its job's file, which is right, is a *DamagedError too. The job's file or, without one,
// an existing blob of another size is a *SizeMismatchError, copied bytes of another digest a
// *DigestMismatchError; without job's file and blob the error is fs.ErrNotExist.
func (s *Store) Admit(ctx context.Context, job, name, sha256hex string, sizeBytes int64) error {
	err := errors.Join(checkName("job", job), checkName("file", name), checkDigest(sha256hex))
	if err == nil {
		err = s.admit(ctx, filepath.Join(s.jobFolder(job), name), sha256hex, sizeBytes)
	}
	if err != nil {
		return fmt.Errorf("admit %s/%s: %w", job, name, err)
	}
	return nil
}

// Admit makes a file of the folder a blob and leaves it in the folder: see [Store.Admit].
func (t *Scratch) Admit(ctx context.Context, name, sha256hex string, sizeBytes int64) error {
	err := errors.Join(checkName("file", name), checkDigest(sha256hex))
	if err == nil {
		err = t.store.admit(ctx, filepath.Join(t.dir, name), sha256hex, sizeBytes)
	}
	if err != nil {
		return fmt.Errorf("admit %s: %w", name, err)
	}
	return nil
}

func (s *Store) admit(ctx context.Context, from, sha256hex string, sizeBytes int64) error {
	if damaged, err := s.isDamaged(sha256hex); err != nil {
		return err
	} else if damaged {
		if err := s.clearAway(ctx, from, sha256hex, sizeBytes); err != nil {
			return err
		}
	}
	there, err := s.hasBlob(sha256hex, sizeBytes)
	if err != nil {
		return s.blame(from, sha256hex, sizeBytes, err)
	}
	if !there {
		err := s.intoCAS(ctx, from, sha256hex, sizeBytes)
		if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
			// Another run may have been faster, and have removed the job's files by now.
			if there, hasErr := s.hasBlob(sha256hex, sizeBytes); there || hasErr != nil {
				err = hasErr
			}
		}
		if err != nil {
			return err
		}
	}
	return s.syncBlobName(sha256hex)
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
func (s *Store) clearAway(ctx context.Context, from, sha256hex string, sizeBytes int64) error {
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
		err = s.Damaged(sha256hex)
	}
	return err
}

// intoCAS makes the blob or fails with fs.ErrExist.
func (s *Store) intoCAS(ctx context.Context, from, sha256hex string, sizeBytes int64) error {
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
	if err := s.sealFile(from); err != nil {
		return err
	}
	return s.linkOrCopy(ctx, from, s.casTemp(), to, sha256hex, sizeBytes, blobMode)
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

// syncBlobName makes a blob's name durable. The name of its folder is made so once by each process: who made it may not have come to that.
func (s *Store) syncBlobName(sha256hex string) error {
	folder := filepath.Dir(s.blobPath(sha256hex))
	if err := s.disk.SyncFolder(folder); err != nil {
		return err
	}
	if _, done := s.named.Load(folder); done {
		return nil
	}
	if err := s.disk.SyncFolder(s.sha256Folder()); err != nil {
		return err
	}
	s.named.Store(folder, true)
	return nil
}
