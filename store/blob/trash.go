package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// trashLock is the file in the trash folder that is locked by the one who collects garbage.
const trashLock = ".lock"

func (s *Store) trash() string { return filepath.Join(s.root, "cas", "trash") }

func (s *Store) trashPath(sha256hex string) string { return filepath.Join(s.trash(), sha256hex) }

// LockTrash makes the caller the only one that removes blobs, here and in other processes on this root, until it calls
// unlock; ErrBusy where somebody else is. On file systems without flock(2) there can be two.
func (s *Store) LockTrash() (unlock func() error, err error) {
	err = s.makeFolder(s.trash())
	if err == nil {
		// Before a blob is in no other folder: until its end is decided it has to survive a power failure.
		err = s.disk.SyncFolder(filepath.Dir(s.trash()))
	}
	if err != nil {
		return nil, fmt.Errorf("make the trash folder: %w", err)
	}
	lock, err := s.disk.Open(filepath.Join(s.trash(), trashLock), unix.O_RDWR|unix.O_CREAT, uploadMode)
	if err != nil {
		return nil, fmt.Errorf("lock the trash folder: %w", err)
	}
	err = lockData(lock)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.ENOTSUP) {
		return nil, errors.Join(fmt.Errorf("lock the trash folder: %w", err), lock.Close())
	}
	return func() error { return closeData(lock) }, nil
}

// Discard takes a blob out of the store into the trash, in one rename. One that isn't in the store is no error. Only
// the holder of the trash's lock may call it, as all that follows.
func (s *Store) Discard(sha256hex string) error {
	if err := checkDigest(sha256hex); err != nil {
		return err
	}
	if err := checkFolder(s.trash()); err != nil {
		return fmt.Errorf("discard blob %s: %w", sha256hex, err)
	}
	err := s.disk.Rename(s.blobPath(sha256hex), s.trashPath(sha256hex))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard blob %s: %w", sha256hex, err)
	}
	return nil
}

// Recover puts a discarded blob back, durably. Where it has been made again meanwhile, or isn't in the trash, nothing has to be put
// back.
func (s *Store) Recover(sha256hex string) error {
	if err := checkDigest(sha256hex); err != nil {
		return err
	}
	err := s.makeFolder(filepath.Dir(s.blobPath(sha256hex)))
	if err == nil {
		err = s.disk.SyncFolder(s.sha256Folder()) // before the blob is in no other folder
	}
	if err == nil {
		err = s.moveNoReplace(s.trashPath(sha256hex), s.blobPath(sha256hex))
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		err = s.removeIfThere(s.trashPath(sha256hex))
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err == nil {
		err = s.syncBlobName(sha256hex)
	}
	if err != nil {
		return fmt.Errorf("recover blob %s: %w", sha256hex, err)
	}
	return nil
}

// Destroy removes a discarded blob for good, and says how many bytes the file system got back: none where there was no
// such blob, or where another name of the same bytes is left.
func (s *Store) Destroy(sha256hex string) (freed int64, err error) {
	if err := checkDigest(sha256hex); err != nil {
		return 0, err
	}
	path := s.trashPath(sha256hex)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err == nil {
		err = s.removeIfThere(path)
	}
	if err != nil {
		return 0, fmt.Errorf("destroy blob %s: %w", sha256hex, err)
	}
	return ownBytes(info), nil
}

// ownBytes is what removing a file gives back.
func ownBytes(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
		return 0
	}
	return info.Size()
}

// Discarded lists what lies in the trash.
func (s *Store) Discarded() ([]string, error) {
	entries, err := os.ReadDir(s.trash())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look into the trash folder: %w", err)
	}
	var found []string
	for _, e := range entries {
		if checkDigest(e.Name()) == nil {
			found = append(found, e.Name())
		}
	}
	return found, nil
}

// File is a blob as it lies in the store.
type File struct {
	SHA256 string // 64 hex digits
	Size   int64  // bytes
	// Changed is when the file was last given a name, a mode or a time: at the latest when it came into the store.
	Changed time.Time
}

// Blobs goes over the files of the store, in the order of their digests, until each returns an error. What comes or goes
// meanwhile may be seen or not.
func (s *Store) Blobs(ctx context.Context, each func(File) error) error {
	folders, err := os.ReadDir(s.sha256Folder())
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	for _, folder := range folders {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !folder.IsDir() {
			continue
		}
		files, err := os.ReadDir(filepath.Join(s.sha256Folder(), folder.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list blobs: %w", err)
		}
		for _, file := range files {
			if checkDigest(file.Name()) != nil || !strings.HasPrefix(file.Name(), folder.Name()) || !file.Type().IsRegular() {
				continue
			}
			info, err := file.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("list blobs: %w", err)
			}
			if err := each(File{SHA256: file.Name(), Size: info.Size(), Changed: changedAt(info)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// SessionBytes is how many bytes the removal of a session gives back, IngressBytes of a job's ingress; 0 where there is none.
func (s *Store) SessionBytes(session string) (int64, error) {
	if err := checkName("session", session); err != nil {
		return 0, err
	}
	return folderBytes(s.sessionFolder(session))
}

// IngressBytes is as [Store.SessionBytes].
func (s *Store) IngressBytes(job string) (int64, error) {
	if err := checkName("job", job); err != nil {
		return 0, err
	}
	return folderBytes(s.jobFolder(job))
}

func folderBytes(dir string) (bytes int64, err error) {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	for _, file := range slices.DeleteFunc(files, fs.DirEntry.IsDir) {
		info, err := file.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return bytes, err
		}
		bytes += ownBytes(info)
	}
	return bytes, nil
}
