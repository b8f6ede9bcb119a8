package convert

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

const (
	mib  = 1 << 20
	room = 1 << 40
)

// disk is a qcow2 of 16 MiB with some bytes in the middle, and its content.
func disk(t *testing.T) (path string, content []byte) {
	t.Helper()
	testtool.Need(t, "qemu-img")
	dir := t.TempDir()
	content = make([]byte, 16*mib)
	for i := 5 * mib; i < 7*mib; i++ {
		content[i] = byte(i * 31 >> 3)
	}
	raw := filepath.Join(dir, "raw")
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "disk")
	qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", raw, path)
	return path, content
}

func qemuImg(t *testing.T, arguments ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "qemu-img", arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v: %s", strings.Join(arguments, " "), err, out)
	}
	return string(out)
}

func hexOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func TestEachFormatIsTheSameDisk(t *testing.T) {
	t.Parallel()
	path, content := disk(t)
	c := New(Limits{Timeout: time.Minute, MemoryBytes: 1 << 30})
	drivers := map[string]string{CompressedFormat: "qcow2", VMDKFormat: "vmdk", VHDXFormat: "vhdx", RawFormat: "raw"}
	for _, format := range Formats() {
		dir := t.TempDir()
		files, err := c.Make(t.Context(), format, Source{Path: path, Format: "disk.qcow2", Driver: DriverQcow2}, dir, room)
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		made := files[0]
		data, err := os.ReadFile(filepath.Join(dir, format))
		if err != nil {
			t.Fatal(err)
		}
		if made.Format != format || made.Size != int64(len(data)) || made.SHA256 != hexOf(data) || made.Tool != "qemu-img" || made.Version == "" || made.Verified == "" ||
			!strings.HasPrefix(made.Arguments, "convert -f qcow2 -O ") {
			t.Errorf("%s is said to be %+v", format, made)
		}
		if format == ZstdFormat {
			d, err := zstd.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if data, err = io.ReadAll(d); err != nil || !bytes.Equal(data, content) {
				t.Errorf("%s unpacks to other bytes (%v)", format, err)
			}
			continue
		}
		qemuImg(t, "compare", "-f", "qcow2", "-F", drivers[format], path, filepath.Join(dir, format))
		if format == RawFormat {
			checkMap(t, dir, files, content)
		}
	}
}

func checkMap(t *testing.T, dir string, files []File, content []byte) {
	t.Helper()
	if len(files) != 2 || files[1].Format != MapFormat {
		t.Fatalf("with a raw disk come %+v", files)
	}
	data, err := os.ReadFile(filepath.Join(dir, MapFormat))
	if err != nil {
		t.Fatal(err)
	}
	var m zeroMap
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	// From the map and the pieces alone comes the whole disk.
	rebuilt, copied := make([]byte, m.Size), int64(0)
	for _, p := range m.Data {
		copied += int64(copy(rebuilt[p.Start:p.Start+p.Length], content[p.Start:]))
	}
	if !bytes.Equal(rebuilt, content) || m.SHA256 != hexOf(content) || copied == 0 || copied > 4*mib {
		t.Errorf("the map says %+v: %d bytes of data", m, copied)
	}
}

func TestARawSourceIsCompressedWithoutTheTool(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, bytes.Repeat([]byte("imgsrv"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	source := Source{Path: raw, Format: "disk.raw", Driver: DriverRaw}
	files, err := New(Limits{}).Make(t.Context(), ZstdFormat, source, t.TempDir(), room)
	if err != nil || files[0].Tool != "imgsrv" {
		t.Errorf("made %+v (%v)", files, err)
	}
	if _, err := New(Limits{}).Make(t.Context(), VMDKFormat, source, t.TempDir(), room); code(err) != CodeToolAbsent {
		t.Errorf("without the tool: %v", err)
	}
}

func code(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// A file of a few KiB that claims gigabytes of data costs no more than the limits allow.
func TestASourceCanTakeNoMoreThanItsLimits(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "qemu-img")
	path := filepath.Join(t.TempDir(), "disk")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "500G")
	source := Source{Path: path, Format: "disk.qcow2", Driver: DriverQcow2}
	if _, err := New(Limits{}).Make(t.Context(), VMDKFormat, source, t.TempDir(), mib); code(err) != CodeNoRoom {
		t.Errorf("where there is room for a MiB: %v", err)
	}
	began := time.Now()
	if _, err := New(Limits{Timeout: 2 * time.Second}).Make(t.Context(), CompressedFormat, source, t.TempDir(), room); code(err) != CodeTimeout {
		t.Errorf("within two seconds: %v", err)
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("it took %s", took)
	}
	if _, err := New(Limits{MemoryBytes: 8 * mib}).Make(t.Context(), CompressedFormat, source, t.TempDir(), room); code(err) != CodeToolFailed {
		t.Errorf("in 8 MiB of memory: %v", err)
	}
	if err := os.WriteFile(path, append([]byte("QFI\xfb\x00\x00\x00\x03"), bytes.Repeat([]byte{0xff}, 4096)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Limits{}).Make(t.Context(), RawFormat, source, t.TempDir(), room); code(err) != CodeToolFailed || strings.Contains(err.Error(), path) {
		t.Errorf("a broken header: %v", err)
	}
}

func TestTheToolHasNoNetwork(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "qemu-img")
	c := New(Limits{})
	tool, err := c.find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !c.Isolated() {
		t.Skip("this system lets nobody here make a network namespace")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	called := make(chan struct{})
	go func() {
		defer close(called)
		if conn, err := listener.Accept(); err == nil {
			_ = conn.Close()
			t.Error("the tool came through to a listener")
		}
	}()
	if out, err := tool.run(t.Context(), t.TempDir(), "info", "nbd://"+listener.Addr().String()); err == nil {
		t.Errorf("read from the network: %s", out)
	}
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	<-called
}
