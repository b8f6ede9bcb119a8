package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/tree"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// incoming is the folder of the tree where files are until they are whole, named by their digests. It is gone after each run that
// was not interrupted.
const incoming = ".incoming"

// exportRun brings a folder to the state of the documents: files first, documents last, so that at no time a document names a file
// that isn't there.
type exportRun struct {
	dir      string
	client   *client.Client
	progress *progress
	parallel int
	check    bool
	folders  *folders                      // nil: none are wanted, and those that are there stay
	known    map[string]simplestreams.File // what the folder's own documents say of its files, by path

	mu     sync.Mutex // guards what is below while downloads run
	result exported
	done   int64
	active map[string]int64 // bytes of running downloads, by digest
}

func (run *exportRun) run(ctx context.Context, set *documents, remove bool) error {
	if err := os.MkdirAll(filepath.Join(run.dir, incoming), 0o755); err != nil { //nolint:gosec // for a web server to read
		return fmt.Errorf("make the folder of the tree: %w", err)
	}
	run.known, run.active = run.documented(), map[string]int64{}
	if run.folders != nil {
		maps.Copy(run.known, run.knownFolders())
	}
	if err := run.files(ctx, set.files); err != nil {
		return err
	}
	if run.folders != nil {
		if err := run.folders.finish(run); err != nil {
			return err
		}
	}
	if err := run.documents(set); err != nil {
		return err
	}
	if remove {
		offered := set.files
		if run.folders != nil {
			offered = slices.Concat(offered, run.folders.kept())
		}
		if err := run.remove(offered); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(filepath.Join(run.dir, incoming)); err != nil {
		return fmt.Errorf("remove what an interrupted export left: %w", err)
	}
	return nil
}

// documented reads what an earlier export wrote; whatever can't be read is as if it weren't there.
func (run *exportRun) documented() map[string]simplestreams.File {
	known := map[string]simplestreams.File{}
	index, err := os.ReadFile(run.path(incus.IndexPath))
	if err != nil {
		return known
	}
	entries, _ := tree.Entries(index)
	for _, entry := range entries {
		document, err := os.ReadFile(run.path(entry.Path))
		if err != nil {
			continue
		}
		files, _, _ := tree.Named(document)
		for _, f := range files {
			known[f.Path] = f
		}
	}
	return known
}

func (run *exportRun) path(name string) string {
	return filepath.Join(run.dir, filepath.FromSlash(name))
}

// files brings in the files that are missing, each digest once.
func (run *exportRun) files(ctx context.Context, files []simplestreams.File) error {
	byDigest := map[string][]simplestreams.File{}
	have := map[string]string{} // path of a file that has the digest
	var total int64
	for _, f := range files {
		there, err := run.has(ctx, f)
		if err != nil {
			return err
		}
		if there {
			run.result.Kept++
			have[f.SHA256] = f.Path
			continue
		}
		if len(byDigest[f.SHA256]) == 0 {
			total += f.Size
		}
		byDigest[f.SHA256] = append(byDigest[f.SHA256], f)
	}
	run.progress.start("downloading", total)
	defer run.progress.stop()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(run.parallel)
	for digest, wanted := range byDigest {
		group.Go(func() error {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := run.bring(ctx, wanted, have[digest]); err != nil {
				return fmt.Errorf("%s: %w", wanted[0].Path, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// has says whether a file is in the tree. Of a file that the tree's own documents name with the same digest the size is enough, unless
// all are to be checked: it came into being whole.
func (run *exportRun) has(ctx context.Context, f simplestreams.File) (bool, error) {
	info, err := os.Lstat(run.path(f.Path))
	if err != nil || !info.Mode().IsRegular() || info.Size() != f.Size {
		return false, nil
	}
	if before := run.known[f.Path]; before.SHA256 == f.SHA256 && !run.check {
		return true, nil
	}
	got, err := sumOf(ctx, run.path(f.Path))
	return got == f.SHA256, err
}

// sumOf is the SHA-256 of a file.
func sumOf(ctx context.Context, path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close() //nolint:errcheck // only read
	sum := sha256.New()
	buffer := make([]byte, 1<<20)
	for {
		if err := context.Cause(ctx); err != nil {
			return "", err
		}
		n, err := file.Read(buffer)
		sum.Write(buffer[:n])
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(sum.Sum(nil)), nil
		}
		if err != nil {
			return "", fmt.Errorf("read %s: %w", path, err)
		}
	}
}

// bring makes files of one digest: links to one that is there, else to one that is downloaded.
func (run *exportRun) bring(ctx context.Context, wanted []simplestreams.File, have string) error {
	source, digest := run.path(have), wanted[0].SHA256
	if have == "" {
		source = filepath.Join(run.dir, incoming, digest)
		fetch := client.Fetch{URL: run.client.URL("/" + wanted[0].Path), SHA256: digest, Progress: func(done, _ int64) { run.told(digest, done) }}
		fetched, err := run.client.Download(ctx, source, fetch)
		if err != nil && !errors.Is(err, fs.ErrExist) { // it came whole, and the last run ended before it had its name
			return err
		}
		if err == nil {
			run.count(func(r *exported) { r.Downloaded++; r.Bytes += fetched.Size; r.Linked-- })
		}
	}
	for _, f := range wanted {
		if err := run.link(source, run.path(f.Path)); err != nil {
			return err
		}
		run.count(func(r *exported) { r.Linked++ })
	}
	if have == "" {
		if err := os.Remove(source); err != nil {
			return fmt.Errorf("remove the download's first name: %w", err)
		}
	}
	run.told(digest, 0)
	run.count(func(*exported) { run.done += wanted[0].Size })
	return nil
}

func (run *exportRun) count(change func(*exported)) {
	run.mu.Lock()
	defer run.mu.Unlock()
	change(&run.result)
}

func (run *exportRun) told(digest string, bytes int64) {
	run.mu.Lock()
	defer run.mu.Unlock()
	run.active[digest] = bytes
	sum := run.done
	for _, n := range run.active {
		sum += n
	}
	run.progress.set(sum)
}

// link gives a file a further name, in place of what may have it. Where the file system has no links, the bytes are copied.
func (run *exportRun) link(source, target string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil { //nolint:gosec // for a web server to read
		return fmt.Errorf("make a folder of the tree: %w", err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace a file of the tree: %w", err)
	}
	if err := os.Link(source, target); err == nil {
		return nil
	}
	from, err := os.Open(source)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // only read
	return run.write(target, from)
}

// write makes a file whole or not at all.
func (run *exportRun) write(target string, content io.Reader) (err error) {
	file, err := os.CreateTemp(filepath.Join(run.dir, incoming), "write-")
	if err != nil {
		return fmt.Errorf("write %s: %w", target, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", target, err), os.Remove(file.Name()))
		}
	}()
	_, err = io.Copy(file, content)
	if err := errors.Join(err, file.Chmod(0o644), file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), target)
}

// documents writes the documents, the index last: clients begin there. Signed ones that the server doesn't make any more would say
// something else, so they go.
func (run *exportRun) documents(set *documents) error {
	rank := func(path string) int { return slices.Index([]string{incus.IndexPath, signedIndexPath}, path) + 1 }
	var paths []string
	for path := range set.byPath {
		paths = append(paths, path)
	}
	slices.SortFunc(paths, func(a, b string) int {
		if byRank := rank(a) - rank(b); byRank != 0 {
			return byRank
		}
		return strings.Compare(a, b)
	})
	for _, path := range paths {
		target := run.path(path)
		if before, err := os.ReadFile(target); err == nil && bytes.Equal(before, set.byPath[path]) { //nolint:gosec // of the tree
			continue // its time stays, and with it what web servers tell of it
		}
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil { //nolint:gosec // for a web server to read
			return fmt.Errorf("make a folder of the tree: %w", err)
		}
		if err := run.write(target, bytes.NewReader(set.byPath[path])); err != nil {
			return err
		}
	}
	return run.walk("streams", func(path string) bool {
		_, there := set.byPath[path]
		return there || !strings.HasSuffix(path, "json") && !strings.HasSuffix(path, ".asc")
	}, func() {})
}

const signedIndexPath = "streams/v1/index.sjson"

// remove removes what the documents don't name any more, in the folders that an export fills, and folders that are empty then.
func (run *exportRun) remove(files []simplestreams.File) error {
	wanted, tops := map[string]bool{}, map[string]bool{"api": true} // where the server has them
	for _, f := range files {
		wanted[f.Path] = true
	}
	for path := range run.known {
		top, _, _ := strings.Cut(path, "/")
		tops[top] = true
	}
	for top := range tops {
		if err := run.walk(top, func(path string) bool { return wanted[path] }, func() { run.result.Deleted++ }); err != nil {
			return err
		}
	}
	return nil
}

// walk removes files below a folder of the tree that are not to be kept, and empty folders.
func (run *exportRun) walk(top string, keep func(path string) bool, removed func()) error {
	root, err := os.OpenRoot(run.dir) // so that no link leads out of the tree
	if err != nil {
		return fmt.Errorf("open the tree: %w", err)
	}
	defer root.Close() //nolint:errcheck // nothing is written through it
	var folders []string
	err = fs.WalkDir(root.FS(), top, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case entry.IsDir():
			folders = append(folders, path)
			return nil
		case keep(path):
			return nil
		}
		removed()
		return root.Remove(path)
	})
	for _, folder := range slices.Backward(folders) {
		_ = root.Remove(folder) // fails where something is in it
	}
	if err != nil {
		return fmt.Errorf("remove what is no longer offered: %w", err)
	}
	return nil
}
