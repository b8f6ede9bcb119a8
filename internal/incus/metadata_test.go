package incus_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"
	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/internal/incus"
)

func bookworm() incus.Metadata {
	return incus.Metadata{
		Architecture: "amd64",
		CreationDate: time.Date(2026, 11, 24, 20, 0, 37, 123, time.UTC),
		Name:         "debian-bookworm",
		OS:           "debian",
		Release:      "bookworm",
		Version:      "12.5.0",
	}
}

// unpack returns the single entry of a metadata tarball.
func unpack(t interface {
	Helper()
	Fatalf(string, ...any)
}, tarball []byte) (*tar.Header, []byte) {
	t.Helper()
	decompressed, err := xz.NewReader(bytes.NewReader(tarball))
	if err != nil {
		t.Fatalf("open the xz stream: %v", err)
	}
	archive := tar.NewReader(decompressed)
	header, err := archive.Next()
	if err != nil {
		t.Fatalf("read the first entry: %v", err)
	}
	body, err := io.ReadAll(archive)
	if err != nil {
		t.Fatalf("read %s: %v", header.Name, err)
	}
	if next, err := archive.Next(); err != io.EOF {
		t.Fatalf("a second entry: %v, %v", next, err)
	}
	return header, body
}

func TestTarballSaysWhatTheDaemonsRead(t *testing.T) {
	t.Parallel()
	tarball, err := bookworm().Tarball()
	if err != nil {
		t.Fatal(err)
	}
	header, body := unpack(t, tarball)
	want := `architecture: x86_64
creation_date: 1795550437
expiry_date: 0
properties:
    architecture: "amd64"
    description: "debian bookworm amd64 (20261124_200037)"
    name: "debian-bookworm"
    os: "debian"
    release: "bookworm"
    serial: "20261124_200037"
    variant: "default"
    version: "12.5.0"
`
	if diff := cmp.Diff(want, string(body)); diff != "" {
		t.Errorf("metadata.yaml (-want +got):\n%s", diff)
	}
	if header.Name != "metadata.yaml" || header.Mode != 0o644 || header.Uid != 0 || header.Gid != 0 || header.Typeflag != tar.TypeReg {
		t.Errorf("header is %+v", header)
	}
	if want := time.Date(2026, 11, 24, 20, 0, 37, 0, time.UTC); !header.ModTime.Equal(want) {
		t.Errorf("modification time is %s, want %s", header.ModTime, want)
	}
}

// A change of these bytes changes the fingerprints of images published from now on; those that are published keep theirs.
func TestTarballBytesStayTheSame(t *testing.T) {
	t.Parallel()
	metadata := bookworm()
	metadata.ExpiryDate = time.Date(2028, 6, 30, 0, 0, 0, 0, time.UTC)
	metadata.Description = "Debian 12: »bookworm«"
	metadata.Variant = "cloud"
	tarball, err := metadata.Tarball()
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(tarball)
	const golden = "d4c6f9b0b835c098cc6567bf9a6ad891014d09e283cbb2713a29e645a08946f7"
	if got := hex.EncodeToString(digest[:]); got != golden {
		t.Errorf("digest is %s, want %s", got, golden)
	}
}

func TestEqualMetadataMakesEqualBytes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		metadata := incus.Metadata{
			Architecture: rapid.SampledFrom(incus.Architectures()).Draw(t, "architecture"),
			CreationDate: time.Unix(rapid.Int64Range(1, 1<<33-1).Draw(t, "created"), 0),
			Name:         rapid.String().Draw(t, "name"),
			OS:           rapid.StringN(1, 20, -1).Draw(t, "os"),
			Release:      rapid.StringN(1, 20, -1).Draw(t, "release"),
			Description:  rapid.String().Draw(t, "description"),
		}
		first, err := metadata.Tarball()
		if err != nil {
			t.Fatal(err)
		}
		metadata.CreationDate = metadata.CreationDate.UTC()
		second, err := metadata.Tarball()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(first, second) {
			t.Fatal("two runs made different bytes")
		}
		_, body := unpack(t, first)
		var document struct {
			Architecture string            `yaml:"architecture"`
			CreationDate int64             `yaml:"creation_date"`
			Properties   map[string]string `yaml:"properties"`
		}
		if err := yaml.Unmarshal(body, &document); err != nil {
			t.Fatalf("metadata.yaml: %v\n%s", err, body)
		}
		if document.Properties["os"] != metadata.OS || document.Properties["name"] != metadata.Name || document.Properties["release"] != metadata.Release {
			t.Fatalf("properties came back as %q, want those of %+v", document.Properties, metadata)
		}
		if document.CreationDate != metadata.CreationDate.Unix() {
			t.Fatalf("creation date came back as %d", document.CreationDate)
		}
	})
}

func TestMetadataThatDaemonsRefuseIsRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*incus.Metadata)
		says   string
	}{
		{"unknown architecture", func(m *incus.Metadata) { m.Architecture = "sparc" }, `"sparc"`},
		{"no creation date", func(m *incus.Metadata) { m.CreationDate = time.Time{} }, "creation date"},
		{"creation date of 0", func(m *incus.Metadata) { m.CreationDate = time.Unix(0, 0) }, "creation date"},
		{"creation date beyond ustar", func(m *incus.Metadata) { m.CreationDate = time.Unix(1<<33, 0) }, "creation date"},
		{"expired before it was made", func(m *incus.Metadata) { m.ExpiryDate = m.CreationDate.Add(-time.Hour) }, "expiry date"},
		{"no operating system", func(m *incus.Metadata) { m.OS = "" }, "(os)"},
		{"no release", func(m *incus.Metadata) { m.Release = "" }, "release"},
		{"not UTF-8", func(m *incus.Metadata) { m.Description = "\xff" }, "description"},
		{"more than daemons read", func(m *incus.Metadata) { m.Description = strings.Repeat("x", 1<<20) }, "at most 1048576"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			metadata := bookworm()
			test.change(&metadata)
			_, err := metadata.Tarball()
			if !errors.Is(err, incus.ErrMetadata) {
				t.Fatalf("error is %v, want ErrMetadata", err)
			}
			if !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %q does not say %q", err, test.says)
			}
		})
	}
}

func TestRealToolsAcceptTheTarball(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"xz", "tar"} {
		need(t, tool)
	}
	tarball, err := bookworm().Tarball()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "incus.tar.xz")
	if err := os.WriteFile(file, tarball, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("xz", "-t", file).CombinedOutput(); err != nil {
		t.Errorf("xz -t: %v\n%s", err, out)
	}
	out, err := exec.Command("tar", "tJf", file).CombinedOutput()
	if err != nil {
		t.Fatalf("tar tJf: %v\n%s", err, out)
	}
	if diff := cmp.Diff("metadata.yaml\n", string(out)); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
}

// need skips a test whose tool is absent; where every tool is required, it fails instead.
func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("IMGSRV_TEST_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is not installed, and IMGSRV_TEST_REQUIRE_TOOLS=1 wants it", tool)
	}
	t.Skipf("%s is not installed", tool)
}
