package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// scratchPrefix marks folders in which files are made that are to become blobs.
const scratchPrefix = ".scratch-"

// scratchLock is the file in such a folder that its process holds locked: a folder whose lock is free is a dead one's.
const scratchLock = ".lock"

// Scratch is a private folder on the file system of the blobs, for files that another program writes. It is for one
// goroutine, and ends with Close.
type Scratch struct {
	store *Store
	dir   string
	lock  *os.File
}

// NewScratch makes a folder that nobody else uses.
func (s *Store) NewScratch() (*Scratch, error) {
	dir, err := s.disk.MkdirTemp(s.casTemp(), scratchPrefix+"*")
	if err != nil {
		return nil, fmt.Errorf("make a scratch folder: %w", err)
	}
	lock, err := lockScratch(dir)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the scratch folder %s: %w", dir, err), s.disk.RemoveAll(dir))
	}
	return &Scratch{store: s, dir: dir, lock: lock}, nil
}

// lockScratch takes a folder's lock, or fails with unix.EWOULDBLOCK where its owner lives.
func lockScratch(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, scratchLock), os.O_RDWR|os.O_CREATE, uploadMode)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// Dir is the folder's path.
func (t *Scratch) Dir() string { return t.dir }

// Close removes the folder with all that is in it.
func (t *Scratch) Close() error {
	return errors.Join(t.store.disk.RemoveAll(t.dir), t.lock.Close())
}

// SweepScratch removes the folders whose process has died, and returns how many they were. Another node's, at work on
// the same root, is left alone.
func (s *Store) SweepScratch() (int, error) {
	entries, err := os.ReadDir(s.casTemp())
	if err != nil {
		return 0, fmt.Errorf("look for scratch folders: %w", err)
	}
	swept := 0
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), scratchPrefix) {
			continue
		}
		dir := filepath.Join(s.casTemp(), e.Name())
		lock, err := lockScratch(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = errors.Join(s.disk.RemoveAll(dir), lock.Close())
		}
		if err != nil {
			return swept, fmt.Errorf("remove the scratch folder %s: %w", dir, err)
		}
		swept++
	}
	return swept, nil
}
