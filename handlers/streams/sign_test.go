package streams_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/handlers/streams"
	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/incus"
)

func newSignedSite(t *testing.T) site {
	t.Helper()
	s := newSite(t)
	s.Handler = newSignedHandler(t, s)
	return s
}

func newSignedHandler(t *testing.T, s site) http.Handler {
	t.Helper()
	signer, _, err := sjson.Load(filepath.Join(t.TempDir(), "streams.key"))
	if err != nil {
		t.Fatal(err)
	}
	return streams.New(streams.Config{Pool: s.pool, Log: slog.New(slog.NewTextHandler(s.log, nil)), RetryPause: time.Nanosecond, Signer: signer})
}

// checked is the text of a clear-signed document, by the key that the server names.
func (s site) checked(t *testing.T, url string) (text, etag string) {
	t.Helper()
	keys, err := openpgp.ReadArmoredKeyRing(strings.NewReader(body(t, s.do("GET", "/"+sjson.KeyPath))))
	if err != nil {
		t.Fatal(err)
	}
	r := s.do("GET", url)
	whole := body(t, r)
	block, rest := clearsign.Decode([]byte(whole))
	if r.StatusCode != 200 || r.Header.Get("Content-Type") != "text/plain; charset=utf-8" || block == nil || len(bytes.TrimSpace(rest)) != 0 {
		t.Fatalf("%s: %d %s\n%s", url, r.StatusCode, r.Header.Get("Content-Type"), whole)
	}
	if _, err := block.VerifySignature(keys, nil); err != nil {
		t.Errorf("%s: %v", url, err)
	}
	return strings.TrimRight(string(block.Plaintext), "\n"), r.Header.Get("ETag")
}

func TestSignedDocumentsAreThePlainOnesAndLeadToEachOther(t *testing.T) {
	t.Parallel()
	s := newSignedSite(t)
	s.publish(t, "deb", "1")
	want := s.want(t)
	plainTag := s.do("GET", imagesURL).Header.Get("ETag")
	text, etag := s.checked(t, "/streams/v1/images.sjson")
	if text != strings.TrimRight(want[imagesURL], "\n") || etag == plainTag {
		t.Errorf("signed text %q as %s", text, etag)
	}
	if r := s.do("GET", "/streams/v1/images.sjson", "If-None-Match", etag); r.StatusCode != 304 {
		t.Errorf("the same again: %d", r.StatusCode)
	}
	text, _ = s.checked(t, "/streams/v1/index.sjson")
	var index, signedIndex incus.Index
	for text, into := range map[string]*incus.Index{want[indexURL]: &index, text: &signedIndex} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	entry := index.Index[incus.ContentID]
	entry.Path = "streams/v1/images.sjson"
	index.Index[incus.ContentID] = entry
	if diff := cmp.Diff(index, signedIndex); diff != "" {
		t.Errorf("signed index (-want +got):\n%s", diff)
	}
	if text, _ := s.checked(t, "/streams/v1/images/deb.sjson"); !strings.Contains(text, "deb:1:") {
		t.Errorf("the signed document of the image is %s", text)
	}
	s.publish(t, "deb", "2")
	if text, again := s.checked(t, "/streams/v1/images.sjson"); text != strings.TrimRight(s.want(t)[imagesURL], "\n") || again == etag {
		t.Errorf("after a change: %q as %s", text, again)
	}
	// The plain ones are as ever.
	if r := s.do("GET", imagesURL); body(t, r) != s.want(t)[imagesURL] || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the plain document is %s", r.Header.Get("Content-Type"))
	}
	for url, status := range map[string]int{"/streams/v1/absent.sjson": 404, "/streams/v1/index.json.sjson": 404, "/streams/v1/.sjson": 404, "/streams/v1/images/absent.sjson": 404} {
		if r := s.do("GET", url); r.StatusCode != status {
			t.Errorf("%s: %d", url, r.StatusCode)
		}
	}
	if r := s.do("POST", "/"+sjson.KeyPath); r.StatusCode != 405 {
		t.Errorf("POST to the key: %d", r.StatusCode)
	}
}

func TestBeforeTheFirstPublicationThereIsASignedNothing(t *testing.T) {
	t.Parallel()
	s := newSignedSite(t)
	text, _ := s.checked(t, "/streams/v1/index.sjson")
	var index struct {
		Index map[string]struct{ Path string }
	}
	if err := json.Unmarshal([]byte(text), &index); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]struct{ Path string }{"images": {"streams/v1/images.sjson"}}, index.Index); diff != "" {
		t.Error(diff)
	}
}

func TestWithoutAKeyNothingIsSigned(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, url := range []string{"/streams/v1/index.sjson", "/streams/v1/images.sjson", "/" + sjson.KeyPath} {
		r := s.do("GET", url)
		if text, _ := io.ReadAll(r.Body); r.StatusCode != 404 {
			t.Errorf("%s: %d %s", url, r.StatusCode, text)
		}
	}
}
