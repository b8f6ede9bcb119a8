package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/handlers/scrub"
)

// scrubbed is a node whose blobs are looked after, so that what downloads meet is recorded.
func scrubbed(t *testing.T) (*node, *scrub.Scrubber) {
	t.Helper()
	var s *scrub.Scrubber
	n := newNode(t, func(c *api.Config) {
		var err error
		s, err = scrub.New(scrub.Config{Log: c.Events, Store: c.Blobs, Logger: c.Log, Meter: noop.Meter{}})
		if err == nil {
			err = s.CatchUp(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		c.Scrub = s
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return n, s
}

// blobFile opens the file of a blob as somebody with rights on the storage can.
func (n *node) blobFile(data []byte) *os.File {
	n.t.Helper()
	path, err := n.blobs.BlobPath(sha(data))
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = f.Close() })
	return f
}

// awaitDamage waits until damage of a blob is recorded, or isn't any more.
func (n *node) awaitDamage(data []byte, want bool) {
	n.t.Helper()
	tail, err := n.events.Tail(n.t.Context(), 0, events.BlobEntity(events.Digest("sha256:"+sha(data))).Subject())
	if err != nil {
		n.t.Fatal(err)
	}
	defer tail.Close()
	for damaged := !want; ; {
		batch, err := tail.Next(n.t.Context(), 100)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, event := range batch {
			damaged = event.Fact.(events.BlobFact).After().Damage != nil
		}
		if damaged == want {
			return
		}
	}
}

func TestADamagedFileIsSentUnderNoPath(t *testing.T) {
	t.Parallel()
	n, s := scrubbed(t)
	data := bytes.Repeat([]byte("rotten "), 1000)
	n.publish(session("debian", "1", data), data)
	n.publish(session("debian", "2", data), data)
	if _, err := n.blobFile(data).WriteAt([]byte("!"), 3500); err != nil {
		t.Fatal(err)
	}
	if report, err := s.Fsck(t.Context(), scrub.Options{}, func(int64, int64) {}); err != nil || report.Found != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	for _, path := range []string{formatPath("debian", "1"), formatPath("debian", "2"), blobPath(data)} {
		for _, with := range []option{withHeader("Range", "bytes=0-9"), withHeader("Accept", "*/*"), withHeader("If-None-Match", `"sha256:`+sha(data)+`"`)} {
			a := n.do(http.MethodGet, path, nil, with)
			n.problem(a, 500, "blob-damaged")
			if !strings.Contains(string(a.body), sha(data)) || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %s, %v", path, a.body, a.Header)
			}
		}
	}
	var ready struct{ Scrub struct{ Damaged int } }
	if a := n.do(http.MethodGet, "/readyz", nil); a.StatusCode != http.StatusOK || json.Unmarshal(a.body, &ready) != nil || ready.Scrub.Damaged != 1 {
		t.Errorf("readiness: %d %s", a.StatusCode, a.body)
	}
	if a := n.do(http.MethodGet, "/api/status", nil); !strings.Contains(string(a.body), `"blobs"`) || !strings.Contains(string(a.body), sha(data)+": digest") {
		t.Errorf("status: %d %s", a.StatusCode, a.body)
	}

	// A session that names the digest is told to bring the bytes, and all versions have them again.
	again := session("debian", "3", data)
	file := again["variants"].([]any)[0].(map[string]any)["files"].([]any)[0].(map[string]any)
	file["sha256"] = sha(data)
	n.publish(again, data) // fails where the session says that the bytes are present
	n.awaitDamage(data, false)
	for deadline := time.Now().Add(time.Minute); n.blobs.Damaged(sha(data)) != nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // the fact is on its way to the node's store
	}
	for _, version := range []string{"1", "2", "3"} {
		if a := n.do(http.MethodGet, formatPath("debian", version), nil); a.StatusCode != http.StatusOK || !bytes.Equal(a.body, data) {
			t.Errorf("version %s after the repair: %d", version, a.StatusCode)
		}
	}
}

func TestADownloadThatMeetsDamageHasItRecorded(t *testing.T) {
	t.Parallel()
	n, _ := scrubbed(t)
	gone, cut := []byte("gone"), []byte("cut short")
	n.publish(session("debian", "1", gone), gone)
	n.publish(session("debian", "2", cut), cut)
	if err := os.Remove(n.blobFile(gone).Name()); err != nil {
		t.Fatal(err)
	}
	if err := n.blobFile(cut).Truncate(3); err != nil {
		t.Fatal(err)
	}
	n.problem(n.do(http.MethodGet, formatPath("debian", "1"), nil), 500, "blob-damaged")
	n.problem(n.do(http.MethodGet, blobPath(cut), nil), 500, "blob-damaged")
	n.awaitDamage(gone, true)
	n.awaitDamage(cut, true)
}

// A download that is under way when its file is found damaged ends before the whole length is sent.
func TestADownloadUnderWayIsCutWhenDamageIsFound(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(n *node, data []byte){
		"damage is found":  func(n *node, data []byte) { n.blobs.SetDamage(sha(data), 1<<40, "digest") },
		"the file is cut":  func(n *node, data []byte) { must(t, n.blobFile(data).Truncate(20<<20)) },
		"it isn't damaged": func(*node, []byte) {},
	} {
		n, _ := scrubbed(t)
		data := make([]byte, 48<<20) // more than what sockets hold
		n.publish(session("debian", "1", data), data)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, n.url+formatPath("debian", "1"), nil)
		must(t, err)
		answer, err := http.DefaultClient.Do(r)
		must(t, err)
		if _, err := io.ReadFull(answer.Body, make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		spoil(n, data)
		_, err = io.Copy(io.Discard, answer.Body)
		if whole := err == nil; whole != (name == "it isn't damaged") {
			t.Errorf("%s: the download ends with %v", name, err)
		}
		must(t, answer.Body.Close())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
