package vcdiff_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/testtool"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
)

func random(seed uint64, n int) []byte {
	source := rand.New(rand.NewPCG(seed, 0))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(source.Uint32())
	}
	return data
}

func file(t *testing.T, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func find(t *testing.T) *vcdiff.Tool {
	t.Helper()
	testtool.Need(t, vcdiff.Program)
	tool, err := vcdiff.Find()
	if err != nil {
		t.Fatal(err)
	}
	return tool
}

func TestADeltaMakesTheTargetOfItsBase(t *testing.T) {
	t.Parallel()
	tool := find(t)
	if version := tool.Version(t.Context()); !strings.HasPrefix(version, "3.") {
		t.Errorf("version %q", version)
	}
	old := random(1, 3<<20)
	// Something in between, and the beginning at the end.
	changed := append(append(append([]byte{}, old[1<<20:2<<20]...), random(2, 5000)...), old[2<<20:]...)
	changed = append(changed, old[:1<<20]...)
	gzipLike := append([]byte{0x1f, 0x8b, 8, 0}, changed...) // xdelta3 would unpack what begins so
	for name, want := range map[string][]byte{"changed": changed, "the same": old, "like gzip": gzipLike, "shorter": old[:1000]} {
		base, target := file(t, old), file(t, want)
		var delta, got bytes.Buffer
		if err := tool.Encode(t.Context(), base, target, &delta, int64(len(old))); err != nil {
			t.Fatal(name, err)
		}
		if delta.Len() > 10000 {
			t.Errorf("%s: a delta of %d bytes", name, delta.Len())
		}
		if bytes.Contains(delta.Bytes(), []byte(filepath.Base(base.Name()))) {
			t.Errorf("%s: the delta has the name of a file in it", name)
		}
		if err := tool.Decode(t.Context(), base, file(t, delta.Bytes()), &got, int64(len(want))); err != nil {
			t.Fatal(name, err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: %d bytes came out, not the %d of the target", name, got.Len(), len(want))
		}
	}
}

func TestWhatIsTooLargeEnds(t *testing.T) {
	t.Parallel()
	tool := find(t)
	base, target := file(t, random(1, 1<<20)), file(t, random(2, 1<<20))
	var delta bytes.Buffer
	if err := tool.Encode(t.Context(), base, target, &delta, 1<<19); !errors.Is(err, vcdiff.ErrTooLarge) {
		t.Errorf("a delta of unlike files: %v", err)
	}
	if delta.Len() > 1<<19 {
		t.Errorf("%d bytes were written", delta.Len())
	}
	delta.Reset()
	if err := tool.Encode(t.Context(), base, base, &delta, 1<<19); err != nil {
		t.Fatal(err)
	}
	if err := tool.Decode(t.Context(), base, file(t, delta.Bytes()), io.Discard, 1<<19); !errors.Is(err, vcdiff.ErrTooLarge) {
		t.Errorf("decoding to more than was asked for: %v", err)
	}
}

func TestAWrongBaseIsAnErrorOfTheProgram(t *testing.T) {
	t.Parallel()
	tool := find(t)
	base, target := file(t, random(1, 1<<20)), file(t, random(1, 1<<20)[:1<<19])
	var delta bytes.Buffer
	if err := tool.Encode(t.Context(), base, target, &delta, 1<<20); err != nil {
		t.Fatal(err)
	}
	err := tool.Decode(t.Context(), file(t, random(3, 1<<20)), file(t, delta.Bytes()), io.Discard, 1<<20)
	if err == nil || errors.Is(err, vcdiff.ErrTooLarge) || errors.Is(err, vcdiff.ErrTimeout) {
		t.Errorf("applied to another file: %v", err)
	}
}

// A program that only takes its time stands for xdelta3, for that ends too soon to be stopped.
func TestTimeAndTheCallerEndIt(t *testing.T) {
	t.Parallel()
	slow := filepath.Join(t.TempDir(), "slow")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\nexec /bin/sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	base := file(t, []byte("x"))
	tool := &vcdiff.Tool{Path: slow, Timeout: time.Millisecond}
	if err := tool.Encode(t.Context(), base, base, io.Discard, 10); !errors.Is(err, vcdiff.ErrTimeout) {
		t.Errorf("out of time: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tool.Timeout = 0
	if err := tool.Encode(ctx, base, base, io.Discard, 10); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
}

func TestTheWindowHoldsTheBaseAsFarAsMemoryGoes(t *testing.T) {
	t.Parallel()
	const mib = 1 << 20
	for _, test := range []struct{ memory, base, want int64 }{
		{0, 1, 64 * mib}, {0, 64 * mib, 64 * mib}, {0, 65 * mib, 128 * mib}, {0, 1 << 40, 256 * mib},
		{256 * mib, 1 << 40, 64 * mib}, {4 << 30, 400 * mib, 512 * mib}, {4 << 30, 1 << 40, 1 << 30},
	} {
		if got := (&vcdiff.Tool{Memory: test.memory}).Window(test.base); got != test.want {
			t.Errorf("window for %d bytes in %d: %d MiB, want %d", test.base, test.memory, got/mib, test.want/mib)
		}
	}
}
