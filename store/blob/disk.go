package blob

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/imgsrv/imgsrv/internal/faults"
)

// Disk is all that the store changes on a file system, and what it asks to be made durable. It is a seam: tests put something
// between that keeps count of what a power failure would leave. Reads don't go through it, and closing changes nothing.
//
// A path is never followed through a symbolic link in place of the file or of its folder. Errors are those of package os.
type Disk interface {
	// Open opens a file; flags may be those that create it.
	Open(path string, flags int, mode fs.FileMode) (*os.File, error)
	CreateTemp(dir, pattern string) (*os.File, error)
	MkdirTemp(dir, pattern string) (string, error)
	Mkdir(dir string, mode fs.FileMode) error
	MkdirAll(dir string, mode fs.FileMode) error
	Rename(from, to string) error
	// RenameNoReplace renames in one step and fails with fs.ErrExist instead of replacing. False means that the file system
	// has no such rename.
	RenameNoReplace(from, to string) (bool, error)
	Link(from, to string) error
	Remove(path string) error
	RemoveAll(path string) error

	WriteAt(f *os.File, b []byte, offset int64) (int, error)
	Truncate(f *os.File, size int64) error
	Chmod(f *os.File, mode fs.FileMode) error
	// Reflink makes dst share the extents of src. False means that these two can't, and nothing was changed.
	Reflink(dst, src *os.File) bool

	// Sync makes a file's bytes, length and mode durable; SyncData its bytes, and the length that it takes to read them.
	Sync(f *os.File) error
	SyncData(f *os.File) error
	// SyncFolder makes the entries of a folder durable.
	SyncFolder(dir string) error
}

// osDisk is the file system itself.
type osDisk struct{}

func (osDisk) Open(path string, flags int, mode fs.FileMode) (*os.File, error) {
	if flags&unix.O_CREAT == 0 {
		return openFile(path, flags, mode)
	}
	faults.Before("create", path)
	f, err := openFile(path, flags, mode)
	faults.After("create", path)
	return f, err
}

func (osDisk) CreateTemp(dir, pattern string) (*os.File, error) {
	faults.Before("create", dir+"/"+pattern)
	f, err := os.CreateTemp(dir, pattern)
	faults.After("create", dir+"/"+pattern)
	return f, err
}

func (osDisk) MkdirTemp(dir, pattern string) (string, error) {
	faults.Before("mkdir", dir+"/"+pattern)
	made, err := os.MkdirTemp(dir, pattern)
	faults.After("mkdir", dir+"/"+pattern)
	return made, err
}

func (osDisk) Mkdir(dir string, mode fs.FileMode) error {
	faults.Before("mkdir", dir)
	err := os.Mkdir(dir, mode)
	faults.After("mkdir", dir)
	return err
}

func (osDisk) MkdirAll(dir string, mode fs.FileMode) error {
	faults.Before("mkdir", dir)
	err := os.MkdirAll(dir, mode)
	faults.After("mkdir", dir)
	return err
}

func (osDisk) Rename(from, to string) error {
	faults.Before("rename", to)
	err := os.Rename(from, to)
	faults.After("rename", to)
	return err
}

func (osDisk) RenameNoReplace(from, to string) (bool, error) {
	faults.Before("rename", to)
	done, err := renameNoReplace(from, to)
	faults.After("rename", to)
	return done, err
}

func (osDisk) Link(from, to string) error {
	faults.Before("link", to)
	err := os.Link(from, to)
	faults.After("link", to)
	return err
}

func (osDisk) Remove(path string) error {
	faults.Before("remove", path)
	err := os.Remove(path)
	faults.After("remove", path)
	return err
}

func (osDisk) RemoveAll(path string) error {
	faults.Before("remove all", path)
	err := os.RemoveAll(path)
	faults.After("remove all", path)
	return err
}

func (osDisk) WriteAt(f *os.File, b []byte, offset int64) (int, error) {
	faults.Before("write", f.Name())
	n, err := f.WriteAt(b, offset)
	faults.After("write", f.Name())
	return n, err
}

func (osDisk) Truncate(f *os.File, size int64) error {
	faults.Before("truncate", f.Name())
	err := f.Truncate(size)
	faults.After("truncate", f.Name())
	return err
}

func (osDisk) Chmod(f *os.File, mode fs.FileMode) error { return f.Chmod(mode) }

func (osDisk) Reflink(dst, src *os.File) bool { return reflink(dst, src) }

func (osDisk) Sync(f *os.File) error {
	faults.Before("sync", f.Name())
	err := f.Sync()
	faults.After("sync", f.Name())
	return err
}

func (osDisk) SyncData(f *os.File) error {
	faults.Before("sync", f.Name())
	err := syncData(f)
	faults.After("sync", f.Name())
	return err
}

// SyncFolder does nothing where the file system can't sync a folder at all and says EINVAL or ENOTSUP (FUSE, CIFS): there it is up
// to them.
func (osDisk) SyncFolder(dir string) error {
	faults.Before("sync", dir)
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	err = errors.Join(err, f.Close())
	faults.After("sync", dir)
	return err
}
