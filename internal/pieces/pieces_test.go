package pieces_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/internal/pieces"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

func body(parts ...string) pieces.Body {
	var b pieces.Body
	for _, part := range parts {
		b = append(b, pieces.New([]byte(part)))
	}
	return b
}

// Whatever the pieces are, each coding's own decoder finds their bytes, and reads from any place find what is there.
func TestAnyBodyIsReadBack(t *testing.T) {
	t.Parallel()
	coder := pieces.NewCoder()
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	rapid.Check(t, func(t *rapid.T) {
		var b pieces.Body
		for _, part := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 300), 0, 8).Draw(t, "pieces") {
			b = append(b, pieces.New(bytes.Repeat(part, rapid.IntRange(1, 20).Draw(t, "repeated"))))
		}
		plain := b.Bytes()
		if err := iotest.TestReader(b.Parts().Reader(), plain); err != nil {
			t.Fatal(err)
		}
		for _, coding := range []pieces.Coding{pieces.Gzip, pieces.Zstd} {
			for range 2 { // made, and as it was kept
				r, err := coder.Compress(b, coding)
				if err != nil {
					t.Fatal(err)
				}
				packed, err := io.ReadAll(r.Reader())
				if err != nil || int64(len(packed)) != r.Size() {
					t.Fatalf("%s: %d bytes of %d, %v", coding, len(packed), r.Size(), err)
				}
				got := []byte(nil)
				if coding == pieces.Zstd {
					got, err = decoder.DecodeAll(packed, nil)
				} else {
					got, err = oneMember(packed)
				}
				if err != nil || !bytes.Equal(got, plain) {
					t.Fatalf("%s: %d bytes come out as %d, %v", coding, len(plain), len(got), err)
				}
			}
		}
	})
}

// oneMember reads a gzip file that must be over after its first member; its checksum and length are compared.
func oneMember(packed []byte) ([]byte, error) {
	from := bytes.NewReader(packed)
	z, err := gzip.NewReader(from)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	plain, err := io.ReadAll(z)
	if err == nil && from.Len() > 0 {
		err = fmt.Errorf("%d bytes behind the first member", from.Len())
	}
	return plain, err
}

func TestTagsTellBodiesApart(t *testing.T) {
	t.Parallel()
	of := body("one", "two").Tag()
	if of != body("one", "two").Tag() {
		t.Error("equal pieces have two tags")
	}
	for _, other := range []pieces.Body{body("one"), body("two", "one"), body("one", "two", "three"), body("one", "twO"), body()} {
		if other.Tag() == of {
			t.Errorf("%q has the tag of another body", other.Bytes())
		}
	}
}

// curl is what people fetch with; its decoders are those of many programs.
func TestCurlReadsBothCodings(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "curl")
	const curl = "curl"
	var parts []string
	for i := range 300 {
		parts = append(parts, strings.Repeat(fmt.Sprintf("piece %d is here, ", i), 500))
	}
	b, coder := body(parts...), pieces.NewCoder()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		coding := map[string]pieces.Coding{"/gzip": pieces.Gzip, "/zstd": pieces.Zstd}[r.URL.Path]
		packed, err := coder.Compress(b, coding)
		if err != nil {
			t.Error(err)
			return
		}
		w.Header().Set("Content-Encoding", coding.String())
		w.Header().Set("Content-Length", strconv.FormatInt(packed.Size(), 10))
		if _, err := io.Copy(w, packed.Reader()); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(server.Close)
	features, err := exec.CommandContext(t.Context(), curl, "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, coding := range []string{"gzip", "zstd"} {
		if coding == "zstd" && !strings.Contains(string(features), "zstd") {
			t.Log("this curl knows no zstd")
			continue
		}
		got, err := exec.CommandContext(t.Context(), curl, "--silent", "--show-error", "--compressed", "--noproxy", "*", server.URL+"/"+coding).Output()
		if err != nil || !bytes.Equal(got, b.Bytes()) {
			t.Errorf("%s: %d bytes of %d, %v", coding, len(got), b.Len(), err)
		}
	}
}
