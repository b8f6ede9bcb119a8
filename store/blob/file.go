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

// openFile opens a file of the store and follows no symbolic link, neither in place of the file nor of the folder it is in, which
// is always one that the store has made: both are ErrNotRegular. The folder is held while its file is opened, so that nothing can be
// put in its place in between.
func openFile(path string, flags int, mode fs.FileMode) (*os.File, error) {
	dir, err := openFolder(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir) //nolint:errcheck // only looked through
	for {
		fd, err := unix.Openat(dir, filepath.Base(path), flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(mode.Perm()))
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ELOOP):
			return nil, fmt.Errorf("%s: %w", path, ErrNotRegular)
		default:
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// openFolder opens a folder that the store has made; a symbolic link in its place is ErrNotRegular.
func openFolder(dir string) (fd int, err error) {
	for {
		fd, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR):
			return -1, fmt.Errorf("%s: %w", dir, ErrNotRegular)
		default:
			return -1, &fs.PathError{Op: "open", Path: dir, Err: err}
		}
	}
}

// checkFolder is openFolder for who goes on by the folder's name, since links and renames take names.
func checkFolder(dir string) error {
	fd, err := openFolder(dir)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// makeFolder makes one of the store's folders, or finds it there.
func makeFolder(dir string) error {
	err := os.Mkdir(dir, folderMode)
	if errors.Is(err, fs.ErrExist) {
		return checkFolder(dir)
	}
	return err
}

// openRegular opens a file for reading and refuses everything but a regular file: a symbolic link isn't followed, and
// a pipe doesn't block the open.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	f, err := openFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
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
	if err := checkFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
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
