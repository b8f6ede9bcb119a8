package imagefile_test

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"

	"github.com/imgsrv/imgsrv/internal/imagefile"
)

// trees makes folders of each content an archive may have and returns them by name.
func trees(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	filler := bytes.Repeat([]byte("filler\n"), 1<<20) // more than Suggest decodes
	for name, contents := range map[string]map[string][]byte{
		"metadata":  {"metadata.yaml": []byte("architecture: x86_64\n"), "templates/hosts.tpl": []byte("x")},
		"root":      {"etc/hostname": []byte("x\n"), "usr/lib/noise": filler},
		"container": {"metadata.yaml": []byte("architecture: x86_64\n"), "rootfs/etc/hostname": []byte("x\n"), "rootfs/usr/noise": filler},
		"vm":        {"metadata.yaml": []byte("architecture: x86_64\n"), "rootfs.img": filler},
	} {
		for path, body := range contents {
			write(t, filepath.Join(dir, name, path), body)
		}
	}
	found := map[string]string{}
	for _, name := range []string{"metadata", "root", "container", "vm"} {
		found[name] = filepath.Join(dir, name)
	}
	return found
}

func TestArchivesAreSuggestedByWhatIsInThem(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"tar", "xz", "zstd", "gzip"} {
		need(t, tool)
	}
	folders := trees(t)
	packers := []struct {
		name   string
		kind   imagefile.Kind
		suffix string
		args   []string
	}{
		{"tar", imagefile.Tar, "", nil},
		{"xz", imagefile.XZ, ".xz", []string{"-Ixz -1"}},
		{"xz with a large dictionary and CRC32", imagefile.XZ, ".xz", []string{"-Ixz -C crc32 --lzma2=preset=0,dict=96MiB"}},
		{"xz in threads", imagefile.XZ, ".xz", []string{"-Ixz -0 -T2 --block-size=1MiB"}},
		{"zstd", imagefile.Zstd, ".zst", []string{"-Izstd"}},
		{"zstd with a long window", imagefile.Zstd, ".zst", []string{"-Izstd --long=27"}},
		{"gzip", imagefile.Gzip, ".gz", []string{"-Igzip -1"}},
	}
	for _, packer := range packers {
		t.Run(packer.name, func(t *testing.T) {
			t.Parallel()
			for tree, want := range map[string]imagefile.Suggestion{
				"metadata":  {Kind: packer.kind, Format: "incus.tar" + packer.suffix},
				"root":      {Kind: packer.kind, Format: "root.tar" + packer.suffix, Type: "container"},
				"container": {Kind: packer.kind, Format: "incus_combined.tar" + packer.suffix, Type: "container"},
				"vm":        {Kind: packer.kind, Format: "incus_combined.tar" + packer.suffix, Type: "virtual-machine"},
			} {
				file := filepath.Join(t.TempDir(), "archive")
				run(t, folders[tree], "tar", append(append([]string{"-c"}, packer.args...), "--sort=name", "-f", file, ".")...)
				if diff := cmp.Diff(want, suggest(t, file)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", tree, diff)
				}
			}
		})
	}
}

func TestCompressedDisksAreTold(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		tool, suffix string
		kind         imagefile.Kind
	}{{"xz", ".xz", imagefile.XZ}, {"zstd", ".zst", imagefile.Zstd}, {"gzip", ".gz", imagefile.Gzip}} {
		t.Run(test.tool, func(t *testing.T) {
			t.Parallel()
			need(t, test.tool)
			dir := t.TempDir()
			for name, body := range map[string][]byte{
				"sparse": make([]byte, 6<<20),
				"boot":   with(6<<20, map[int]string{510: "\x55\xaa", 1 << 20: "data"}),
				"empty":  nil,
			} {
				write(t, filepath.Join(dir, name), body)
				run(t, dir, test.tool, name)
				want := imagefile.Suggestion{Kind: test.kind, Format: "disk.raw" + test.suffix, Type: "virtual-machine"}
				if diff := cmp.Diff(want, suggest(t, filepath.Join(dir, name+test.suffix))); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
		})
	}
}

// An .xz block may ask for a dictionary of 4 GiB: the header of such a block is 40, for its property byte.
func TestXZDictionaryIsNotAllottedAsTheFileAsks(t *testing.T) {
	var packed bytes.Buffer
	writer, err := xz.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Write(make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	body := packed.Bytes()
	at := bytes.Index(body[12:], []byte{0x21, 0x01}) + 12
	body[at+2] = 40
	// Not a parallel test: the count is of the whole process.
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := imagefile.Suggest(bytes.NewReader(body), int64(len(body))); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	allocated := after.TotalAlloc - before.TotalAlloc
	if allocated > 32<<20 {
		t.Errorf("Suggest allotted %d bytes", allocated)
	}
}

func BenchmarkDetect(b *testing.B) {
	body := make([]byte, 1<<20)
	file := filepath.Join(b.TempDir(), "disk")
	if err := os.WriteFile(file, body, 0o600); err != nil {
		b.Fatal(err)
	}
	opened, err := os.Open(file)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = opened.Close() }()
	for b.Loop() {
		if _, err := imagefile.Detect(opened, int64(len(body))); err != nil {
			b.Fatal(err)
		}
	}
}
