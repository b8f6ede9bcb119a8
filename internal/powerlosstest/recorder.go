// Package powerlosstest keeps count of what a store has made durable, and builds what a power failure at any moment may leave. It
// stands between the store and a real file system; it knows the operations of blob.Disk and nothing of what the files mean.
//
// What may be left is more than any one file system leaves. A file has the bytes it had when it was synced last, or what was written
// since, or a beginning of that, or zeros where bytes should be. A name that was made, moved or removed since its folder was synced
// last is there or is not, each for itself: the order in which it happened says nothing. Only a rename is one step, also between
// two folders, as it is for file systems with a journal (ext4, XFS, Btrfs, ZFS, F2FS).
package powerlosstest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imgsrv/imgsrv/store/blob"
)

// node is a file or folder, whatever its names are. 0 is none.
type node int

const root node = 1

// entry is what a name in a folder stands for.
type entry struct {
	folder node
	name   string
	is     node
}

// op is one thing that happened. Exactly one of its parts is set.
type op struct {
	entries []entry // these change in one step
	content *content
	synced  node // a file with all that is in it, or the entries of a folder
}

type content struct {
	of   node
	data []byte
}

// Recorder is a blob.Disk that does what it is told on the real one, and remembers it. All its methods may be called at once from
// several goroutines; they take turns.
type Recorder struct {
	real blob.Disk
	dir  string

	mu      sync.Mutex
	ops     []op
	nodes   map[uint64]node // by inode
	folders map[node]bool
	last    node

	// Lie, where set, lets a kind of sync count for nothing: "Sync", "SyncData" or "SyncFolder". It shows that a test would notice.
	Lie string
	// Apart, where set, lets each folder at the top be a file system of its own: nothing can be linked or moved from one to another.
	Apart bool
}

// New makes a recorder of what happens below a folder, which is empty and durable.
func New(dir string, real blob.Disk) *Recorder {
	r := &Recorder{real: real, dir: dir, nodes: map[uint64]node{}, folders: map[node]bool{root: true}, last: root}
	if ino, ok := inode(dir); ok {
		r.nodes[ino] = root
	}
	return r
}

// Ops is how many operations there have been.
func (r *Recorder) Ops() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ops)
}

func inode(path string) (uint64, bool) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return st.Ino, true
}

// fresh gives what was just made a number of its own: an inode's number may have been another file's before.
func (r *Recorder) fresh(path string, folder bool) node {
	ino, ok := inode(path)
	if !ok {
		return 0
	}
	r.last++
	r.nodes[ino] = r.last
	r.folders[r.last] = folder
	return r.last
}

// at is the node of a path; what another program has made there is new.
func (r *Recorder) at(path string) node {
	ino, ok := inode(path)
	if !ok {
		return 0
	}
	if n := r.nodes[ino]; n != 0 {
		return n
	}
	n := r.fresh(path, false)
	r.did(op{entries: []entry{r.entry(path, n)}})
	r.holds(n, path)
	return n
}

// entry names a path by its folder.
func (r *Recorder) entry(path string, is node) entry {
	ino, _ := inode(filepath.Dir(path))
	return entry{r.nodes[ino], filepath.Base(path), is}
}

func (r *Recorder) did(o op) { r.ops = append(r.ops, o) }

// holds remembers what a file has now.
func (r *Recorder) holds(n node, path string) {
	if data, err := os.ReadFile(path); err == nil && n != 0 {
		r.did(op{content: &content{n, data}})
	}
}

// within says whether a path is below the recorded folder.
func (r *Recorder) within(path string) bool { return strings.HasPrefix(path, r.dir+"/") }

// made remembers a new name for something new.
func (r *Recorder) made(path string, folder bool) {
	if r.within(path) {
		n := r.fresh(path, folder)
		r.did(op{entries: []entry{r.entry(path, n)}})
	}
}

// Open is as blob.Disk says.
func (r *Recorder) Open(path string, flags int, mode fs.FileMode) (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, there := inode(path)
	f, err := r.real.Open(path, flags, mode)
	if err == nil && !there && flags&unix.O_CREAT != 0 {
		r.made(path, false)
	}
	return f, err
}

// CreateTemp is as blob.Disk says.
func (r *Recorder) CreateTemp(dir, pattern string) (*os.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, err := r.real.CreateTemp(dir, pattern)
	if err == nil {
		r.made(f.Name(), false)
	}
	return f, err
}

// MkdirTemp is as blob.Disk says.
func (r *Recorder) MkdirTemp(dir, pattern string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	made, err := r.real.MkdirTemp(dir, pattern)
	if err == nil {
		r.made(made, true)
	}
	return made, err
}

// Mkdir is as blob.Disk says.
func (r *Recorder) Mkdir(dir string, mode fs.FileMode) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.real.Mkdir(dir, mode)
	if err == nil {
		r.made(dir, true)
	}
	return err
}

// MkdirAll is as blob.Disk says.
func (r *Recorder) MkdirAll(dir string, mode fs.FileMode) error {
	if _, there := inode(dir); there || !r.within(dir) {
		return r.real.MkdirAll(dir, mode)
	}
	if err := r.MkdirAll(filepath.Dir(dir), mode); err != nil {
		return err
	}
	if err := r.Mkdir(dir, mode); !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (r *Recorder) apart(from, to string) error {
	if r.Apart && r.top(from) != r.top(to) {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EXDEV}
	}
	return nil
}

func (r *Recorder) top(path string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(path, r.dir+"/"), "/")
	return name
}

// Rename is as blob.Disk says.
func (r *Recorder) Rename(from, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.apart(from, to); err != nil {
		return err
	}
	n := r.at(from)
	err := r.real.Rename(from, to)
	if err == nil {
		r.did(op{entries: []entry{r.entry(to, n), r.entry(from, 0)}})
	}
	return err
}

// RenameNoReplace is as blob.Disk says.
func (r *Recorder) RenameNoReplace(from, to string) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.apart(from, to); err != nil {
		return true, err
	}
	n := r.at(from)
	done, err := r.real.RenameNoReplace(from, to)
	if done && err == nil {
		r.did(op{entries: []entry{r.entry(to, n), r.entry(from, 0)}})
	}
	return done, err
}

// Link is as blob.Disk says.
func (r *Recorder) Link(from, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.apart(from, to); err != nil {
		return err
	}
	n := r.at(from)
	err := r.real.Link(from, to)
	if err == nil {
		r.did(op{entries: []entry{r.entry(to, n)}})
	}
	return err
}

// Remove is as blob.Disk says.
func (r *Recorder) Remove(path string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.real.Remove(path)
	if err == nil {
		r.did(op{entries: []entry{r.entry(path, 0)}})
	}
	return err
}

// RemoveAll removes one name after the other, each an operation.
func (r *Recorder) RemoveAll(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return err
	}
	for _, e := range entries {
		if err := r.RemoveAll(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	if err := r.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// WriteAt is as blob.Disk says.
func (r *Recorder) WriteAt(f *os.File, b []byte, offset int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.real.WriteAt(f, b, offset)
	r.holds(r.at(f.Name()), f.Name())
	return n, err
}

// Truncate is as blob.Disk says.
func (r *Recorder) Truncate(f *os.File, size int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.real.Truncate(f, size)
	r.holds(r.at(f.Name()), f.Name())
	return err
}

// Chmod is as blob.Disk says.
func (r *Recorder) Chmod(f *os.File, mode fs.FileMode) error { return r.real.Chmod(f, mode) }

// Reflink is never possible, so that copies are written.
func (r *Recorder) Reflink(_, _ *os.File) bool { return false }

// Sync is as blob.Disk says.
func (r *Recorder) Sync(f *os.File) error {
	return r.sync("Sync", f.Name(), func() error { return r.real.Sync(f) })
}

// SyncData is as blob.Disk says.
func (r *Recorder) SyncData(f *os.File) error {
	return r.sync("SyncData", f.Name(), func() error { return r.real.SyncData(f) })
}

// SyncFolder is as blob.Disk says.
func (r *Recorder) SyncFolder(dir string) error {
	return r.sync("SyncFolder", dir, func() error { return r.real.SyncFolder(dir) })
}

func (r *Recorder) sync(kind, path string, really func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := really()
	if err != nil || r.Lie == kind || path != r.dir && !r.within(path) {
		return err
	}
	n := r.at(path)
	if !r.folders[n] {
		r.holds(n, path) // another program may have written it
	}
	r.did(op{synced: n})
	return nil
}
