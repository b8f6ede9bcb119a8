package vault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	folderMode fs.FileMode = 0o700 // what is private in the server stays so
	tempPrefix             = ".tmp-"
	lockName               = ".lock"
)

// ErrLocked says that another process writes to the folder.
var ErrLocked = errors.New("another backup is being written there")

// folder is a [Vault] in a file system.
type folder struct {
	root string
	lock *os.File // nil: only read

	mu    sync.Mutex
	dirty map[string]bool // folders with entries that may not be durable yet
}

func openFolder(root string, readOnly bool) (*folder, error) {
	abs, err := filepath.Abs(root)
	if err != nil || root == "" {
		return nil, errors.Join(fmt.Errorf("open the folder %q", root), err)
	}
	f := &folder{root: abs, dirty: map[string]bool{}}
	if readOnly {
		info, err := os.Stat(abs)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is no folder", abs)
		}
		return f, err
	}
	if err := f.makeFolder(abs); err != nil {
		return nil, err
	}
	if f.lock, err = os.OpenFile(filepath.Join(abs, lockName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("open the folder: %w", err)
	}
	if err := unix.Flock(int(f.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", abs, err), f.lock.Close())
	}
	return f, f.sweep()
}

// sweep removes what killed processes left half written. Nobody else writes: we hold the lock.
func (f *folder) sweep() error {
	left, err := filepath.Glob(filepath.Join(escapeGlob(f.root), tempPrefix+"*"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// makeFolder makes a folder with those above it, and remembers whose entries have to be synced.
func (f *folder) makeFolder(dir string) error {
	f.mu.Lock()
	known := f.dirty[dir]
	f.mu.Unlock()
	if known {
		return nil
	}
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dirty[dir] = true
	for dir != f.root && len(dir) > len(f.root) {
		dir = filepath.Dir(dir)
		f.dirty[dir] = true
	}
	return nil
}

func (f *folder) Put(ctx context.Context, name string, size int64, sha256hex string, r io.Reader) (err error) {
	if err := checkName(name); err != nil {
		return err
	}
	path := filepath.Join(f.root, filepath.FromSlash(name))
	if err := f.makeFolder(filepath.Dir(path)); err != nil {
		return err
	}
	temp, err := os.CreateTemp(f.root, tempPrefix+"*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	buffer := make([]byte, 256<<10)
	// The bytes are copied, never linked: a second name of the same bytes would rot with them.
	_, err = io.CopyBuffer(struct{ io.Writer }{temp}, checked(name, size, sha256hex, &interruptible{ctx, r}), buffer)
	if err == nil {
		err = temp.Sync()
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), os.Remove(temp.Name()))
	}
	return nil
}

func (f *folder) Open(_ context.Context, name string) (io.ReadCloser, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(f.root, filepath.FromSlash(name)))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return file, nil
}

func (f *folder) List(ctx context.Context, under string, each func(string, int64) error) error {
	root := filepath.Join(f.root, filepath.FromSlash(under))
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil && path == root && errors.Is(err, fs.ErrNotExist):
			return fs.SkipAll
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case entry.IsDir() || strings.HasPrefix(entry.Name(), "."):
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(f.root, path)
		if err != nil {
			return err
		}
		return each(filepath.ToSlash(name), info.Size())
	})
	if err != nil {
		return fmt.Errorf("list %s: %w", root, err)
	}
	return nil
}

func (f *folder) Sync(context.Context) error {
	f.mu.Lock()
	dirs := make([]string, 0, len(f.dirty)+1)
	for dir := range f.dirty {
		dirs = append(dirs, dir)
	}
	clear(f.dirty)
	f.mu.Unlock()
	dirs = append(dirs, filepath.Dir(f.root))
	// Innermost first: a folder's own entries, then the entry that names it.
	slices.SortFunc(dirs, func(a, b string) int { return len(b) - len(a) })
	for _, dir := range dirs {
		if err := syncFolder(dir); err != nil && (dir != filepath.Dir(f.root) || !errors.Is(err, fs.ErrPermission)) {
			return fmt.Errorf("sync: %w", err)
		}
	}
	return nil
}

// syncFolder makes the entries of a folder durable, where its file system knows how.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTSUP) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

func (f *folder) String() string { return f.root }

func (f *folder) Close() error {
	if f.lock == nil {
		return nil
	}
	return f.lock.Close()
}

// interruptible ends a copy with its context.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(p)
}
