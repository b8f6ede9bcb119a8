package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Small in CI; `task load` asks for 500 and 2,000.
var (
	loadUploads   = flag.Int("load.uploads", 40, "uploads at once in the test of a heavy load")
	loadDownloads = flag.Int("load.downloads", 160, "downloads at once in the test of a heavy load")
	loadPlaces    = flag.Int("load.requests", 120, "--max-requests of its server; 0: as many as by default")
)

// patient is a client that comes back when it is told to, as honest ones do.
type patient struct {
	client *http.Client
	base   string
	token  string
	shed   atomic.Int64
}

// do sends a request until it isn't put off. The answer's body has to be closed.
func (p *patient) do(ctx context.Context, method, path string, body []byte, header ...string) (*http.Response, error) {
	if path[0] == '/' {
		path = p.base + path
	}
	for {
		r, err := http.NewRequestWithContext(ctx, method, path, strings.NewReader(string(body)))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+p.token)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := p.client.Do(r)
		if err != nil {
			return nil, err
		}
		wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
		if resp.StatusCode != 503 || err != nil {
			return resp, nil
		}
		p.shed.Add(1)
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		select {
		case <-time.After(time.Duration(wait) * time.Second):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// expect is do for an answer without a body that matters.
func (p *patient) expect(ctx context.Context, status int, method, path string, body []byte, header ...string) (http.Header, error) {
	resp, err := p.do(ctx, method, path, body, header...)
	if err != nil {
		return nil, err
	}
	text, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != status {
		return nil, fmt.Errorf("%s %s: %d, want %d: %.200s", method, path, resp.StatusCode, status, text)
	}
	return resp.Header, nil
}

func (p *patient) download(ctx context.Context, path, digest string) error {
	resp, err := p.do(ctx, "GET", path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	sum := sha256.New()
	if _, err := io.Copy(sum, resp.Body); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); resp.StatusCode != 200 || got != digest {
		return fmt.Errorf("%d with sha256 %s", resp.StatusCode, got)
	}
	return nil
}

// memory is what a process takes now and took at most, MiB (proc_pid_status(5)).
func memory(t *testing.T, pid int) (now, peak int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.Atoi(fields[1])
		switch fields[0] {
		case "VmRSS:":
			now = kib >> 10
		case "VmHWM:":
			peak = kib >> 10
		}
	}
	return now, peak
}

// More clients than the node serves at once: all get what they came for, the memory is bounded, and who is too much hears when
// to come back.
func TestAHeavyLoadIsCarried(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.TLSListen, flags.MaxRequests = "", *loadPlaces
	node := startChild(t, flags)
	transport := &http.Transport{MaxIdleConns: 10_000, MaxIdleConnsPerHost: 10_000}
	t.Cleanup(transport.CloseIdleConnections)
	p := &patient{client: &http.Client{Transport: transport}, base: node.HTTPURL, token: node.Token}
	first := file{format: "rootfs.squashfs", data: append([]byte("hsqs"), make([]byte, 1<<20)...)}
	script := node.publisher(t)
	script.publish(request("first", "1", "container", []string{"latest"}, first), first)
	digest := digestOf(first.data)
	before, _ := memory(t, node.cmd.Process.Pid)

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var clients sync.WaitGroup
	var mu sync.Mutex
	took := map[string][]time.Duration{}
	run := func(what string, n int, one func(i int) error) {
		for i := range n {
			clients.Go(func() {
				began := time.Now()
				if err := one(i); err != nil {
					t.Errorf("%s %d: %v", what, i, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				took[what] = append(took[what], time.Since(began))
			})
		}
	}
	began := time.Now()
	sessions := make([]sessionAnswer, *loadUploads)
	run("uploads", *loadUploads, func(i int) error {
		f := file{format: "rootfs.squashfs", data: append(fmt.Appendf(nil, "hsqs %d", i), make([]byte, 1<<20)...)}
		return p.upload(ctx, i, f, &sessions[i])
	})
	run("downloads", *loadDownloads, func(int) error { return p.download(ctx, "/cas/sha256/"+digest[:2]+"/"+digest, digest) })
	clients.Wait()
	all := time.Since(began)
	for _, session := range sessions {
		if session.StatusURL == "" {
			continue // failed, and said so
		}
		if job := script.await(session); job.State != "succeeded" {
			t.Errorf("job %+v", job)
		}
	}
	_, peak := memory(t, node.cmd.Process.Pid)
	for what, times := range took {
		slices.Sort(times)
		t.Logf("%s: %d at once, median %s, slowest %s", what, len(times), times[len(times)/2].Round(time.Millisecond), times[len(times)-1].Round(time.Millisecond))
	}
	t.Logf("all in %s; put off %d times (503, Retry-After); memory %d MiB before, %d MiB at most", all.Round(time.Millisecond), p.shed.Load(), before, peak)
	// A request with bytes holds a buffer of 256 KiB, of which the collector of garbage lets as much again lie about.
	if most := before + 300 + *loadUploads + *loadDownloads/8; peak > most {
		t.Errorf("the server took %d MiB, want %d at most", peak, most)
	}
	if *loadPlaces > 0 && *loadDownloads > *loadPlaces && p.shed.Load() == 0 {
		t.Log("nobody had to be put off: the machine was faster than the clients")
	}
	node.stop(t)
}

func (p *patient) upload(ctx context.Context, i int, f file, session *sessionAnswer) error {
	// Deciding is a request like any other: it may be put off too.
	body := request("load", strconv.Itoa(i), "container", nil, f)
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	resp, err := p.do(ctx, "POST", "/api/images", text, "Content-Type", "application/json")
	if err != nil {
		return err
	}
	err = json.NewDecoder(resp.Body).Decode(session)
	if err := errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != 201 {
		return fmt.Errorf("POST /api/images: %d (%w)", resp.StatusCode, err)
	}
	tus := session.Files[0].Tus
	header, err := p.expect(ctx, 201, "POST", tus.CreateURL, nil, "Tus-Resumable", "1.0.0", "Upload-Length", strconv.Itoa(len(f.data)), "Upload-Metadata", tus.Metadata)
	if err != nil {
		return err
	}
	// As tus clients do: after an answer that isn't the one hoped for, ask how far the upload has come, and go on from there.
	url, at, half := header.Get("Location"), 0, len(f.data)/2
	for at < len(f.data) {
		resp, err := p.do(ctx, "PATCH", url, f.data[at:min(at+half, len(f.data))], "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", strconv.Itoa(at))
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 204 && resp.StatusCode != 409 { // 409: the request that was put off had brought its bytes
			return fmt.Errorf("PATCH at %d: %d", at, resp.StatusCode)
		}
		header, err := p.expect(ctx, 200, "HEAD", url, nil, "Tus-Resumable", "1.0.0")
		if err != nil {
			return err
		}
		was := at
		if at, err = strconv.Atoi(header.Get("Upload-Offset")); err != nil || at < was {
			return fmt.Errorf("the offset is %q after %d (%w)", header.Get("Upload-Offset"), was, err)
		}
	}
	return nil
}

// A process with few open files serves those it has files for, and the others when these are through.
func TestFewOpenFilesAreEnough(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.TLSListen = ""
	node := startChild(t, flags, childSpec{OpenFiles: 200})
	script := node.publisher(t)
	f := file{format: "rootfs.squashfs", data: append([]byte("hsqs"), make([]byte, 1<<20)...)}
	script.publish(request("first", "1", "container", []string{"latest"}, f), f)
	p := &patient{client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, base: node.HTTPURL, token: node.Token}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	digest := digestOf(f.data)
	var clients sync.WaitGroup
	for range 300 {
		clients.Go(func() {
			if err := p.download(ctx, "/cas/sha256/"+digest[:2]+"/"+digest, digest); err != nil {
				t.Errorf("download: %v", err)
			}
		})
	}
	clients.Wait()
	t.Logf("300 downloads with 200 files: put off %d times", p.shed.Load())
	node.stop(t)
}

// At SIGTERM uploads stop where they can be resumed, followers of the events are told, downloads have their time, and the
// process ends in order.
func TestAStopDrains(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.StopTimeout = 2 * time.Second
	node := startChild(t, flags)
	p := node.publisher(t)
	big := file{format: "rootfs.squashfs", data: append([]byte("hsqs"), make([]byte, 32<<20)...)}
	p.publish(request("big", "1", "container", []string{"latest"}, big), big)

	// An upload that is under way, and stays so.
	data := append([]byte("hsqs"), make([]byte, 2<<20)...)
	session := p.open(request("debian", "1", "container", nil, file{format: "rootfs.squashfs", data: data}))
	url := p.create(session, 0, len(data))
	sending, more := io.Pipe()
	patched := make(chan *http.Response, 1)
	go func() {
		resp, err := p.try("PATCH", url, io.Reader(sending), nil, "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", "0")
		if err != nil {
			t.Logf("the upload at the stop: %v", err) // cut, which its client resumes as well
		}
		patched <- resp
	}()
	if _, err := more.Write(data[:1<<20]); err != nil {
		t.Fatal(err)
	}
	// A follower of the events.
	followed := make(chan string, 1)
	events, err := http.NewRequestWithContext(t.Context(), "GET", node.HTTPURL+"/api/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := http.DefaultClient.Do(events)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		said, _ := io.ReadAll(stream.Body)
		_ = stream.Body.Close()
		followed <- string(said)
	}()
	// Two downloads: one goes on, the other reads nothing.
	download := func() net.Conn {
		conn, err := net.Dial("tcp", strings.TrimPrefix(node.HTTPURL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := fmt.Fprintf(conn, "GET /cas/sha256/%s/%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", digestOf(big.data)[:2], digestOf(big.data)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	lively, silent := download(), download()
	began := time.Now()
	if err := node.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(lively)
	if err != nil || len(got) < len(big.data)-1000 {
		t.Errorf("a download that goes on got %d of %d bytes: %v", len(got), len(big.data), err)
	}
	if said := <-followed; !strings.Contains(said, "the server stops; come back") {
		t.Errorf("a follower of the events was told %q", said)
	}
	if resp := <-patched; resp != nil && (resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "") {
		t.Errorf("the upload was answered %d", resp.StatusCode)
	}
	_ = more.Close()
	node.waitEnd(t)
	took := time.Since(began)
	if code := node.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	if rest, err := io.ReadAll(silent); err == nil && len(rest) >= len(big.data)-1000 {
		t.Error("a download that read nothing got all bytes: nothing was cut")
	}
	t.Logf("stopped in %s, 2 s of which a silent download had", took.Round(time.Millisecond))
	if took > 20*time.Second {
		t.Errorf("the stop took %s", took)
	}

	node = startChild(t, flags)
	p.base = node.HTTPURL
	url = node.HTTPURL + url[strings.Index(url, "/api/"):]
	at := p.offset(url)
	if at == 0 || at > 1<<20 {
		t.Errorf("offset %d after the stop, want what had arrived", at)
	}
	if resp := p.patch(url, at, data[at:]); resp.StatusCode != 204 {
		t.Fatalf("PATCH after the start: %d", resp.StatusCode)
	}
	session.StatusURL = "/api/uploads/" + session.ID
	if job := p.await(session); job.State != "succeeded" {
		t.Errorf("job %+v", job)
	}
	for _, left := range []string{"uploads", "ingress/jobs"} {
		if entries, err := os.ReadDir(filepath.Join(flags.DataDir, "storage", left)); err != nil || len(entries) > 0 {
			t.Errorf("%s holds %v (%v)", left, entries, err)
		}
	}
	node.stop(t)
}
