// Package blob keeps imgsrv's bytes on a file system: what is being uploaded, what a publication job owns, and the
// content-addressed store of finished blobs. It makes bytes durable and visible in the right order; it must not know
// why: no events, no HTTP, no database. Digests come in as 64 lower-case hex digits of SHA-256.
//
// Under the storage root:
//
//	uploads/<session>/session          marker of an upload session
//	uploads/<session>/<n>              data of its n-th file, as far as it came
//	uploads/<session>/<n>.state        offset and hash states that belong to that data
//	ingress/jobs/<job>/<name>          complete files that a job owns
//	cas/sha256/<2 hex>/<64 hex>        blobs: read-only, complete, synced
//	cas/tmp/                           copies on their way from another file system
//	cas/quarantine/<64 hex>-<time>     files that were found not to be the blob they were named; nobody reads them
//	cas/trash/<64 hex>                 blobs on their way out; they may come back
//
// Names that begin with a dot are the store's own and never a caller's. Each of uploads, ingress and cas may be a
// symbolic link or a mount of another file system; where hard links and renames can't go, bytes are copied. No other
// symbolic link is followed: what somebody puts in place of a blob, an upload or its folder is refused.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	folderMode fs.FileMode = 0o750
	uploadMode fs.FileMode = 0o600
	blobMode   fs.FileMode = 0o444

	// tempPrefix marks files that are not yet what they will be named.
	tempPrefix = ".tmp-"
	// gonePrefix marks folders whose removal has been decided.
	gonePrefix = ".gone-"

	// checkpointBytes is how much of one Append may be lost to a SIGKILL: after so many bytes the state is saved in
	// between. Rare enough that its syncs do not show.
	checkpointBytes = 128 << 20
)

// Store is the storage root. All its methods may be called at once from several goroutines, and several processes
// may use one root. It holds nothing open between calls, so there is nothing to close.
type Store struct {
	root       string
	disk       Disk
	checkpoint int64     // bytes, see checkpointBytes
	buffers    sync.Pool // of *chunk
	aligned    sync.Pool // of *[]byte, as direct reads need them
	pread      func(fd int, p []byte, offset int64) (int, error)
	named      sync.Map // folders of blobs whose own names are durable

	mu      sync.RWMutex
	damaged map[string]damage // by digest: those that were, or are, damaged
	// askDamage tells of a blob that nothing was told of; nil once everything was.
	askDamage func(sha256hex string) error
}

// Open makes the folders under root that are missing, syncs them, removes what dead processes left, and checks that
// every folder can be written. The error says which folder can't; IsFull and IsReadOnly recognise the common causes.
func Open(root string) (*Store, error) {
	return OpenOver(root, func(real Disk) Disk { return real })
}

// OpenOver is Open with something between the store and the file system, for tests.
func OpenOver(root string, between func(real Disk) Disk) (*Store, error) {
	if root == "" {
		return nil, errors.New("open blob store: no storage folder given")
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open blob store %s: %w", root, err)
	}
	s := &Store{root: abs, disk: between(osDisk{}), checkpoint: checkpointBytes, pread: unix.Pread, damaged: map[string]damage{}}
	s.aligned.New = func() any { b := alignedBuffer(); return &b }
	s.buffers.New = func() any { return &chunk{buf: make([]byte, chunkBytes)} }
	if err := s.disk.MkdirAll(abs, folderMode); err != nil {
		return nil, fmt.Errorf("open blob store %s: %w", abs, err)
	}
	for _, dir := range []string{s.uploads(), s.jobs(), s.sha256Folder(), s.casTemp()} {
		if err := s.disk.MkdirAll(dir, folderMode); err != nil {
			return nil, fmt.Errorf("open blob store %s: %w", abs, err)
		}
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("open blob store %s: remove leftovers: %w", abs, err)
	}
	if err := s.Check(context.Background()); err != nil {
		return nil, fmt.Errorf("open blob store %s: %w", abs, err)
	}
	// Innermost first: a folder's own entries, then the entry that names it.
	for _, dir := range []string{
		s.uploads(), s.jobs(), s.sha256Folder(), s.casTemp(),
		filepath.Dir(s.jobs()), filepath.Dir(s.sha256Folder()), abs, filepath.Dir(abs),
	} {
		if err := s.disk.SyncFolder(dir); err != nil && !(dir == filepath.Dir(abs) && errors.Is(err, fs.ErrPermission)) {
			return nil, fmt.Errorf("open blob store %s: %w", abs, err)
		}
	}
	return s, nil
}

// Check reports whether the store can take bytes now: a file can be made in each of its file systems and there is
// free space. No space is an error that IsFull recognises. It is meant for a readiness probe and syncs nothing.
func (s *Store) Check(ctx context.Context) error {
	for _, dir := range []string{s.uploads(), s.jobs(), s.casTemp()} {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("check blob store: %w", context.Cause(ctx))
		}
		f, err := s.disk.CreateTemp(dir, tempPrefix+"probe-*")
		if err != nil {
			return fmt.Errorf("check that %s is writable: %w", dir, err)
		}
		// A sweep of another node may be faster: it holds no lock.
		if err := errors.Join(f.Close(), s.removeIfThere(f.Name())); err != nil {
			return fmt.Errorf("check that %s is writable: %w", dir, err)
		}
	}
	free, err := s.Free()
	if err != nil {
		return err
	}
	if free == 0 {
		return fmt.Errorf("check blob store %s: %w", s.root, syscall.ENOSPC)
	}
	return nil
}

// Free returns how many bytes an unprivileged process may still write, on the fullest of the store's file systems.
func (s *Store) Free() (int64, error) {
	free, _, err := s.Space()
	return free, err
}

// Space is Free with the size, in bytes, of that file system.
func (s *Store) Space() (free, total int64, err error) {
	free = -1
	for _, dir := range []string{s.uploads(), s.jobs(), s.casTemp()} {
		f, t, err := space(dir)
		if err != nil {
			return 0, 0, fmt.Errorf("free space of %s: %w", dir, err)
		}
		if free < 0 || f < free {
			free, total = f, t
		}
	}
	return free, total, nil
}

// sweep removes the temporary files of dead processes, and folders whose removal was cut short.
func (s *Store) sweep() error {
	for _, parent := range []string{s.uploads(), s.jobs()} {
		entries, err := os.ReadDir(parent)
		if err != nil {
			return err
		}
		for _, e := range entries {
			path := filepath.Join(parent, e.Name())
			if strings.HasPrefix(e.Name(), gonePrefix) {
				if err := s.disk.RemoveAll(path); err != nil {
					return err
				}
			} else if e.IsDir() {
				if err := s.sweepFolder(path); err != nil {
					return err
				}
			}
		}
		if err := s.sweepFolder(parent); err != nil {
			return err
		}
	}
	return s.sweepFolder(s.casTemp())
}

// sweepFolder removes the temporary files directly in dir that nobody holds. What goes away meanwhile was another node's to
// remove.
func (s *Store) sweepFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || e.IsDir() {
			continue
		}
		if err := s.removeDead(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// Root is the storage root, an absolute path.
func (s *Store) Root() string { return s.root }
