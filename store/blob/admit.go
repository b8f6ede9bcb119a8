package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// Admit is [Store.Promote] that leaves the job's file where it is, as another name of the blob's bytes, or, where hard
// links can't go, as a copy of its own: so that a blob that somebody is just removing can be made again. Who is done
// with the job's files removes them with RemoveIngress.
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
	if damaged := s.Damaged(sha256hex); damaged != nil {
		if err := s.clearAway(ctx, from, sha256hex, sizeBytes, damaged); err != nil {
			return err
		}
	}
	there, err := s.hasBlob(sha256hex, sizeBytes)
	if err != nil {
		return s.blame(from, sha256hex, sizeBytes, err)
	}
	if !there {
		err := s.linkToCAS(ctx, from, sha256hex, sizeBytes)
		if errors.Is(err, fs.ErrExist) {
			_, err = s.hasBlob(sha256hex, sizeBytes) // another run was faster
		}
		if err != nil {
			return err
		}
	}
	return s.syncBlobName(sha256hex)
}

// linkToCAS makes the blob or fails with fs.ErrExist.
func (s *Store) linkToCAS(ctx context.Context, from, sha256hex string, sizeBytes int64) error {
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
	err = s.disk.Link(from, to)
	if err != nil && canCopyInstead(err) {
		err = s.copyFile(ctx, from, s.casTemp(), to, sha256hex, sizeBytes, blobMode)
	}
	return err
}

// syncBlobName makes a blob's name durable.
func (s *Store) syncBlobName(sha256hex string) error {
	if err := s.disk.SyncFolder(filepath.Dir(s.blobPath(sha256hex))); err != nil {
		return err
	}
	return s.disk.SyncFolder(s.sha256Folder())
}
