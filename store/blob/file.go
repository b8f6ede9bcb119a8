package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func (s *Store) removeIfThere(path string) error {
	if err := s.disk.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// createTemp makes a temporary file in one of the store's folders, locked for as long as it is open: the kernel gives the lock back
// in whatever way the process ends, so that [Store.sweep] can tell a dead one's file from a running copy, also of another node that
// shares the root.
func (s *Store) createTemp(dir string) (*os.File, error) {
	for {
		f, err := s.disk.CreateTemp(dir, tempPrefix+"*")
		if err != nil {
			return nil, err
		}
		err = lockData(f)
		if err == nil {
			_, err = os.Lstat(f.Name())
		}
		if err == nil {
			return f, nil
		}
		// A sweep was between the two steps, and has removed it or is about to.
		gone := errors.Is(err, ErrBusy) || errors.Is(err, fs.ErrNotExist)
		if closeErr := errors.Join(f.Close(), s.removeIfThere(f.Name())); closeErr != nil || !gone {
			return nil, errors.Join(err, closeErr)
		}
	}
}

// removeDead removes a temporary file unless a living process holds it. The lock is kept until the file is gone, so that nobody
// takes it for their own in between.
func (s *Store) removeDead(path string) (err error) {
	f, err := openFile(path, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) {
		f, err = openFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0) // a copy that is a blob but for its name
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, ErrNotRegular):
		return s.removeIfThere(path) // whatever it is, it is no copy of ours
	case err != nil:
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := lockData(f); errors.Is(err, ErrBusy) {
		return nil
	} else if err != nil {
		return err
	}
	return s.removeIfThere(path)
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
func (s *Store) makeFolder(dir string) error {
	err := s.disk.Mkdir(dir, folderMode)
	if errors.Is(err, fs.ErrExist) {
		return checkFolder(dir)
	}
	s.named.Delete(dir) // somebody had taken it away after all
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

// space is what statfs(2) says of a file system: the bytes that an unprivileged process may still write, and its size.
func space(dir string) (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, 0, os.NewSyscallError("statfs", err)
	}
	block := uint64(st.Bsize)                                              //nolint:unconvert // field types differ between systems
	return int64(uint64(st.Bavail) * block), int64(st.Blocks * block), nil //nolint:unconvert // as above
}
