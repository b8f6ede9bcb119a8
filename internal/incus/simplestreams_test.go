package incus_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
)

// files holds what a remote serves, by path.
type files map[string][]byte

func (f files) put(path string, body []byte) (digest string) {
	f[path] = body
	return digestOf(body)
}

func (f files) fetch(path string) ([]byte, error) {
	body, ok := f[path]
	if !ok {
		return nil, fmt.Errorf("%s: not there", path)
	}
	return body, nil
}

func digestOf(parts ...[]byte) string {
	hash := sha256.New()
	for _, part := range parts {
		_, _ = hash.Write(part)
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// addSplit adds a product whose one version has metadata for both clients and one root file, and returns its fingerprint.
func addSplit(t *testing.T, f files, products *incus.Products, arch, version, rootType string, aliases ...string) string {
	t.Helper()
	metadata := bookworm()
	metadata.Architecture, metadata.Version, metadata.Variant = arch, version, "default"
	tarball, err := metadata.Tarball()
	if err != nil {
		t.Fatal(err)
	}
	root := []byte("root of " + arch + " " + version + " " + rootType)
	fingerprint := digestOf(tarball, root)
	folder := fmt.Sprintf("images/debian-bookworm/%s/%s/%s/", version, arch, rootType)
	meta := incus.Item{Path: folder + "incus.tar.xz", SHA256: f.put(folder+"incus.tar.xz", tarball), SizeBytes: int64(len(tarball))}
	switch rootType {
	case incus.FileDiskKVM:
		meta.CombinedDiskKVMSHA256 = fingerprint
	case incus.FileSquashfs:
		meta.CombinedSquashfsSHA256 = fingerprint
	case incus.FileRootTarXZ:
		meta.CombinedRootXZSHA256 = fingerprint
	}
	lxdMeta := meta
	meta.FileType, lxdMeta.FileType = incus.FileIncusMetadata, incus.FileLXDMetadata
	joined, err := incus.JoinAliases(aliases)
	if err != nil {
		t.Fatal(err)
	}
	products.Products["debian-bookworm:"+version+":"+arch+":"+rootType] = incus.Product{
		Aliases: joined, Architecture: arch, OS: "debian", Release: "bookworm", ReleaseTitle: "bookworm", Variant: "default", Version: version,
		Versions: map[string]incus.Version{incus.VersionKey(metadata.CreationDate): {Items: map[string]incus.Item{
			incus.FileIncusMetadata: meta,
			incus.FileLXDMetadata:   lxdMeta,
			rootType:                {FileType: rootType, Path: folder + "root.img", SHA256: f.put(folder+"root.img", root), SizeBytes: int64(len(root))},
		}}},
	}
	return fingerprint
}

// publish encodes the documents into f.
func publish(t *testing.T, f files, products incus.Products) {
	t.Helper()
	body, err := products.Encode()
	if err != nil {
		t.Fatal(err)
	}
	f[incus.ImagesPath] = body
	if body, err = products.Index(incus.ImagesPath).Encode(); err != nil {
		t.Fatal(err)
	}
	f[incus.IndexPath] = body
}

func TestBothClientsSeeEachImageOnce(t *testing.T) {
	t.Parallel()
	f, products := files{}, incus.NewProducts(time.Date(2026, 11, 24, 20, 0, 37, 0, time.UTC))
	vm := addSplit(t, f, &products, "amd64", "12.5.0", incus.FileDiskKVM, "debian-bookworm/12.5.0", "debian-bookworm", "debian-bookworm/latest")
	container := addSplit(t, f, &products, "amd64", "12.5.0", incus.FileSquashfs, "debian-bookworm/12.5.0", "debian-bookworm")
	arm := addSplit(t, f, &products, "arm64", "12.4.0", incus.FileRootTarXZ, "debian-bookworm/12.4.0", "debian-bookworm")
	publish(t, f, products)

	for _, dialect := range []clientrules.Dialect{clientrules.Incus, clientrules.LXD} {
		t.Run(dialect.String(), func(t *testing.T) {
			t.Parallel()
			images, err := clientrules.Read(f[incus.IndexPath], f.fetch, dialect)
			if err != nil {
				t.Fatal(err)
			}
			if len(images) != 3 {
				t.Fatalf("the client sees %d images, want 3: %+v", len(images), images)
			}
			tests := []struct{ machine, imageType, name, want string }{
				{"x86_64", "", "debian-bookworm", container},
				{"x86_64", clientrules.VirtualMachine, "debian-bookworm", vm},
				{"x86_64", "", "debian-bookworm/latest", vm},
				{"x86_64", "", "debian-bookworm/arm64", arm},
				{"x86_64", "", "debian-bookworm/12.5.0/amd64", container},
				{"aarch64", "", "debian-bookworm", arm},
				{"aarch64", "", vm[:12], vm},
			}
			for _, test := range tests {
				image, err := clientrules.Resolve(images, test.machine, test.imageType, test.name)
				if err != nil || image.Fingerprint != test.want {
					t.Errorf("%s on %s (%q) is %.12s, %v, want %.12s", test.name, test.machine, test.imageType, image.Fingerprint, err, test.want)
				}
			}
		})
	}
}

func TestEqualDocumentsEncodeToEqualBytes(t *testing.T) {
	t.Parallel()
	encode := func() (index, images string) {
		f, products := files{}, incus.NewProducts(time.Date(2026, 11, 24, 20, 0, 37, 0, time.FixedZone("", 3600)))
		for _, arch := range incus.Architectures() {
			addSplit(t, f, &products, arch, "12.5.0", incus.FileSquashfs, "b/"+arch, "a/"+arch)
		}
		publish(t, f, products)
		return string(f[incus.IndexPath]), string(f[incus.ImagesPath])
	}
	firstIndex, firstImages := encode()
	for range 5 {
		index, images := encode()
		if index != firstIndex || images != firstImages {
			t.Fatal("the bytes changed from run to run")
		}
	}
}

func TestEmptyDocumentIsNoImages(t *testing.T) {
	t.Parallel()
	f := files{}
	publish(t, f, incus.NewProducts(time.Unix(1795550437, 0)))
	want := `{"index":{"images":{"datatype":"image-downloads","path":"streams/v1/images.json","updated":"Tue, 24 Nov 2026 20:00:37 +0000",` +
		`"products":[],"format":"products:1.0"}},"updated":"Tue, 24 Nov 2026 20:00:37 +0000","format":"index:1.0"}` + "\n"
	if diff := cmp.Diff(want, string(f[incus.IndexPath])); diff != "" {
		t.Errorf("index (-want +got):\n%s", diff)
	}
	images, err := clientrules.Read(f[incus.IndexPath], f.fetch, clientrules.Incus)
	if err != nil || len(images) != 0 {
		t.Errorf("the client sees %v, %v", images, err)
	}
}

func TestAliasesAreJoinedAsClientsCutThem(t *testing.T) {
	t.Parallel()
	joined, err := incus.JoinAliases([]string{"b/1", "a", "b/1"})
	if err != nil || joined != "a,b/1" {
		t.Errorf("joined to %q, %v", joined, err)
	}
	for _, bad := range []string{"", "a,b", "a b", "a\n"} {
		if joined, err := incus.JoinAliases([]string{bad}); err == nil {
			t.Errorf("alias %q was joined to %q", bad, joined)
		} else if !strings.Contains(err.Error(), fmt.Sprintf("%q", bad)) {
			t.Errorf("error %q does not name the alias %q", err, bad)
		}
	}
}

func TestVersionKeysAreInUTC(t *testing.T) {
	t.Parallel()
	local := time.Date(2026, 11, 25, 1, 2, 3, 0, time.FixedZone("", 2*3600))
	if got := incus.VersionKey(local); got != "20261124_230203" {
		t.Errorf("key is %s", got)
	}
}
