// Package convert makes other forms of a disk image: it runs qemu-img as a process of its own, within limits, and
// compares what came of it with the source. It knows files and formats, and not where they belong.
package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Formats that can be made. MapFormat comes with RawFormat and isn't asked for by itself.
const (
	RawFormat        = "disk.raw"
	MapFormat        = "disk.raw.map.json"
	ZstdFormat       = "disk.raw.zst"
	VMDKFormat       = "disk.vmdk"
	VHDXFormat       = "disk.vhdx"
	CompressedFormat = "disk.compressed.qcow2"
)

// Formats lists what [Converter.Make] takes, sorted.
func Formats() []string {
	return []string{CompressedFormat, RawFormat, ZstdFormat, VHDXFormat, VMDKFormat}
}

// Known says whether a format can be made.
func Known(format string) bool { return slices.Contains(Formats(), format) }

// containers are the formats that qemu-img writes as they are, with the name of its driver and its options:
// streamOptimized is the VMDK that goes into an OVA and uploads to ESXi; a dynamic VHDX has no bytes for what is
// empty; zlib is what every QEMU reads.
var containers = map[string]struct {
	driver  string
	options []string
}{
	VMDKFormat:       {"vmdk", []string{"-o", "subformat=streamOptimized"}},
	VHDXFormat:       {"vhdx", []string{"-o", "subformat=dynamic"}},
	CompressedFormat: {"qcow2", []string{"-c", "-o", "compression_type=zlib"}},
}

// Drivers of sources, as qemu-img calls them.
const (
	DriverQcow2 = "qcow2"
	DriverRaw   = "raw"
)

// Codes of an [Error].
const (
	CodeToolAbsent = "tool-absent"  // qemu-img isn't installed
	CodeToolFailed = "tool-failed"  // it ended with an error
	CodeTimeout    = "timeout"      // it took longer than the limit
	CodeNotSame    = "not-the-same" // the result differs from its source
	CodeNoRoom     = "storage-full" // the result may not find room
)

// Error says why a format couldn't be made.
type Error struct {
	Code string
	Text string
}

func (e *Error) Error() string { return e.Text }

// Limits bound each of a converter's works. Zero values mean none.
type Limits struct {
	Timeout     time.Duration // of one whole work, comparison and all
	MemoryBytes int64         // of address space, for the tool
}

// Source is a disk image to be read.
type Source struct {
	Path   string
	Format string // its name, as in disk.qcow2
	Driver string // of qemu-img, DriverQcow2 or DriverRaw: what the content is, never guessed
}

// File is a file that was made.
type File struct {
	Format    string // also its name in the folder
	SHA256    string // 64 hex digits
	Size      int64  // bytes
	Tool      string
	Version   string // of the tool
	Arguments string // with the formats' names where the files were
	Verified  string // how it was compared with its source
}

// work is one run of Make.
type work struct {
	tool    *tool
	dir     string
	source  Source
	version string
}

// Make makes a format of a source in an empty folder, and says what is then there: the format itself first. room
// is how many bytes may be written there. What is wrong with tool, source or limits is an [*Error]; a context that
// ends is its own error.
func (c *Converter) Make(ctx context.Context, format string, source Source, dir string, room int64) ([]File, error) {
	if !Known(format) {
		return nil, fmt.Errorf("make %s: no such format is known", format)
	}
	limited := ctx
	if c.limits.Timeout > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, c.limits.Timeout)
		defer cancel()
	}
	files, err := c.make(limited, format, source, dir, room)
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return nil, &Error{CodeTimeout, fmt.Sprintf("making %s of %s took longer than %s", format, source.Format, c.limits.Timeout)}
	}
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return files, err
}

func (c *Converter) make(ctx context.Context, format string, source Source, dir string, room int64) ([]File, error) {
	// By its name in the folder, the source can't be taken for a protocol's address.
	if err := os.Symlink(source.Path, filepath.Join(dir, source.Format)); err != nil {
		return nil, fmt.Errorf("name the source: %w", err)
	}
	w := &work{dir: dir, source: source}
	if format == ZstdFormat && source.Driver == DriverRaw {
		return w.compress(ctx, source.Format, "", "")
	}
	var err error
	if w.tool, err = c.find(ctx); err != nil {
		return nil, err
	}
	w.version = w.tool.version
	if err := w.checkRoom(ctx, room); err != nil {
		return nil, err
	}
	if how, ok := containers[format]; ok {
		arguments := append([]string{"convert", "-f", source.Driver, "-O", how.driver}, how.options...)
		return w.convert(ctx, append(arguments, source.Format, format), format, how.driver)
	}
	files, err := w.convert(ctx, []string{"convert", "-f", source.Driver, "-O", "raw", source.Format, RawFormat}, RawFormat, DriverRaw)
	if err != nil {
		return nil, err
	}
	if format == ZstdFormat {
		return w.compress(ctx, RawFormat, files[0].Arguments+" | ", files[0].Verified+"; ")
	}
	zeroes, err := w.mapZeroes(ctx, RawFormat, files[0].SHA256)
	return append(files, zeroes), err
}

// convert runs qemu-img, and compares what it wrote with the source.
func (w *work) convert(ctx context.Context, arguments []string, format, driver string) ([]File, error) {
	if _, err := w.tool.run(ctx, w.dir, arguments...); err != nil {
		return nil, err
	}
	file, err := w.hash(ctx, format)
	if err != nil {
		return nil, err
	}
	compare := []string{"compare", "-f", w.source.Driver, "-F", driver, w.source.Format, format}
	var failed *exitError
	if _, err := w.tool.run(ctx, w.dir, compare...); errors.As(err, &failed) && failed.status == 1 { // qemu-img(1): the images differ
		return nil, &Error{CodeNotSame, fmt.Sprintf("qemu-img compare: %s differs from %s", format, w.source.Format)}
	} else if err != nil {
		return nil, err
	}
	file.Tool, file.Version, file.Arguments, file.Verified = toolName, w.version, strings.Join(arguments, " "), toolName+" "+strings.Join(compare, " ")
	return []File{file}, nil
}

// checkRoom asks how many bytes the source can come to, which a small file can make many.
func (w *work) checkRoom(ctx context.Context, room int64) error {
	out, err := w.tool.run(ctx, w.dir, "measure", "--output=json", "-f", w.source.Driver, "-O", "raw", w.source.Format)
	if err != nil {
		return err
	}
	var measured struct {
		Required int64 `json:"required"` // bytes
	}
	if err := json.Unmarshal(out, &measured); err != nil {
		return &Error{CodeToolFailed, "qemu-img measure: its answer can't be read: " + err.Error()}
	}
	if measured.Required > room {
		return &Error{CodeNoRoom, fmt.Sprintf("%s may come to %d bytes, and there is room for %d", w.source.Format, measured.Required, room)}
	}
	return nil
}

// hash reads a file that was made.
func (w *work) hash(ctx context.Context, format string) (File, error) {
	f, err := os.Open(filepath.Join(w.dir, format))
	if err != nil {
		return File{}, fmt.Errorf("read what was made: %w", err)
	}
	defer f.Close() //nolint:errcheck // only read
	sum := sha256.New()
	n, err := io.Copy(sum, reader{ctx, f})
	if err != nil {
		return File{}, fmt.Errorf("read what was made: %w", err)
	}
	return File{Format: format, SHA256: hex.EncodeToString(sum.Sum(nil)), Size: n}, nil
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
