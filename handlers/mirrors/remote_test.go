package mirrors

import (
	"bytes"
	"compress/gzip"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/targets"
)

// asks serves by a handler, and gives what asks it, with as little patience as tests have.
func asks(t *testing.T, handler http.HandlerFunc, allow ...string) (*fetcher, *httptest.Server) {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	to, err := targets.Parse("--mirror-allow", allow)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	f := newFetcher(to, roots, "imgsrv-mirror/test", 0, 50*time.Millisecond, time.Millisecond)
	t.Cleanup(f.close)
	return f, server
}

func (f *fetcher) file(t *testing.T, server *httptest.Server, size int) *remoteFile {
	remote := &remoteFile{ctx: t.Context(), from: f, base: server.URL, path: "f", size: int64(size)}
	t.Cleanup(remote.close)
	return remote
}

// A server without ranges gives the whole file once more after a break: what was read is passed over.
func TestAFileComesWholeFromAServerThatBreaksAndKnowsNoRanges(t *testing.T) {
	t.Parallel()
	content := bytes.Repeat([]byte("0123456789"), 50_000)
	var requests atomic.Int32
	f, server := asks(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		switch requests.Add(1) {
		case 1:
			_, _ = w.Write(content[:123_456])
			panic(http.ErrAbortHandler)
		case 2: // sends nothing more
			_, _ = w.Write(content[:300_000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		default:
			_, _ = w.Write(content)
		}
	}, "127.0.0.1")
	got, err := io.ReadAll(io.NewSectionReader(f.file(t, server, len(content)), 0, int64(len(content))))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes: %v", len(got), err)
	}
	if n := requests.Load(); n < 3 { // more, where a byte takes long by itself
		t.Errorf("%d requests", n)
	}
}

func TestAFileThatCantBeRightIsGivenUpAtOnce(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		text    string
	}{
		"too long":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 11)) }, "listed are 10"},
		"too short": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 9)) }, "listed are 10"},
		"missing":   {http.NotFound, "404"},
		"forbidden": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "403"},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 3-9/10")
			w.WriteHeader(http.StatusPartialContent)
		}, "where bytes from 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var requests atomic.Int32
			f, server := asks(t, func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				tt.handler(w, r)
			}, "127.0.0.1")
			_, err := f.file(t, server, 10).ReadAt(make([]byte, 10), 0)
			var broken *upstreamError
			if !errors.As(err, &broken) || !broken.gone || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v", err)
			}
			if n := requests.Load(); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// Upstream's word leads nowhere that the operator hasn't allowed: not by its address, not by a redirect, not out of TLS.
func TestUpstreamLeadsNowhereElse(t *testing.T) {
	t.Parallel()
	var hit atomic.Bool
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit.Store(true) }))
	t.Cleanup(inside.Close)
	f, server := asks(t, func(http.ResponseWriter, *http.Request) { hit.Store(true) })
	if _, _, err := f.document(t.Context(), server.URL, "d", events.MirrorDocument{}); err == nil || !strings.Contains(err.Error(), "--mirror-allow") {
		t.Errorf("a private address: %v", err)
	}
	f, server = asks(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside.URL, http.StatusFound) }, "127.0.0.1")
	if _, _, err := f.document(t.Context(), server.URL, "d", events.MirrorDocument{}); err == nil || !strings.Contains(err.Error(), "from https to http") {
		t.Errorf("a redirect to http: %v", err)
	}
	host := strings.TrimPrefix(server.URL, "https://")
	f, server = asks(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, strings.Replace(inside.URL, "http:", "https:", 1), http.StatusFound)
	}, host)
	f.encrypted.Transport.(*http.Transport).DialContext = must(targets.Parse("--mirror-allow", []string{strings.TrimPrefix(server.URL, "https://")})).Dialer(false)
	if _, _, err := f.document(t.Context(), server.URL, "d", events.MirrorDocument{}); err == nil || !strings.Contains(err.Error(), "no public address") {
		t.Errorf("a redirect to another port: %v", err)
	}
	if hit.Load() {
		t.Error("a request arrived")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestDocumentsAreAskedForPolitely(t *testing.T) {
	t.Parallel()
	var fails atomic.Int32
	f, server := asks(t, func(w http.ResponseWriter, r *http.Request) {
		if fails.Add(1) <= 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if r.UserAgent() != "imgsrv-mirror/test" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("ETag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		if r.Header.Get("Accept-Encoding") == "gzip" {
			w.Header().Set("Content-Encoding", "gzip")
			packed := gzip.NewWriter(w)
			_, _ = packed.Write([]byte("document"))
			_ = packed.Close()
		}
	}, "127.0.0.1")
	data, document, err := f.document(t.Context(), server.URL, "d", events.MirrorDocument{})
	if err != nil || string(data) != "document" || document != (events.MirrorDocument{Path: "d", ETag: `"1"`}) {
		t.Fatalf("%q, %+v, %v", data, document, err)
	}
	if data, _, err = f.document(t.Context(), server.URL, "d", document); err != nil || data != nil {
		t.Errorf("what hasn't changed: %q, %v", data, err)
	}
}

// A few bytes can't become a document that fills the memory.
func TestADocumentOfEndlessLengthIsRefused(t *testing.T) {
	t.Parallel()
	f, server := asks(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		for range 5 {
			if _, err := packed.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
		_ = packed.Close()
	}, "127.0.0.1")
	f.maxDocument = 4 << 20
	if _, _, err := f.document(t.Context(), server.URL, "d", events.MirrorDocument{}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("error %v", err)
	}
}
