package vault_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/store/vault"
)

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// keepsWhole is what every vault promises.
func keepsWhole(t *testing.T, open func() vault.Vault) {
	t.Helper()
	v := open()
	ctx := t.Context()
	put := func(name string, data []byte, sum string) error {
		return v.Put(ctx, name, int64(len(data)), sum, bytes.NewReader(data))
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 3<<20) // 48 MiB: several parts
	want := map[string][]byte{"a/one": []byte("1"), "a/b/two": {}, "c": []byte("3"), "a/b/large": large}
	for name, data := range want {
		if err := put(name, data, sumOf(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := put("c", []byte("another"), ""); err != nil { // replaces
		t.Fatal(err)
	}
	want["c"] = []byte("another")

	for what, put := range map[string]func() error{
		"other bytes":                 func() error { return put("bad/sum", []byte("x"), sumOf([]byte("y"))) },
		"other bytes of a large file": func() error { return put("bad/large", large, sumOf([]byte("y"))) },
		"fewer bytes":                 func() error { return v.Put(ctx, "bad/short", 10, "", bytes.NewReader([]byte("x"))) },
		"more bytes":                  func() error { return v.Put(ctx, "bad/long", 1, "", bytes.NewReader([]byte("xy"))) },
		"a large file that is cut":    func() error { return v.Put(ctx, "bad/cut", int64(len(large)+1), "", bytes.NewReader(large)) },
	} {
		var mismatch *vault.MismatchError
		if err := put(); !errors.As(err, &mismatch) {
			t.Errorf("%s: %v, want a MismatchError", what, err)
		}
	}
	broken := errors.New("the disk is broken")
	if err := v.Put(ctx, "bad/broken", 10, "", io.MultiReader(bytes.NewReader([]byte("x")), &failing{broken})); !errors.Is(err, broken) {
		t.Errorf("a source that breaks: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := v.Put(ended, "bad/ended", int64(len(large)), "", bytes.NewReader(large)); !errors.Is(err, context.Canceled) {
		t.Errorf("put in a context that has ended: %v", err)
	}
	for _, name := range []string{"", ".", "../x", "/x", "a//b", "a/.b", ".x", "a/"} {
		if err := put(name, nil, ""); err == nil {
			t.Errorf("put as %q succeeded", name)
		}
		if _, err := v.Open(ctx, name); err == nil {
			t.Errorf("open of %q succeeded", name)
		}
	}
	if err := v.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}

	v = open()
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	list := func(folder string) map[string]int64 {
		found := map[string]int64{}
		if err := v.List(ctx, folder, func(name string, size int64) error { found[name] = size; return nil }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	sizes := map[string]int64{}
	for name, data := range want {
		sizes[name] = int64(len(data))
		r, err := v.Open(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s has %d bytes (%v), put were %d", name, len(got), err, len(data))
		}
	}
	if diff := cmp.Diff(sizes, list("")); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	delete(sizes, "c")
	delete(sizes, "a/one")
	if diff := cmp.Diff(sizes, list("a/b")); diff != "" {
		t.Errorf("files in a/b (-want +got):\n%s", diff)
	}
	if found := list("nowhere"); len(found) != 0 {
		t.Errorf("nowhere has %v", found)
	}
	if _, err := v.Open(ctx, "a/absent"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of what isn't there: %v, want fs.ErrNotExist", err)
	}
	stop := errors.New("enough")
	if err := v.List(ctx, "", func(string, int64) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a list that is ended: %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestAFolderKeepsWholeFiles(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "new", "folder [1]")
	keepsWhole(t, func() vault.Vault {
		v, err := vault.Open(t.Context(), root, vault.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return v
	})
	info, err := os.Stat(root)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder's mode is %v (%v): others may read what is private", info.Mode(), err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(root), "*", ".tmp-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v (%v)", left, err)
	}
}

func TestAFolderIsWrittenByOneAtATime(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	first, err := vault.Open(t.Context(), root, vault.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Open(t.Context(), root, vault.Options{}); !errors.Is(err, vault.ErrLocked) {
		t.Errorf("a second writer: %v", err)
	}
	reader, err := vault.Open(t.Context(), root, vault.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(reader.Close(), first.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := vault.Open(t.Context(), filepath.Join(root, "absent"), vault.Options{ReadOnly: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("reading a folder that isn't there: %v", err)
	}
}
