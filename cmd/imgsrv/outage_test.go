package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/store/postgres"
)

// Short in CI; `task load` asks for a minute.
var outageLength = flag.Duration("outage", 3*time.Second, "how long the parts are away in the tests of outages")

// outsidePostgres is a real server that a test ends and starts, and that imgsrv knows by its URL alone.
type outsidePostgres struct {
	t       *testing.T
	dir     string
	running *postgres.Managed
}

func newOutsidePostgres(t *testing.T) *outsidePostgres {
	t.Helper()
	p := &outsidePostgres{t: t, dir: openDir(t)}
	p.start()
	t.Cleanup(p.stop)
	return p
}

func (p *outsidePostgres) start() {
	p.t.Helper()
	var err error
	p.running, err = postgres.StartManaged(context.WithoutCancel(p.t.Context()), postgres.ManagedConfig{DataDir: p.dir, Disposable: true})
	needPostgres(p.t, err)
}

func (p *outsidePostgres) stop() {
	p.t.Helper()
	if err := p.running.Stop(context.WithoutCancel(p.t.Context())); err != nil {
		p.t.Errorf("stop PostgreSQL: %v", err)
	}
}

// processes are the server's, the first one included.
func (p *outsidePostgres) processes() []int {
	p.t.Helper()
	cluster := filepath.Join(p.running.DataDir(), "data")
	entries, err := os.ReadDir("/proc")
	if err != nil {
		p.t.Skipf("needs Linux's /proc: %v", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if at, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd")); err == nil && at == cluster {
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		p.t.Fatal("no process of PostgreSQL is found")
	}
	return pids
}

func (p *outsidePostgres) signal(signal syscall.Signal) {
	p.t.Helper()
	for _, pid := range p.processes() {
		if err := syscall.Kill(pid, signal); err != nil && err != syscall.ESRCH { //nolint:errorlint // an errno
			p.t.Errorf("%s to PostgreSQL: %v", signal, err)
		}
	}
}

// asked counts what a kind of request was answered during an outage.
type asked struct {
	sent, fine, putOff, wrong atomic.Int64
	slowest                   atomic.Int64 // nanoseconds
}

func (a *asked) String() string {
	return fmt.Sprintf("%d sent, %d answered, %d put off (503, Retry-After), %d lost, slowest %s", a.sent.Load(), a.fine.Load(), a.putOff.Load(), a.wrong.Load(), time.Duration(a.slowest.Load()).Round(time.Millisecond))
}

// count judges an answer: 2xx with the bytes wanted (nil: any), or else 503 with Retry-After.
func (a *asked) count(t *testing.T, what string, resp *http.Response, body, want []byte, err error, took time.Duration) {
	a.sent.Add(1)
	for old := a.slowest.Load(); int64(took) > old && !a.slowest.CompareAndSwap(old, int64(took)); old = a.slowest.Load() {
	}
	switch {
	case err == nil && resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "":
		a.putOff.Add(1)
	case err == nil && resp.StatusCode/100 == 2 && (want == nil || bytes.Equal(body, want)):
		a.fine.Add(1)
	default:
		a.wrong.Add(1)
		if err == nil {
			err = fmt.Errorf("%d with %d bytes", resp.StatusCode, len(body))
		}
		t.Errorf("%s: %v", what, err)
	}
}

// asking asks for something over and over until ctx ends.
func asking(ctx context.Context, p *publisher, path string, want []byte, a *asked) {
	for ctx.Err() == nil {
		var body []byte
		began := time.Now()
		resp, err := p.try("GET", path, nil, &body)
		a.count(p.t, path, resp, body, want, err, time.Since(began))
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond): // the pace of the load
		}
	}
}

// While PostgreSQL is away, stopped or hanging, publications go on to the end, downloads and documents are served from what is
// known, private ones to whom they belong; other reads are put off. Afterwards everything catches up by itself.
func TestPostgresIsAwayUnderLoad(t *testing.T) {
	t.Parallel()
	pg := newOutsidePostgres(t)
	flags := ServerFlags{Listen: "127.0.0.1:0", DataDir: t.TempDir(), PostgresURL: pg.running.URL(), MetricsPath: "/metrics", LogFormat: "text", Verbosity: "error"}
	node := startChild(t, flags)
	p, stranger := node.publisher(t), node.stranger(t)
	open, secret := file{format: "rootfs.squashfs", data: []byte("hsqs for all")}, file{format: "rootfs.squashfs", data: []byte("hsqs for some")}
	p.publish(request("open", "0", "container", []string{"latest"}, open), open)
	private := request("secret", "0", "container", []string{"latest"}, secret)
	private["visibility"] = "private"
	p.publish(private, secret)
	cas := func(f file) string { return "/cas/sha256/" + digestOf(f.data)[:2] + "/" + digestOf(f.data) }
	format := "/api/images/open/versions/0/variants/amd64.container.default/formats/rootfs.squashfs"
	var documents, own []byte
	p.call("GET", "/streams/v1/images.json", nil, &own)

	published := 0
	for _, outage := range []struct {
		name       string
		begin, end func()
	}{
		{"stopped", pg.stop, pg.start},
		{"hanging", func() { pg.signal(syscall.SIGSTOP) }, func() { pg.signal(syscall.SIGCONT) }},
	} {
		stranger.call("GET", "/streams/v1/images.json", nil, &documents)
		outage.begin()
		began := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		var load sync.WaitGroup
		counts := map[string]*asked{}
		ask := func(p *publisher, path string, want []byte) {
			a := &asked{}
			counts[path] = a
			load.Go(func() { asking(ctx, p, path, want, a) })
		}
		ask(stranger, cas(open), open.data)
		ask(stranger, format, open.data)
		ask(p, cas(secret), secret.data)
		ask(stranger, "/streams/v1/images.json", documents)
		ask(p, "/streams/v1/index.json", nil)
		ask(stranger, "/api/images/open", nil)

		// What the caller may not read is put off as what isn't there: nobody learns of it.
		for _, path := range []string{cas(secret), cas(file{data: []byte("nothing")})} {
			if resp, err := stranger.try("GET", path, nil, nil); err != nil || resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
				t.Errorf("%s: a stranger asks for %s: %v, %v", outage.name, path, resp, err)
			}
		}
		if p.call("GET", "/streams/v1/images.json", nil, &own); !bytes.Contains(own, []byte("secret")) || bytes.Contains(documents, []byte("secret")) {
			t.Errorf("%s: private documents: %s", outage.name, own)
		}
		var ready struct {
			Ready    bool
			Postgres struct {
				OK    bool
				Error string
			}
		}
		if resp := p.call("GET", "/readyz", nil, &ready); resp.StatusCode != 503 || ready.Postgres.OK || ready.Postgres.Error == "" {
			t.Errorf("%s: /readyz says %d, %+v", outage.name, resp.StatusCode, ready)
		}
		if outage.name == "stopped" {
			for _, work := range [][2]string{{"POST", "verify"}, {"POST", "rebuild"}, {"GET", "replay?from=1&to=1"}} {
				if resp := p.call(work[0], "/api/projections/catalog/"+work[1], nil, nil); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
					t.Errorf("%s of a projection: %d, want 503", work[1], resp.StatusCode)
				}
			}
		}
		during := 0
		for during == 0 || time.Since(began) < *outageLength {
			f := file{format: "rootfs.squashfs", data: fmt.Appendf(nil, "hsqs %s %d", outage.name, published)}
			published, during = published+1, during+1
			p.publish(request("open", strconv.Itoa(published), "container", []string{"latest"}, f), f)
		}
		length := time.Since(began)
		cancel()
		load.Wait()
		outage.end()

		for path, a := range counts {
			t.Logf("%s for %s: %s: %s", outage.name, length.Round(time.Millisecond), path, a)
			if path == "/api/images/open" {
				if a.putOff.Load() == 0 || a.fine.Load() != 0 {
					t.Errorf("%s: reads of the catalog: %s", outage.name, a)
				}
			} else if a.fine.Load() != a.sent.Load() {
				t.Errorf("%s: %s: %s, want all answered", outage.name, path, a)
			}
		}
		t.Logf("%s for %s: %d publications begun and ended, 0 lost", outage.name, length.Round(time.Millisecond), during)
		awaitVersion(t, stranger, "open", strconv.Itoa(published))
		var listed struct{ Versions []struct{ Version string } }
		if stranger.call("GET", "/api/images/open/versions?limit=1000", nil, &listed); len(listed.Versions) != published+1 {
			t.Errorf("%s: %d versions are listed, published were %d", outage.name, len(listed.Versions), published+1)
		}
		awaitAnswer(t, stranger, "/streams/v1/images.json", fmt.Sprintf("open/%d", published))
	}
	verified(t, node)
	node.stop(t)
}

// awaitVersion waits until the catalog has a version.
func awaitVersion(t *testing.T, p *publisher, image, version string) {
	t.Helper()
	awaitAnswer(t, p, "/api/images/"+image+"/versions/"+version, "")
}

// awaitAnswer waits until a path gives an answer that holds a text.
func awaitAnswer(t *testing.T, p *publisher, path, text string) {
	t.Helper()
	eventually(t, func() string {
		var body []byte
		resp, err := p.try("GET", path, nil, &body)
		if err == nil && resp.StatusCode == 200 && bytes.Contains(body, []byte(text)) {
			return ""
		}
		return fmt.Sprintf("%s doesn't show %q: %v, %v", path, text, resp, err)
	})
}

// verified compares each projection with a rebuild.
func verified(t *testing.T, node *child) {
	t.Helper()
	for _, name := range []string{"catalog", "jobs", "streams"} {
		if code, out, errs := command(t.Context(), "projections", "verify", name, "--server", node.HTTPURL, "--token", node.Token); code != 0 || !strings.Contains(out, "is what its events make of it") {
			t.Errorf("verify %s: exit code %d: %s%s", name, code, out, errs)
		}
	}
}

// The private PostgreSQL may be killed: it is started again, and the node goes on.
func TestItsOwnPostgresIsStartedAgain(t *testing.T) {
	t.Parallel()
	flags := ServerFlags{Listen: "127.0.0.1:0", MetricsPath: "/metrics", DataDir: filepath.Join(openDir(t), "data"), LogFormat: "text", Verbosity: "error"}
	node := startHere(t, flags)
	p := node.publisher(t)
	pidFile := filepath.Join(flags.DataDir, "postgres", "data", "postmaster.pid")
	for version := range 2 {
		text, err := os.ReadFile(pidFile)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.SplitN(string(text), "\n", 2)[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		f := file{format: "rootfs.squashfs", data: fmt.Appendf(nil, "hsqs %d", version)}
		p.publish(request("image", strconv.Itoa(version), "container", nil, f), f)
		awaitVersion(t, p, "image", strconv.Itoa(version))
	}
	select {
	case err := <-node.failed:
		t.Errorf("the node ended with %v", err)
	default:
	}
}

// factsOf counts the facts of a type in the server's whole history.
func factsOf(t *testing.T, node *child, kind string) int {
	t.Helper()
	code, out, errs := command(t.Context(), "events", "export", "--server", node.HTTPURL, "--token", node.Token)
	if code != 0 {
		t.Fatalf("events export: exit code %d: %s", code, errs)
	}
	return strings.Count(out, `"`+kind+`"`)
}
