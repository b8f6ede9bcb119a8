package qcow2_test

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/imgsrv/imgsrv/internal/qcow2"
)

// need skips a test whose tool is absent; where every tool is required, it fails instead.
func need(t testing.TB, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("IMGSRV_TEST_REQUIRE_TOOLS") == "1" {
		t.Fatalf("%s is not installed, and IMGSRV_TEST_REQUIRE_TOOLS=1 wants it", tool)
	}
	t.Skipf("%s is not installed", tool)
}

// bytesImage is a handmade image: header, refcount table, refcount block, L1 table, and what a test adds, a cluster each.
type bytesImage struct {
	body        []byte
	clusterSize int
}

// handmade makes a sound, empty version 3 image with clusters of 1<<bits bytes, and one L2 table's reach of disk at most.
func handmade(bits, virtualSize int) *bytesImage {
	im := &bytesImage{clusterSize: 1 << bits}
	im.body = make([]byte, 4*im.clusterSize)
	copy(im.body, "QFI\xfb")
	im.put32(4, 3)
	im.put32(20, uint32(bits))
	im.put64(24, uint64(virtualSize))
	im.put32(36, 1)                        // l1_size
	im.put64(40, uint64(3*im.clusterSize)) // l1_table_offset
	im.put64(48, uint64(im.clusterSize))   // refcount_table_offset
	im.put32(56, 1)
	im.put32(96, 4)
	im.put32(100, 104)
	im.put64(im.clusterSize, uint64(2*im.clusterSize))
	return im
}

func (im *bytesImage) put32(offset int, value uint32) {
	binary.BigEndian.PutUint32(im.body[offset:], value)
}
func (im *bytesImage) put64(offset int, value uint64) {
	binary.BigEndian.PutUint64(im.body[offset:], value)
}

// add appends a whole cluster and returns its offset.
func (im *bytesImage) add(content []byte) int {
	offset := len(im.body)
	im.body = append(im.body, make([]byte, im.clusterSize)...)
	copy(im.body[offset:], content)
	return offset
}

// addL2 appends an L2 table, hangs it into the L1 table and returns its offset.
func (im *bytesImage) addL2() int {
	offset := im.add(nil)
	im.put64(3*im.clusterSize, uint64(offset)|1<<63)
	return offset
}

func (im *bytesImage) inspect() (qcow2.Info, error) {
	return qcow2.Inspect(context.Background(), bytes.NewReader(im.body), int64(len(im.body)))
}

func code(err error) string {
	var refused *qcow2.Error
	if errors.As(err, &refused) {
		return refused.Code
	}
	if err != nil {
		return "other: " + err.Error()
	}
	return ""
}

func noise(sizeBytes int) []byte {
	body := make([]byte, sizeBytes)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(body)
	return body
}

func deflated(t testing.TB, body []byte) []byte {
	t.Helper()
	var packed bytes.Buffer
	writer, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

func zstandard(t testing.TB, body []byte) []byte {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = encoder.Close() }()
	return encoder.EncodeAll(body, nil)
}
