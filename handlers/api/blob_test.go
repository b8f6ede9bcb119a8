package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/api"
)

func pattern(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i>>8*31 ^ i)
	}
	return data
}

func formatPath(image, version string) string {
	return "/api/images/" + image + "/versions/" + version + "/variants/" + variantName + "/formats/disk.qcow2"
}

func attachmentPath(image, version string) string {
	return "/api/images/" + image + "/versions/" + version + "/attachments/notes.md"
}

// withAttachment is a session of one more file, of the same bytes.
func withAttachment(body map[string]any, data []byte) map[string]any {
	body["attachments"] = []any{map[string]any{"name": "notes.md", "size": len(data)}}
	return body
}

func blobPath(data []byte) string { return "/cas/sha256/" + sha(data)[:2] + "/" + sha(data) }

func TestADownloadSaysWhatItIs(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := pattern(100_000)
	n.publish(withAttachment(session("debian", "12.5.0", data, "latest"), data), data)
	sum, err := hex.DecodeString(sha(data))
	if err != nil {
		t.Fatal(err)
	}
	common := map[string]string{"ETag": `"sha256:` + sha(data) + `"`, "Repr-Digest": "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":",
		"Accept-Ranges": "bytes", "Content-Type": "application/x-qemu-disk", "Content-Length": "100000", "X-Content-Type-Options": "nosniff"}
	for path, more := range map[string]map[string]string{
		formatPath("debian", "12.5.0"):     {"Cache-Control": "public, max-age=31536000, immutable", "Content-Disposition": `attachment; filename="debian-12.5.0-` + variantName + `.disk.qcow2"`},
		formatPath("debian", "latest"):     {"Cache-Control": "public, no-cache", "Content-Disposition": `attachment; filename="debian-12.5.0-` + variantName + `.disk.qcow2"`},
		attachmentPath("debian", "12.5.0"): {"Cache-Control": "public, max-age=31536000, immutable", "Content-Disposition": `attachment; filename="debian-12.5.0.notes.md"`},
		attachmentPath("debian", "latest"): {"Cache-Control": "public, no-cache", "Content-Disposition": `attachment; filename="debian-12.5.0.notes.md"`},
		blobPath(data):                     {"Cache-Control": "public, max-age=31536000, immutable", "Content-Disposition": `attachment; filename="sha256-` + sha(data) + `"`},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			a := n.do(method, path, nil, anonymous)
			if a.StatusCode != 200 || method == http.MethodGet && !bytes.Equal(a.body, data) {
				t.Errorf("%s %s: %d, %d bytes", method, path, a.StatusCode, len(a.body))
			}
			for _, want := range []map[string]string{common, more} {
				for name, value := range want {
					if got := a.Header.Get(name); got != value {
						t.Errorf("%s %s: %s is %q, want %q", method, path, name, got, value)
					}
				}
			}
			if named := strings.HasPrefix(path, "/api"); (a.Header.Get("Last-Modified") != "") != named {
				t.Errorf("%s %s: Last-Modified %q", method, path, a.Header.Get("Last-Modified"))
			}
		}
	}
}

func TestADownloadKnowsRangesAndPreconditions(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := pattern(3 << 20)
	n.publish(withAttachment(session("debian", "1", data), data), data)
	etag := `"sha256:` + sha(data) + `"`
	for _, path := range []string{formatPath("debian", "1"), attachmentPath("debian", "1"), blobPath(data)} {
		get := func(headers ...string) answer {
			var options []option
			for i := 0; i < len(headers); i += 2 {
				options = append(options, withHeader(headers[i], headers[i+1]))
			}
			return n.do(http.MethodGet, path, nil, append(options, anonymous)...)
		}
		part := get("Range", "bytes=1000000-2999999")
		if part.StatusCode != 206 || !bytes.Equal(part.body, data[1000000:3000000]) || part.Header.Get("Content-Range") != fmt.Sprintf("bytes 1000000-2999999/%d", len(data)) {
			t.Errorf("part: %d %s, %d bytes", part.StatusCode, part.Header.Get("Content-Range"), len(part.body))
		}
		if tail := get("Range", "bytes=-5", "If-Range", etag); tail.StatusCode != 206 || !bytes.Equal(tail.body, data[len(data)-5:]) {
			t.Errorf("tail: %d, %d bytes", tail.StatusCode, len(tail.body))
		}
		if whole := get("Range", "bytes=-5", "If-Range", `"sha256:other"`); whole.StatusCode != 200 || !bytes.Equal(whole.body, data) {
			t.Errorf("of another file: %d, %d bytes", whole.StatusCode, len(whole.body))
		}
		several := get("Range", "bytes=0-9,100-199")
		_, params, err := mime.ParseMediaType(several.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		parts := multipart.NewReader(bytes.NewReader(several.body), params["boundary"])
		for _, want := range [][]byte{data[:10], data[100:200]} {
			p, err := parts.NextPart()
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(p); err != nil || !bytes.Equal(got, want) {
				t.Errorf("part of several: %d bytes (%v)", len(got), err)
			}
		}
		if same := get("If-None-Match", etag); same.StatusCode != 304 || len(same.body) != 0 {
			t.Errorf("If-None-Match: %d", same.StatusCode)
		}
		beyond := get("Range", "bytes=99999999-")
		n.problem(beyond, 416, "range-not-satisfiable")
		if got := beyond.Header.Get("Content-Range"); got != fmt.Sprintf("bytes */%d", len(data)) {
			t.Errorf("Content-Range %q", got)
		}
		n.problem(get("If-Match", `"other"`), 412, "precondition-failed")
	}
}

func TestWhatNoVersionNamesIsNotSent(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data, other := []byte("published"), []byte("promoted and not published")
	n.publish(session("debian", "1", data), data)
	if err := n.blobs.Fill().Put(t.Context(), sha(other), int64(len(other)), bytes.NewReader(other)); err != nil {
		t.Fatal(err)
	}
	hexed := sha(data)
	for _, path := range []string{
		blobPath(other), "/cas/sha256/00/" + hexed, "/cas/sha256/" + strings.ToUpper(hexed[:2]) + "/" + strings.ToUpper(hexed), "/cas/sha256/" + hexed[:2] + "/" + hexed[:63],
		"/cas/sha256/x/x", "/cas/sha256/" + hexed[:2] + "/..%2f" + hexed, formatPath("debian", "2"), formatPath("..", "1"), formatPath("debian", "..%2F1"),
		attachmentPath("debian", "1"), attachmentPath("..", "1"), strings.Replace(attachmentPath("debian", "1"), "notes.md", "..%2Fnotes.md", 1),
		strings.Replace(formatPath("debian", "1"), "disk.qcow2", "disk.raw", 1), strings.Replace(formatPath("debian", "1"), "amd64", "arm64", 1),
	} {
		n.problem(n.do(http.MethodGet, path, nil), 404, "not-found")
		if a := n.do(http.MethodHead, path, nil); a.StatusCode != 404 || len(a.body) != 0 {
			t.Errorf("HEAD %s: %d", path, a.StatusCode)
		}
	}
}

func TestALostFileIsOurFaultAndLogged(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := []byte("here today")
	n.publish(session("debian", "1", data), data)
	file, _, err := n.blobs.OpenBlob(sha(data))
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file.Name()); err != nil {
		t.Fatal(err)
	}
	n.problem(n.do(http.MethodGet, formatPath("debian", "1"), nil), 500, "blob-damaged")
	if !strings.Contains(n.logged.String(), sha(data)) {
		t.Error("the log doesn't name the blob")
	}
}

// watchedConn sees how bytes get to the connection: those that come by ReadFrom out of a file go by sendfile.
type watchedConn struct {
	*net.TCPConn
	seen *watched
}

type watched struct {
	mu        sync.Mutex
	fromFile  int64
	byWrite   int64
	deadlines int
}

func (c *watchedConn) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.TCPConn.ReadFrom(r)
	// net's sendfile takes a file, or a file behind one LimitedReader (net/sendfile.go).
	if limited, ok := r.(*io.LimitedReader); ok {
		r = limited.R
	}
	c.seen.mu.Lock()
	defer c.seen.mu.Unlock()
	if _, ok := r.(*os.File); ok {
		c.seen.fromFile += n
	}
	return n, err
}

func (c *watchedConn) Write(p []byte) (int, error) {
	c.seen.mu.Lock()
	c.seen.byWrite += int64(len(p))
	c.seen.mu.Unlock()
	return c.TCPConn.Write(p)
}

func (c *watchedConn) SetWriteDeadline(at time.Time) error {
	c.seen.mu.Lock()
	c.seen.deadlines++
	c.seen.mu.Unlock()
	return c.TCPConn.SetWriteDeadline(at)
}

type watchedListener struct {
	net.Listener
	seen *watched
}

func (l watchedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{conn.(*net.TCPConn), l.seen}, nil
}

func TestDownloadsGoBySendfileThroughAllMiddlewares(t *testing.T) {
	t.Parallel()
	cfg, n := parts(t)
	handler, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	seen := &watched{}
	server := httptest.NewUnstartedServer(handler)
	server.Listener = watchedListener{server.Listener, seen}
	server.Start()
	defer server.Close()
	n.url = server.URL
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = n.catalog.Run(ctx) })
	defer running.Wait()
	defer cancel()
	data := pattern(5<<20 + 7)
	id := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", data)), 201)["upload_session_id"].(string)
	n.handOver(id, data)
	if err := n.catalog.WaitFor(ctx, n.finish(events.JobIDFor(id))); err != nil {
		t.Fatal(err)
	}
	before := func() (int64, int64, int) {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		return seen.fromFile, seen.byWrite, seen.deadlines
	}
	file, written, deadlines := before()
	if a := n.do(http.MethodGet, formatPath("debian", "1"), nil); !bytes.Equal(a.body, data) {
		t.Fatalf("%d bytes came", len(a.body))
	}
	fileAfter, writtenAfter, deadlinesAfter := before()
	// net/http writes the first 512 bytes itself, together with the header.
	if got := fileAfter - file; got != int64(len(data))-512 {
		t.Errorf("%d of %d bytes went from the file to the connection", got, len(data))
	}
	if got := writtenAfter - written; got > 4096 {
		t.Errorf("%d bytes went through memory", got)
	}
	if got := deadlinesAfter - deadlines; got < 6 {
		t.Errorf("the deadline moved %d times for 5 MiB", got)
	}
}

func TestADeadlineOfADownloadDoesNotOutliveIt(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := pattern(2 << 20)
	n.publish(session("debian", "1", data), data)
	// Both answers come over one connection.
	for range 2 {
		if a := n.do(http.MethodGet, formatPath("debian", "1"), nil); !bytes.Equal(a.body, data) {
			t.Fatalf("%d bytes came", len(a.body))
		}
		n.want(n.do(http.MethodGet, "/healthz", nil), 200)
	}
}

func BenchmarkDownload(b *testing.B) {
	n := newNode(b, func(c *api.Config) { c.Log = slog.New(slog.DiscardHandler) })
	data := pattern(64 << 20)
	n.publish(session("debian", "1", data), data)
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		resp, err := http.Get(n.url + formatPath("debian", "1"))
		if err != nil {
			b.Fatal(err)
		}
		got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf)
		if err != nil || got != int64(len(data)) {
			b.Fatalf("%d bytes (%v)", got, err)
		}
		if err := resp.Body.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSmallDownload(b *testing.B) {
	n := newNode(b, func(c *api.Config) { c.Log = slog.New(slog.DiscardHandler) })
	data := pattern(4 << 10)
	n.publish(session("debian", "1", data), data)
	for b.Loop() {
		if a := n.do(http.MethodGet, formatPath("debian", "1"), nil); !cmp.Equal(len(a.body), len(data)) {
			b.Fatal(a.StatusCode)
		}
	}
}

// A host reads in the simplestreams documents what to fetch: it gets that also where the catalog comes after them.
func TestADownloadThatIsListedBeforeTheCatalogHasItWaits(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t, func(cfg *api.Config) { cfg.VisibleWait = 20 * time.Second })
	data := pattern(1000)
	opened := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", data)), 201)
	id := opened["upload_session_id"].(string)
	n.handOver(id, data)
	sequence := n.finish(events.JobIDFor(id))
	n.run(n.streams)
	if err := n.streams.WaitFor(t.Context(), sequence); err != nil {
		t.Fatal(err)
	}
	paths := []string{formatPath("debian", "1"), blobPath(data)}
	answers := make(chan int, len(paths))
	for _, path := range paths {
		go func() { answers <- n.do(http.MethodGet, path, nil, anonymous).StatusCode }()
	}
	select {
	case <-time.After(100 * time.Millisecond): // they wait, or haven't begun
	case early := <-answers:
		t.Errorf("an answer before the catalog has the file: %d", early)
		answers <- early
	}
	n.run(n.catalog)
	for range paths {
		if got := <-answers; got != 200 {
			t.Errorf("a listed file: %d", got)
		}
	}
	n.problem(n.do(http.MethodGet, formatPath("debian", "2"), nil, anonymous), 404, "not-found")
}
