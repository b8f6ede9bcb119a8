package incus

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Types of instances that a tarball has a root for.
const (
	TypeContainer      = "container"
	TypeVirtualMachine = "virtual-machine"
)

// ErrTarball is the cause of each error of [ReadTarball] that lies in the tarball's content.
var ErrTarball = errors.New("the tarball can't be used as an image's metadata")

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrTarball, fmt.Sprintf(format, args...))
}

// Tarball is what a metadata tarball or a unified image says of itself.
type Tarball struct {
	Architecture string // a canonical name
	CreationDate time.Time
	ExpiryDate   time.Time // zero: none
	Properties   map[string]string
	Templates    []string // the paths in an instance that have a template, sorted
	Root         string   // TypeContainer or TypeVirtualMachine; "" for metadata alone
}

// tarballYAML is metadata.yaml as the daemons read it (lxc/incus shared/api/image.go, ImageMetadata), as far as it is looked at.
type tarballYAML struct {
	Architecture string            `yaml:"architecture"`
	CreationDate int64             `yaml:"creation_date"` // seconds since 1970
	ExpiryDate   int64             `yaml:"expiry_date"`   // seconds since 1970, 0: never
	Properties   map[string]string `yaml:"properties"`
	Templates    map[string]*struct {
		Template string `yaml:"template"`
	} `yaml:"templates"`
}

// ReadTarball reads an unpacked metadata tarball or unified image, by the rules of the daemons (lxc/incus cmd/incusd/images.go,
// getImageMetadata, and the drivers' templateApplyNow) where these refuse something, and stricter where they would stumble later:
// each template is there, what a virtual machine boots from is a qcow2 that stands alone. It reads no further than it must, at most
// maxBytes; of the content it keeps metadata.yaml alone, at most 1 MiB. An error of the content wraps ErrTarball, any other is the reader's.
func ReadTarball(ctx context.Context, unpacked io.Reader, maxBytes int64) (Tarball, error) {
	limited := &limitedReader{ctx: ctx, r: unpacked, left: maxBytes}
	s := scan{templates: map[string]bool{}}
	archive := tar.NewReader(limited)
	for !s.done() {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = s.entry(header, archive)
		}
		switch {
		case limited.err != nil:
			return Tarball{}, limited.err
		case limited.left < 0:
			return Tarball{}, wrong("it unpacks to more than %d MiB", maxBytes>>20)
		case errors.Is(err, ErrTarball):
			return Tarball{}, err
		case err != nil:
			return Tarball{}, wrong("it is no sound tar archive: %v", err)
		}
	}
	return s.result()
}

// limitedReader ends after a number of bytes, and keeps the error of its source apart from those of what reads it.
type limitedReader struct {
	ctx  context.Context //nolint:containedctx // of one call of ReadTarball
	r    io.Reader
	left int64 // below 0: there was more
	err  error
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if l.err = l.ctx.Err(); l.err != nil {
		return 0, l.err
	}
	if l.left < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	p = p[:min(int64(len(p)), l.left+1)]
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		l.err = err
	}
	return n, err
}

// scan is what was seen of a tarball.
type scan struct {
	metadata  *tarballYAML
	container bool
	machine   bool
	templates map[string]bool // names of regular files in templates/
}

// done says that nothing which may still come counts: metadata and root are there, and all templates. Metadata alone is read to
// its end, for a root may follow.
func (s *scan) done() bool {
	return s.metadata != nil && (s.container || s.machine) && len(s.missing()) == 0
}

func (s *scan) missing() []string {
	var missing []string
	for _, target := range slices.Sorted(maps.Keys(s.metadata.Templates)) {
		if !s.templates[s.metadata.Templates[target].Template] {
			missing = append(missing, target)
		}
	}
	return missing
}

// maxTemplates bounds what is kept of a tarball's names.
const maxTemplates = 1000

func (s *scan) entry(header *tar.Header, content io.Reader) error {
	name := strings.TrimPrefix(header.Name, "./")
	if slices.Contains(strings.Split(name, "/"), "..") {
		return wrong("the name %.100q in it leads out of it", header.Name)
	}
	regular := header.Typeflag == tar.TypeReg
	switch {
	case name == "metadata.yaml":
		if !regular || s.metadata != nil {
			return wrong("metadata.yaml is no regular file, or is there twice")
		}
		return s.readMetadata(content)
	case strings.HasPrefix(name, "rootfs/"):
		s.container = true
	case name == "rootfs.img":
		s.machine = true
		return checkDisk(header, content)
	case regular && path.Dir(name) == "templates":
		if s.templates[path.Base(name)] = true; len(s.templates) > maxTemplates {
			return wrong("it has more than %d templates", maxTemplates)
		}
	}
	return nil
}

func (s *scan) readMetadata(content io.Reader) error {
	body, err := io.ReadAll(io.LimitReader(content, maxMetadataBytes+1))
	if err != nil {
		return err
	}
	if len(body) > maxMetadataBytes {
		return wrong("metadata.yaml is longer than 1 MiB, which is what daemons read of it")
	}
	var m tarballYAML
	if err := yaml.NewDecoder(bytes.NewReader(body)).Decode(&m); err != nil {
		return wrong("metadata.yaml can't be read: %.300s", strings.Join(strings.Fields(err.Error()), " "))
	}
	for target, template := range m.Templates {
		if template == nil || template.Template == "" || template.Template != path.Base(template.Template) || template.Template == ".." {
			return wrong("the template for %.100q in metadata.yaml doesn't name a file in templates/", target)
		}
	}
	s.metadata = &m
	return nil
}

// checkDisk looks at the beginning of a qcow2 header (QEMU docs/interop/qcow2.txt). The disk can't be read at random inside a tarball,
// so its tables are not walked.
func checkDisk(header *tar.Header, content io.Reader) error {
	const headBytes = 80
	head := make([]byte, headBytes)
	if header.Typeflag != tar.TypeReg || header.Size < headBytes {
		return wrong("rootfs.img is no qcow2 disk")
	}
	if _, err := io.ReadFull(content, head); err != nil {
		return err
	}
	version := binary.BigEndian.Uint32(head[4:])
	switch {
	case string(head[:4]) != "QFI\xfb" || version < 2:
		return wrong("rootfs.img is no qcow2 disk")
	case binary.BigEndian.Uint64(head[8:]) != 0:
		return wrong("rootfs.img needs another image as its backing file: make it stand alone with qemu-img convert")
	case version >= 3 && binary.BigEndian.Uint64(head[72:])&4 != 0:
		return wrong("rootfs.img has its data in another file: make it stand alone with qemu-img convert")
	}
	return nil
}

func (s *scan) result() (Tarball, error) {
	if s.metadata == nil {
		return Tarball{}, wrong("it has no metadata.yaml")
	}
	m := s.metadata
	t := Tarball{Properties: m.Properties, Templates: slices.Sorted(maps.Keys(m.Templates))}
	switch {
	case s.container && s.machine:
		return t, wrong("it has both rootfs/ and rootfs.img, so that clients don't agree on what it is")
	case s.container:
		t.Root = TypeContainer
	case s.machine:
		t.Root = TypeVirtualMachine
	}
	var known bool
	if t.Architecture, known = Canonical(m.Architecture); !known {
		return t, wrong("metadata.yaml has the architecture %.100q, known are %s, and their synonyms", m.Architecture, strings.Join(Architectures(), ", "))
	}
	if m.CreationDate <= 0 || m.CreationDate > maxSeconds {
		return t, wrong("metadata.yaml has the creation_date %d, wanted are seconds since 1970, above 0", m.CreationDate)
	}
	t.CreationDate = time.Unix(m.CreationDate, 0).UTC()
	if m.ExpiryDate != 0 {
		if m.ExpiryDate <= m.CreationDate || m.ExpiryDate > maxSeconds {
			return t, wrong("metadata.yaml has the expiry_date %d, wanted are seconds since 1970, after its creation_date %d, or 0", m.ExpiryDate, m.CreationDate)
		}
		t.ExpiryDate = time.Unix(m.ExpiryDate, 0).UTC()
	}
	for _, key := range slices.Sorted(maps.Keys(m.Properties)) {
		if !plain(key) || !plain(m.Properties[key]) {
			return t, wrong("the property %.100q in metadata.yaml has control characters", key)
		}
	}
	if i := slices.IndexFunc(t.Templates, func(target string) bool { return !plain(target) }); i >= 0 {
		return t, wrong("the path %.100q in metadata.yaml has control characters", t.Templates[i])
	}
	if missing := s.missing(); len(missing) > 0 {
		return t, wrong("metadata.yaml has a template for %.100s, but there is no file templates/%.100s", missing[0], m.Templates[missing[0]].Template)
	}
	return t, nil
}

// plain says that a text is UTF-8 without control characters but those that break lines.
func plain(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && !strings.ContainsRune("\n\r\t", r) })
}

// maxSeconds is the end of the year 9999, the last that a date in JSON can name.
const maxSeconds = 253402300799
