package crash

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// site is one data folder and its servers. When one dies of SIGKILL, whoever asks for the server next starts another.
type site struct {
	dir   string
	flags []string
	fault func(start int) []string // environment of the server of the n-th start, from 0

	mu     sync.Mutex
	srv    *server
	starts int
	killed int
}

// run is what one client does with a site, and what it has been told.
type run struct {
	*site
	t        *testing.T
	httpc    *http.Client
	acked    map[string]int64 // bytes that the server has said are safe, by the path of the upload
	promises []promise
}

// promise is an event that the server has acknowledged.
type promise struct {
	sequence uint64
	what     string // ending of its subject
}

// newSite prepares a data folder; nothing runs yet.
func newSite(t *testing.T, postgresURL string, fault func(start int) []string) *site {
	t.Helper()
	s := &site{dir: folder(t), fault: fault}
	s.flags = []string{"--data-dir", filepath.Join(s.dir, "data"), "--postgres-url", postgresURL, "--listen", "127.0.0.1:0", "--tls-listen=", "--metrics-listen=", "--nats-listen=", "--verbosity", "warn", "--deltas", "0"}
	t.Cleanup(func() {
		if s.srv != nil {
			s.srv.kill()
		}
		if t.Failed() && s.srv != nil {
			t.Logf("the last server said:\n%s", s.srv.log.String())
		}
	})
	return s
}

// client is one of a site.
func (s *site) client(t *testing.T) *run {
	r := &run{site: s, t: t, acked: map[string]int64{}, httpc: &http.Client{Transport: &http.Transport{}, Timeout: patience}}
	t.Cleanup(r.httpc.CloseIdleConnections)
	return r
}

// newRun is a site with a client, whose first server has this in its environment.
func newRun(t *testing.T, postgresURL string, fault ...string) *run {
	t.Helper()
	return newSite(t, postgresURL, func(start int) []string {
		if start == 0 {
			return fault
		}
		return nil
	}).client(t)
}

// folder is a temporary one, in memory where that is possible: what is tested is the order of things, not the disk.
func folder(t *testing.T) string {
	t.Helper()
	base := ""
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "imgsrv-crash-test-")
	if err != nil {
		dir, err = os.MkdirTemp("", "imgsrv-crash-test-")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// server is the one that runs; where none does, it starts one.
func (r *run) server() *server {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for tries := 0; ; tries++ {
		if r.srv != nil && r.srv.alive() {
			return r.srv
		}
		if r.srv != nil {
			if !r.srv.wasKilled() {
				r.t.Fatalf("the server ended by itself: %v\n%s", r.srv.cmd.ProcessState, r.srv.log.String())
			}
			r.killed++
		}
		if tries > 10 {
			r.t.Fatal("the server dies at each start")
		}
		r.starts++
		r.srv = startServer(r.t, r.flags, r.fault(r.starts-1)...)
	}
}

// answer is what a request came to.
type answer struct {
	status   int
	header   http.Header
	body     []byte
	sequence uint64 // Imgsrv-Sequence; 0 for none
}

func (a answer) decode(t *testing.T, out any) {
	t.Helper()
	if err := json.Unmarshal(a.body, out); err != nil {
		t.Fatalf("%d %q: %v", a.status, a.body, err)
	}
}

// try makes a request once. An error means that nobody knows what it did.
func (r *run) try(method, path string, body []byte, header ...string) (answer, error) {
	r.t.Helper()
	srv := r.server()
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	request, err := http.NewRequestWithContext(r.t.Context(), method, srv.base+path, reader)
	if err != nil {
		r.t.Fatal(err)
	}
	token, err := os.ReadFile(filepath.Join(r.dir, "data", "admin.token"))
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := r.httpc.Do(request)
	if err != nil {
		return answer{}, err
	}
	a := answer{status: response.StatusCode, header: response.Header}
	a.body, err = io.ReadAll(response.Body)
	if err = errors.Join(err, response.Body.Close()); err != nil {
		return answer{}, err
	}
	if text := a.header.Get("Imgsrv-Sequence"); text != "" {
		if a.sequence, err = strconv.ParseUint(text, 10, 64); err != nil {
			r.t.Fatalf("%s %s: Imgsrv-Sequence %q", method, path, text)
		}
	}
	return a, nil
}

// call makes a request that may be made again, until it is answered with one of the statuses.
func (r *run) call(method, path string, body any, want []int, header ...string) answer {
	r.t.Helper()
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			r.t.Fatal(err)
		}
		header = append(header, "Content-Type", "application/json")
	}
	for deadline := time.Now().Add(patience); ; {
		a, err := r.try(method, path, data, header...)
		for _, status := range want {
			if err == nil && a.status == status {
				return a
			}
		}
		if err == nil && a.status != http.StatusServiceUnavailable {
			r.t.Fatalf("%s %s: %d %s", method, path, a.status, a.body)
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s %s: still %v, %d %s", method, path, err, a.status, a.body)
		}
		r.pause()
	}
}

// pause is one of a client that asks again, and lets a server die that is about to.
func (r *run) pause() { time.Sleep(10 * time.Millisecond) }

// promised notes that the server has answered with the sequence of an event.
func (r *run) promised(a answer, what string) {
	if a.sequence > 0 {
		r.promises = append(r.promises, promise{a.sequence, what})
	}
}

// pathOf is the path of a URL that a server has given; the next server has another port.
func (r *run) pathOf(text string) string {
	r.t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		r.t.Fatal(err)
	}
	return u.Path
}

// session is an upload session as the server describes it.
type session struct {
	ID        string `json:"upload_session_id"`
	StatusURL string `json:"status_url"`
	Files     []struct {
		Variant string `json:"variant"`
		Format  string `json:"format"`
		State   string `json:"state"`
		Size    int64  `json:"size"`
		Tus     *struct {
			CreateURL string `json:"create_url"`
			Metadata  string `json:"metadata"`
		} `json:"tus"`
	} `json:"files"`
}

// open opens an upload session, under a key that makes it the same when the answer gets lost.
func (r *run) open(request map[string]any) session {
	r.t.Helper()
	key := fmt.Sprintf("%s/%s", request["image"], request["version"])
	a := r.call("POST", "/api/images", request, []int{201}, "Idempotency-Key", key)
	var s session
	a.decode(r.t, &s)
	r.promised(a, "."+s.ID)
	return s
}

var tusHeader = []string{"Tus-Resumable", "1.0.0"}

// create makes the upload of a session's n-th file.
func (r *run) create(s session, n int) (path string) {
	r.t.Helper()
	f := s.Files[n]
	a := r.call("POST", r.pathOf(f.Tus.CreateURL), nil, []int{201}, append(tusHeader, "Upload-Length", strconv.FormatInt(f.Size, 10), "Upload-Metadata", f.Tus.Metadata)...)
	return r.pathOf(a.header.Get("Location"))
}

// offset asks how far an upload is, and holds the answer against what was acknowledged. there is false for one that isn't there, of
// which nothing may have been acknowledged, not even its creation.
func (r *run) offset(path string, created bool) (offset int64, there bool) {
	r.t.Helper()
	a := r.call("HEAD", path, nil, []int{200, 404}, tusHeader...)
	acked := r.acked[path]
	if a.status == 404 {
		if created || acked > 0 {
			r.t.Fatalf("LOST: upload %s with %d acknowledged bytes is gone", path, acked)
		}
		return 0, false
	}
	offset, err := strconv.ParseInt(a.header.Get("Upload-Offset"), 10, 64)
	if err != nil {
		r.t.Fatalf("HEAD %s: Upload-Offset %q", path, a.header.Get("Upload-Offset"))
	}
	if offset < acked {
		r.t.Fatalf("LOST: upload %s is at %d, acknowledged were %d bytes", path, offset, acked)
	}
	r.acked[path] = offset // said once, so kept
	return offset, true
}

// upload uploads data up to an end, in pieces, resuming whenever the connection or the server is gone.
func (r *run) upload(path string, data []byte, end, piece int) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		offset, _ := r.offset(path, true)
		if int(offset) >= end {
			return
		}
		part := data[offset:min(int(offset)+piece, end)]
		a, err := r.try("PATCH", path, part, append(tusHeader, "Content-Type", "application/offset+octet-stream", "Upload-Offset", strconv.FormatInt(offset, 10))...)
		switch {
		case err != nil, a.status == http.StatusServiceUnavailable, a.status == http.StatusLocked, a.status == http.StatusConflict:
			r.pause()
		case a.status == http.StatusNoContent:
			now, err := strconv.ParseInt(a.header.Get("Upload-Offset"), 10, 64)
			if err != nil || now != offset+int64(len(part)) {
				r.t.Fatalf("PATCH %s at %d with %d bytes: Upload-Offset %q", path, offset, len(part), a.header.Get("Upload-Offset"))
			}
			r.acked[path] = now
		default:
			r.t.Fatalf("PATCH %s at %d: %d %s", path, offset, a.status, a.body)
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("PATCH %s: no end", path)
		}
	}
}

// broken sends the beginning of a PATCH and cuts the connection.
func (r *run) broken(path string, data []byte, n int) {
	r.t.Helper()
	offset, _ := r.offset(path, true)
	token, err := os.ReadFile(filepath.Join(r.dir, "data", "admin.token"))
	if err != nil {
		r.t.Fatal(err)
	}
	host := strings.TrimPrefix(r.server().base, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		return // the server is dead; the upload goes on all the same
	}
	head := fmt.Sprintf("PATCH %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nTus-Resumable: 1.0.0\r\nContent-Type: application/offset+octet-stream\r\nUpload-Offset: %d\r\nContent-Length: %d\r\n\r\n",
		path, host, strings.TrimSpace(string(token)), offset, len(data)-int(offset))
	_, _ = conn.Write(append([]byte(head), data[offset:int(offset)+n]...)) // whether it arrives is the server's matter
	_ = conn.Close()
}

// await waits until a session's publication has ended, and says how.
func (r *run) await(s session) (state string) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; r.pause() {
		var status struct{ State string }
		r.call("GET", r.pathOf(s.StatusURL), nil, []int{200}).decode(r.t, &status)
		if status.State == "published" || status.State == "failed" {
			return status.State
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("session %s is still %s", s.ID, status.State)
		}
	}
}
