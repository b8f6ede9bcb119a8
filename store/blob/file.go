package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// syncFolder makes the entries of a folder durable. File systems that can't sync a folder at all say EINVAL or
// ENOTSUP (FUSE, CIFS); there it is up to them.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeFile puts a small file in place atomically and durably, whatever was there before.
func writeFile(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix+"*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, removeIfThere(f.Name()))
	}
	return syncFolder(dir)
}

// openRegular opens a file for reading and refuses everything but a regular file: a symbolic link isn't followed, and
// a pipe doesn't block the open.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, nil, fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// statRegular is Lstat that refuses everything but a regular file.
func statRegular(path string) (fs.FileInfo, error) {
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w", path, ErrNotRegular)
	}
	if err != nil {
		return nil, err
	}
	return info, nil
}

// moveNoReplace gives a file its other name, which must be free (else fs.ErrExist), on the same file system (else
// EXDEV, see canCopyInstead). It syncs nothing.
func moveNoReplace(from, to string) error {
	if done, err := renameNoReplace(from, to); done {
		return err
	}
	return moveByLink(from, to)
}

// moveByLink is moveNoReplace in two steps. Cut short between them it leaves both names, and the next promotion of
// the same file removes the old one.
func moveByLink(from, to string) error {
	if err := os.Link(from, to); err != nil {
		return err
	}
	return removeIfThere(from)
}

// canCopyInstead reports whether a link or rename failed because of what the file systems are, so that copying the
// bytes reaches the same end. EMLINK is a file with too many names, EPERM a file system without hard links.
func canCopyInstead(err error) bool {
	for _, no := range []unix.Errno{unix.EXDEV, unix.EMLINK, unix.EPERM, unix.ENOTSUP, unix.ENOSYS} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}

// space is what statfs(2) says of a file system: the bytes that an unprivileged process may still write, and its size.
func space(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, os.NewSyscallError("statfs", err)
	}
	block := uint64(st.Bsize)                                              //nolint:unconvert // field types differ between systems
	return int64(uint64(st.Bavail) * block), int64(st.Blocks * block), nil //nolint:unconvert // as above
}
