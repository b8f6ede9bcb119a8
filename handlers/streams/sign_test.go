package streams_test

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/handlers/streams"
	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
)

func newSignedSite(t *testing.T) site {
	t.Helper()
	signer, _, err := sjson.Load(filepath.Join(t.TempDir(), "streams.key"))
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t)
	s.Handler = streams.New(streams.Config{Pool: s.pool, Log: slog.New(slog.NewTextHandler(s.log, nil)), RetryPause: time.Nanosecond, Signer: signer})
	return s
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
	plainTag := s.put(t, imagesURL, `{"one": "document"}`)
	s.put(t, indexURL, `{"index":{"images":{"path":"streams/v1/images.json","products":["a"]}}}`)
	text, etag := s.checked(t, "/streams/v1/images.sjson")
	if text != `{"one": "document"}` || etag == plainTag {
		t.Errorf("signed text %q as %s", text, etag)
	}
	if r := s.do("GET", "/streams/v1/images.sjson", "If-None-Match", etag); r.StatusCode != 304 {
		t.Errorf("the same again: %d", r.StatusCode)
	}
	if text, _ := s.checked(t, "/streams/v1/index.sjson"); text != `{"index":{"images":{"path":"streams/v1/images.sjson","products":["a"]}}}` {
		t.Errorf("signed index %s", text)
	}
	s.put(t, imagesURL, `{"another": "document"}`)
	if text, again := s.checked(t, "/streams/v1/images.sjson"); text != `{"another": "document"}` || again == etag {
		t.Errorf("after a change: %q as %s", text, again)
	}
	// The plain ones are as ever.
	if r := s.do("GET", imagesURL); body(t, r) != `{"another": "document"}` || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the plain document is %s", r.Header.Get("Content-Type"))
	}
	for url, status := range map[string]int{"/streams/v1/absent.sjson": 404, "/streams/v1/index.json.sjson": 404, "/streams/v1/.sjson": 404} {
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
