package client_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/pipetest"
)

// origin serves one file the way imgsrv does, by net/http's ServeContent.
type origin struct {
	*httptest.Server

	mu     sync.Mutex
	data   []byte
	ranges []string // of the GETs that came, "" for the whole
	before func(http.ResponseWriter, *http.Request) bool
}

func newOrigin(t *testing.T, data []byte) *origin {
	t.Helper()
	o := unstartedOrigin(t, data)
	o.Start()
	return o
}

func unstartedOrigin(t *testing.T, data []byte) *origin {
	t.Helper()
	o := &origin{data: data}
	o.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.mu.Lock()
		data, before := o.data, o.before
		if r.Method == http.MethodGet {
			o.ranges = append(o.ranges, r.Header.Get("Range"))
		}
		o.mu.Unlock()
		if before != nil && before(w, r) {
			return
		}
		sum := sha256.Sum256(data)
		w.Header().Set("ETag", `"sha256:`+hex.EncodeToString(sum[:])+`"`)
		w.Header().Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		http.ServeContent(w, r, "disk.qcow2", time.Unix(1_700_000_000, 0), bytes.NewReader(data))
	}))
	t.Cleanup(o.Close)
	return o
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// expectFile checks that a folder holds the file with these bytes and nothing else.
func expectFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s has %d bytes that are not the file's %d", path, len(got), len(want))
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder has %v (%v), want only the file", entries, err)
	}
}

func TestDownloadArrivesWholeOverBrokenConnections(t *testing.T) {
	t.Parallel()
	want := content(2 << 20)
	o := newOrigin(t, want)
	cut := newCutter(t, o.Listener.Addr().String(), func(n int) budget {
		if n < 4 {
			return budget{up: -1, down: 300_000 + int64(n)*1_001}
		}
		return unbounded()
	})
	target := filepath.Join(t.TempDir(), "disk.qcow2")
	var last int64
	// Fewer failures in a row than there are cuts: what came in between begins the count anew.
	got, err := newClient(t, "http://"+cut.addr, client.Options{Retry: quick(2)}).Download(t.Context(), target,
		client.Fetch{URL: "/disk", SHA256: digest(want), Progress: func(done, _ int64) { last = done }})
	if err != nil {
		t.Fatal(err)
	}
	expectFile(t, target, want)
	if diff := cmp.Diff(client.Fetched{Size: int64(len(want)), SHA256: digest(want)}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if last != int64(len(want)) {
		t.Errorf("the last progress is %d", last)
	}
	if cut.cuts.Load() == 0 || len(o.ranges) < 2 {
		t.Errorf("%d cuts, ranges %q: the test shows nothing", cut.cuts.Load(), o.ranges)
	}
	for _, r := range o.ranges[1:] {
		if !strings.HasPrefix(r, "bytes=") || r == "bytes=0-" {
			t.Errorf("ranges %q: some request began anew", o.ranges)
			break
		}
	}
}

func TestDownloadGoesOnFromWhatAKilledClientLeft(t *testing.T) {
	t.Parallel()
	want := content(100_000)
	for name, c := range map[string]struct {
		left   []byte
		ranges []string
	}{
		"a part":                 {want[:40_000], []string{"bytes=40000-"}},
		"all of it":              {want, nil},
		"nothing":                {[]byte{}, []string{""}},
		"a part of another file": {content(50_000)[10_000:], []string{"bytes=40000-", ""}},
		"more than the file":     {append(bytes.Clone(want), 'x'), []string{""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrigin(t, want)
			target := filepath.Join(t.TempDir(), "disk.qcow2")
			if err := os.WriteFile(target+client.PartSuffix, c.left, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := newClient(t, o.URL, client.Options{}).Download(t.Context(), target, client.Fetch{URL: "/disk", SHA256: digest(want)}); err != nil {
				t.Fatal(err)
			}
			expectFile(t, target, want)
			if diff := cmp.Diff(c.ranges, o.ranges); diff != "" {
				t.Errorf("ranges asked for (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDownloadFromAServerWithoutRangesBeginsAnew(t *testing.T) {
	t.Parallel()
	want := content(100_000)
	o := newOrigin(t, want)
	o.before = func(_ http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("Range")
		return false
	}
	target := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := os.WriteFile(target+client.PartSuffix, want[:30_000], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newClient(t, o.URL, client.Options{}).Download(t.Context(), target, client.Fetch{URL: "/disk"}); err != nil {
		t.Fatal(err)
	}
	expectFile(t, target, want)
}

func TestDownloadOfAFileThatChangesMidwayIsRefused(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, content(100_000))
	// The file becomes another one of the same length when the first connection has carried half of it.
	cut := newCutter(t, o.Listener.Addr().String(), func(n int) budget {
		if n == 0 {
			return budget{up: -1, down: 50_000}
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.data = content(100_001)[1:]
		return unbounded()
	})
	target := filepath.Join(t.TempDir(), "disk.qcow2")
	_, err := newClient(t, "http://"+cut.addr, client.Options{}).Download(t.Context(), target, client.Fetch{URL: "/disk"})
	var wrong *client.DigestError
	if !errors.As(err, &wrong) || wrong.Want != digest(content(100_000)) {
		t.Errorf("error %v, want a *DigestError", err)
	}
	if _, err := os.Stat(target); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file came of it: %v", err)
	}
}

func TestDownloadNeverJoinsTwoFiles(t *testing.T) {
	t.Parallel()
	older, newer := content(100_000), content(100_001)[1:]
	o := newOrigin(t, older)
	// A server that tells the file by its ETag alone.
	o.before = func(w http.ResponseWriter, r *http.Request) bool {
		o.mu.Lock()
		data := o.data
		o.mu.Unlock()
		w.Header().Set("ETag", `"`+digest(data)[:8]+`"`)
		http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(data))
		return true
	}
	cut := newCutter(t, o.Listener.Addr().String(), func(n int) budget {
		if n == 0 {
			return budget{up: -1, down: 50_000}
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.data = newer
		return unbounded()
	})
	target := filepath.Join(t.TempDir(), "disk.qcow2")
	if _, err := newClient(t, "http://"+cut.addr, client.Options{}).Download(t.Context(), target, client.Fetch{URL: "/disk", SHA256: digest(newer)}); err != nil {
		t.Fatal(err)
	}
	expectFile(t, target, newer)
}

func TestDownloadWithAnotherDigestLeavesNothing(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, content(1000))
	// The server believes the digest that is asked for; only the bytes are others.
	wanted := content(1001)[1:]
	sum := sha256.Sum256(wanted)
	o.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("ETag", `"fixed"`)
		w.Header().Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(content(1000)))
		return true
	}
	dir := t.TempDir()
	_, err := newClient(t, o.URL, client.Options{}).Download(t.Context(), filepath.Join(dir, "disk"), client.Fetch{URL: "/disk", SHA256: digest(wanted)})
	var wrong *client.DigestError
	if !errors.As(err, &wrong) || wrong.Got != digest(content(1000)) {
		t.Errorf("error %v, want a *DigestError with the digest of what came", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the folder has %v (%v), want nothing", entries, err)
	}
}

func TestDownloadWritesOverAFileOnlyByForce(t *testing.T) {
	t.Parallel()
	want := content(1000)
	o := newOrigin(t, want)
	c := newClient(t, o.URL, client.Options{})
	target := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Download(t.Context(), target, client.Fetch{URL: "/disk"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want fs.ErrExist", err)
	}
	expectFile(t, target, []byte("mine"))
	if _, err := c.Download(t.Context(), target, client.Fetch{URL: "/disk", Force: true}); err != nil {
		t.Fatal(err)
	}
	expectFile(t, target, want)
}

func TestFileThatAppearsDuringADownloadIsKept(t *testing.T) {
	t.Parallel()
	want := content(1000)
	o := newOrigin(t, want)
	target := filepath.Join(t.TempDir(), "disk")
	o.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
				t.Error(err)
			}
		}
		return false
	}
	if _, err := newClient(t, o.URL, client.Options{}).Download(t.Context(), target, client.Fetch{URL: "/disk"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want fs.ErrExist", err)
	}
	if got, err := os.ReadFile(target); err != nil || string(got) != "mine" {
		t.Errorf("the file is now %q (%v)", got, err)
	}
}

func TestSecondDownloadToOnePathIsRefused(t *testing.T) {
	t.Parallel()
	want := content(1000)
	o := newOrigin(t, want)
	c := newClient(t, o.URL, client.Options{})
	target := filepath.Join(t.TempDir(), "disk")
	underway, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	o.before = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			once.Do(func() { close(underway) })
			<-release
		}
		return false
	}
	first := make(chan error, 1)
	go func() {
		_, err := c.Download(t.Context(), target, client.Fetch{URL: "/disk"})
		first <- err
	}()
	<-underway
	_, err := c.Download(t.Context(), target, client.Fetch{URL: "/disk"})
	close(release)
	if err == nil || !strings.Contains(err.Error(), client.PartSuffix) {
		t.Errorf("the second download: %v, want a refusal that names the part", err)
	}
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	expectFile(t, target, want)
}

func TestDownloadToAWriterGoesOnAfterABrokenConnection(t *testing.T) {
	t.Parallel()
	want := content(1 << 20)
	o := newOrigin(t, want)
	cut := newCutter(t, o.Listener.Addr().String(), func(n int) budget {
		if n < 2 {
			return budget{up: -1, down: 200_000}
		}
		return unbounded()
	})
	var out bytes.Buffer
	if _, err := newClient(t, "http://"+cut.addr, client.Options{}).DownloadTo(t.Context(), &out, client.Fetch{URL: "/disk"}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) || cut.cuts.Load() == 0 {
		t.Errorf("%d bytes after %d cuts, not those of the file", out.Len(), cut.cuts.Load())
	}
}

func TestStalledDownloadIsResumed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, stalledDownloadIsResumed)
}

func stalledDownloadIsResumed(t *testing.T) {
	want := content(100_000)
	o := unstartedOrigin(t, want)
	release := make(chan struct{})
	var stalled atomic.Bool
	o.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !stalled.CompareAndSwap(false, true) {
			return false
		}
		w.Header().Set("ETag", `"sha256:`+digest(want)+`"`)
		w.Header().Set("Content-Length", "100000")
		_, _ = w.Write(want[:20_000])
		w.(http.Flusher).Flush()
		<-release
		return true
	}
	target := filepath.Join(t.TempDir(), "disk")
	c := newClient(t, "http://origin.test", client.Options{Transport: pipetest.Serve(t, o.Config.Handler)})
	t.Cleanup(func() { close(release) }) // before the server ends
	if _, err := c.Download(t.Context(), target, client.Fetch{URL: "/disk"}); err != nil {
		t.Fatal(err)
	}
	expectFile(t, target, want)
	if diff := cmp.Diff([]string{"", "bytes=20000-"}, o.ranges); diff != "" {
		t.Errorf("ranges asked for (-want +got):\n%s", diff)
	}
}

func TestDownloadWithoutAnyDigestIsRefused(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.FileServerFS(os.DirFS(t.TempDir())))
	t.Cleanup(s.Close)
	_, err := newClient(t, s.URL, client.Options{}).Download(t.Context(), filepath.Join(t.TempDir(), "x"), client.Fetch{URL: "/"})
	if !errors.Is(err, client.ErrNoDigest) {
		t.Errorf("error %v, want ErrNoDigest", err)
	}
}
