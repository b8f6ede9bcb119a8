//go:build !linux

package blob

import (
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// syncData makes the bytes of f durable.
func syncData(f *os.File) error { return f.Sync() }

// startWriteBack is Linux's alone; elsewhere the last sync does all the work.
func startWriteBack(*os.File, int64, int64) (bool, error) { return false, nil }

func waitWriteBack(*os.File, int64, int64) (bool, error) { return false, nil }

func reflink(*os.File, *os.File) bool { return false }

func renameNoReplace(string, string) (bool, error) { return false, nil }

const euclean = unix.EIO // Linux's alone

// openUncached is Linux's alone; elsewhere the page cache is read.
func openUncached(path string) (f *os.File, direct bool, err error) {
	f, err = openFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	return f, false, err
}

func cached(*os.File) error { return nil }

func forget(*os.File, int64, int64) {}

func changedAt(info fs.FileInfo) time.Time { return info.ModTime().UTC() }
