package imagefile_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/imgsrv/imgsrv/internal/imagefile"
)

// fenced is a file that is only read between its ends.
type fenced struct {
	t    *testing.T
	body []byte
}

func (f fenced) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 || offset > int64(len(f.body)) {
		f.t.Errorf("read of %d bytes at %d of %d", len(p), offset, len(f.body))
	}
	return bytes.NewReader(f.body).ReadAt(p, offset)
}

// FuzzSuggest feeds beginnings of files and archives: what is suggested is what the content is, and would be taken when it is
// published under that name.
func FuzzSuggest(f *testing.F) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, name := range []string{"metadata.yaml", "rootfs/etc/hostname"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: 2, Mode: 0o644}); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write([]byte("x\n")); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(archive.Bytes())
	var zipped, squeezed, zst bytes.Buffer
	g := gzip.NewWriter(&zipped)
	x, xerr := xz.NewWriter(&squeezed)
	z, zerr := zstd.NewWriter(&zst)
	if err := errors.Join(xerr, zerr); err != nil {
		f.Fatal(err)
	}
	for _, packer := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{g, x, z} {
		_, err := packer.Write(archive.Bytes())
		if err := errors.Join(err, packer.Close()); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(zipped.Bytes())
	f.Add(squeezed.Bytes())
	f.Add(zst.Bytes())
	f.Add([]byte("hsqs\x00\x00\x00\x00"))
	f.Add([]byte("QFI\xfb"))
	for _, seed := range []string{"", "\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x00", "\x1f\x8b\x08", "\x28\xb5\x2f\xfd", "\x5a\x2a\x4d\x18", "# Disk DescriptorFile"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		file := fenced{t, body}
		kind, err := imagefile.Detect(file, int64(len(body)))
		if err != nil {
			t.Fatalf("Detect: %v", err)
		}
		s, err := imagefile.Suggest(file, int64(len(body)))
		if err != nil {
			t.Fatalf("Suggest: %v", err)
		}
		if s.Kind != kind || s.Format == "" {
			t.Fatalf("Suggest says %+v, Detect %s", s, kind)
		}
		err = imagefile.Check(s.Format, file, int64(len(body)))
		if kind == imagefile.VMDKDescriptor { // its text names other files: see suggest
			var refused *imagefile.Error
			if !errors.As(err, &refused) || refused.Got != kind {
				t.Fatalf("a descriptor alone as %s: %v", s.Format, err)
			}
			return
		}
		if err != nil {
			t.Fatalf("what is suggested is refused: %v", err)
		}
		if want, promised := imagefile.Expect(s.Format); promised && want != kind {
			t.Fatalf("the name %s promises %s, the file is %s", s.Format, want, kind)
		}
	})
}

// counted is a file of zeros with a beginning, and counts what is read of it.
type counted struct {
	head []byte
	read int // bytes
}

func (c *counted) ReadAt(p []byte, offset int64) (int, error) {
	c.read += len(p)
	clear(p)
	if offset < int64(len(c.head)) {
		copy(p, c.head[offset:])
	}
	return len(p), nil
}

// TestCheckUnpacksNothing: what a server does with an archive is to look at a few bytes, whatever would come out of it.
func TestCheckUnpacksNothing(t *testing.T) {
	t.Parallel()
	for format, head := range map[string]string{
		"incus.tar.xz": "\xfd7zXZ\x00", "root.tar.gz": "\x1f\x8b", "disk.raw.zst": "\x28\xb5\x2f\xfd", "rootfs.squashfs": "hsqs\xff\xff\xff\xff",
		"disk.qcow2": "QFI\xfb", "root.tar": strings.Repeat("\x00", 257) + "ustar", "disk.raw": "", "disk.vhd": "conectix",
	} {
		file := &counted{head: []byte(head)}
		if err := imagefile.Check(format, file, 1<<50); err != nil {
			t.Errorf("%s: %v", format, err)
		}
		if file.read > 1024 {
			t.Errorf("%s: %d bytes were read", format, file.read)
		}
	}
}
