package tree_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/incus/tree"
)

func sum(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "")))
	return hex.EncodeToString(sum[:])
}

// folder writes files below a folder of the test's own.
func folder(t testing.TB, files map[string]string) *tree.Tree {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	opened, err := tree.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	})
	return opened
}

const index = `{"format":"index:1.0","index":{"images":{"datatype":"image-downloads","path":"streams/v1/images.json","products":["p"]}}}`

func products(items string) string {
	return `{"products":{"p":{"arch":"amd64","os":"A","release":"b","release_title":"b","versions":{"20260131_1200":{"items":{` + items + `}}}}}}`
}

func item(fileType, path, content, more string) string {
	return fmt.Sprintf(`%q:{"ftype":%q,"path":%q,"size":%d,"sha256":%q%s}`, fileType, fileType, path, len(content), sum(content), more)
}

func TestEachKindOfImageIsFoundAndVerified(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ items, kind, fingerprint string }{
		"squashfs":  {item("incus.tar.xz", "m", "meta", `,"combined_squashfs_sha256":"`+sum("meta", "root")+`"`) + "," + item("squashfs", "r", "root", ""), "container", sum("meta", "root")},
		"root.tar":  {item("lxd.tar.xz", "m", "meta", `,"combined_sha256":"`+sum("meta", "root")+`"`) + "," + item("root.tar.xz", "r", "root", ""), "container", sum("meta", "root")},
		"disk-kvm":  {item("incus.tar.xz", "m", "meta", `,"combined_disk-kvm-img_sha256":"`+sum("meta", "root")+`"`) + "," + item("disk-kvm.img", "r", "root", ""), "virtual-machine", sum("meta", "root")},
		"disk1":     {item("lxd.tar.xz", "m", "meta", `,"combined_disk1-img_sha256":"`+sum("meta", "root")+`"`) + "," + item("disk1.img", "r", "root", ""), "virtual-machine", sum("meta", "root")},
		"uefi1":     {item("lxd.tar.xz", "m", "meta", `,"combined_uefi1-img_sha256":"`+sum("meta", "root")+`"`) + "," + item("uefi1.img", "r", "root", ""), "virtual-machine", sum("meta", "root")},
		"unified":   {item("lxd_combined.tar.gz", "r", "root", ""), "container", sum("root")},
		"unifiedVM": {item("incus_combined.tar.gz", "r", "root", `,"combined_type":"virtual-machine"`), "virtual-machine", sum("root")},
	} {
		opened := folder(t, map[string]string{"streams/v1/index.json": index, "streams/v1/images.json": products(test.items), "m": "meta", "r": "root"})
		contents, err := opened.Read()
		if err != nil || len(contents.Images) != 1 || len(contents.Passed) != 0 {
			t.Errorf("%s: %+v, %v", name, contents, err)
			continue
		}
		image := contents.Images[0]
		if image.Type != test.kind || image.Fingerprint != test.fingerprint || image.Serial != "20260131_1200" {
			t.Errorf("%s: %+v", name, image)
		}
		read := 0
		if err := opened.Verify(t.Context(), image, func(n int) { read += n }); err != nil || read != len("metaroot")-len("meta")*(2-len(tree.Files(image))) {
			t.Errorf("%s: %v, %d bytes read", name, err, read)
		}
		image.Fingerprint = sum("else")
		var mismatch *tree.MismatchError
		if err := opened.Verify(t.Context(), image, nil); !errors.As(err, &mismatch) {
			t.Errorf("%s with another fingerprint: %v", name, err)
		}
	}
}

func TestWhatIsNoTreeIsSaidSo(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]map[string]string{
		"no index":     {},
		"no JSON":      {"streams/v1/index.json": "<html>"},
		"no document":  {"streams/v1/index.json": index},
		"not products": {"streams/v1/index.json": index, "streams/v1/images.json": "[]"},
	} {
		if contents, err := folder(t, files).Read(); err == nil {
			t.Errorf("%s: %+v", name, contents)
		}
	}
	if _, err := tree.Open(filepath.Join(t.TempDir(), "absent")); err == nil {
		t.Error("an absent folder is a tree")
	}
}

func TestSecondImagesOfOneTypeAreNamed(t *testing.T) {
	t.Parallel()
	meta := item("incus.tar.xz", "m", "meta", `,"combined_squashfs_sha256":"`+sum("meta", "root")+`","combined_rootxz_sha256":"`+sum("meta", "xz")+`"`)
	opened := folder(t, map[string]string{"streams/v1/index.json": index,
		"streams/v1/images.json": products(meta + "," + item("squashfs", "r", "root", "") + "," + item("root.tar.xz", "x", "xz", ""))})
	contents, err := opened.Read()
	if err != nil || len(contents.Images) != 1 || contents.Images[0].Root.FileType != "squashfs" || len(contents.Passed) != 1 || !strings.Contains(contents.Passed[0].Text, sum("meta", "xz")) {
		t.Errorf("%+v, %v", contents, err)
	}
}

// Whatever a server's document is, what an export would write stays in its folder and away from the documents.
func FuzzNamed(f *testing.F) {
	f.Add([]byte(products(item("squashfs", "a/b", "root", ""))))
	f.Add([]byte(products(item("squashfs", "../a", "root", ""))))
	f.Add([]byte(products(item("squashfs", "a/../streams/v1/index.json", "root", ""))))
	f.Fuzz(func(t *testing.T, document []byte) {
		files, keys, err := tree.Named(document)
		if err != nil {
			return
		}
		if !slices.IsSorted(keys) {
			t.Errorf("products %q are not sorted", keys)
		}
		for _, file := range files {
			if !filepath.IsLocal(file.Path) || path.Clean(file.Path) != file.Path || strings.HasPrefix(file.Path, "streams/") || file.Path[0] == '.' || len(file.SHA256) != 64 || file.Size <= 0 {
				t.Errorf("%+v", file)
			}
		}
	})
}

// The same for what an import would read, and for documents that an index names.
func FuzzRead(f *testing.F) {
	f.Add([]byte(index), []byte(products(item("squashfs", "a/b", "root", ""))))
	f.Add([]byte(strings.Replace(index, "streams/v1/images.json", "streams/v1/../../x", 1)), []byte(`{}`))
	f.Fuzz(func(t *testing.T, index, document []byte) {
		entries, err := tree.Entries(index)
		for _, entry := range entries {
			if !filepath.IsLocal(entry.Path) || !strings.HasPrefix(entry.Path, "streams/") || err != nil {
				t.Errorf("%+v, %v", entry, err)
			}
		}
		contents, err := folder(t, map[string]string{"streams/v1/index.json": string(index), "streams/v1/images.json": string(document)}).Read()
		if err != nil {
			return
		}
		for _, image := range contents.Images {
			for _, file := range tree.Files(image) {
				if !filepath.IsLocal(file.Path) || len(file.SHA256) != 64 || len(image.Fingerprint) != 64 || file.Size <= 0 {
					t.Errorf("%+v", image)
				}
			}
		}
	})
}
