package blob

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// syncData makes the bytes of f, and the length that it takes to read them, durable.
func syncData(f *os.File) error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// startWriteBack has the kernel begin to write a range to the disk and does not wait. Where the file system can't,
// it reports false. See sync_file_range(2): it makes nothing durable, it only keeps the later fdatasync short.
func startWriteBack(f *os.File, offset, n int64) (bool, error) {
	return syncFileRange(f, offset, n, unix.SYNC_FILE_RANGE_WRITE)
}

// waitWriteBack waits until a range has been written out. Its error must not be dropped: the kernel reports a failed
// write once per open file, so the later fdatasync would be told nothing.
func waitWriteBack(f *os.File, offset, n int64) (bool, error) {
	return syncFileRange(f, offset, n,
		unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
}

func syncFileRange(f *os.File, offset, n int64, flags int) (bool, error) {
	for {
		err := unix.SyncFileRange(int(f.Fd()), offset, n, flags)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE),
			errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPERM):
			return false, nil
		default:
			return true, os.NewSyscallError("sync_file_range", err)
		}
	}
}

// reflink makes dst share the extents of src (ioctl_ficlone(2): btrfs, XFS, bcachefs, NFS 4.2, ...). False means
// that these two files can't, and nothing was changed.
func reflink(dst, src *os.File) bool {
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil
}

// renameNoReplace renames in one step and fails with fs.ErrExist instead of replacing. False means that the file
// system has no such rename.
func renameNoReplace(from, to string) (bool, error) {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	default:
		return true, &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
}

const euclean = unix.EUCLEAN

// openUncached opens a file for reading past the page cache (O_DIRECT, see open(2)): what is read is what the disk has, and
// nothing that others read often is pushed out. False: the file system can't, and the cache is read.
func openUncached(path string) (f *os.File, direct bool, err error) {
	f, err = openFile(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_DIRECT, 0)
	if err == nil || !errors.Is(err, unix.EINVAL) {
		return f, true, err
	}
	f, err = openFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	return f, false, err
}

// cached takes O_DIRECT back.
func cached(f *os.File) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
	return os.NewSyscallError("fcntl", err)
}

// forget has the kernel drop a range of a file from the page cache, as far as it likes to.
func forget(f *os.File, offset, n int64) {
	_ = unix.Fadvise(int(f.Fd()), offset, n, unix.FADV_DONTNEED)
}

// changedAt is the file's ctime, which nobody can set.
func changedAt(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix()).UTC()
	}
	return info.ModTime().UTC()
}
