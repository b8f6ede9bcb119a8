package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
)

// natsVariable turns the test binary into a NATS server of a process of its own, which can be killed and stopped.
const natsVariable = "IMGSRV_TEST_NATS"

type natsSpec struct {
	Dir  string
	Port int // 0: any
}

// runNATS starts a server as nats-server -js would, says its URL, and runs until the process is killed.
func runNATS(encoded string) error {
	var spec natsSpec
	if err := json.Unmarshal([]byte(encoded), &spec); err != nil {
		return err
	}
	if spec.Port == 0 {
		spec.Port = natsserver.RANDOM_PORT
	}
	ns, err := natsserver.NewServer(&natsserver.Options{ServerName: "outside", Host: "127.0.0.1", Port: spec.Port, JetStream: true, StoreDir: spec.Dir,
		SyncAlways: true, NoSigs: true, NoLog: true, MaxPayload: 4 << 20})
	if err != nil {
		return err
	}
	go ns.Start()
	if !ns.ReadyForConnections(time.Minute) {
		return errors.New("it doesn't come up")
	}
	fmt.Println(ns.ClientURL())
	ns.WaitForShutdown()
	return nil
}

// outsideNATS is a NATS server process, and what it is started with again.
type outsideNATS struct {
	t    *testing.T
	spec natsSpec
	url  string
	cmd  *exec.Cmd
}

func newOutsideNATS(t *testing.T) *outsideNATS {
	t.Helper()
	n := &outsideNATS{t: t, spec: natsSpec{Dir: t.TempDir()}}
	n.start()
	t.Cleanup(n.kill)
	if _, err := fmt.Sscanf(n.url[strings.LastIndex(n.url, ":")+1:], "%d", &n.spec.Port); err != nil {
		t.Fatalf("the NATS server's URL is %q: %v", n.url, err)
	}
	return n
}

func (n *outsideNATS) start() {
	n.t.Helper()
	encoded, err := json.Marshal(n.spec)
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.Command(os.Args[0])
	n.cmd.Env = append(os.Environ(), natsVariable+"="+string(encoded))
	n.cmd.Stderr = os.Stderr
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		n.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		n.t.Fatalf("the NATS server says %q: %v", line, err)
	}
	n.url = strings.TrimSpace(line)
}

func (n *outsideNATS) signal(signal syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(signal); err != nil {
		n.t.Fatal(err)
	}
}

func (n *outsideNATS) kill() {
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
}

// While the event log is away, killed or hanging, bytes go on arriving and are kept; the last request of a file is put off in
// a few seconds, and what was begun ends by itself when the log is back: once.
func TestTheEventLogIsAway(t *testing.T) {
	t.Parallel()
	log := newOutsideNATS(t)
	flags := nodeFlags(t)
	flags.NATSURL, flags.TLSListen = log.url, ""
	node := startChild(t, flags)
	p := node.publisher(t)
	image := append([]byte("hsqs"), make([]byte, 300_000)...)
	versions := 0
	for _, outage := range []struct {
		name       string
		begin, end func()
	}{
		{"killed", log.kill, log.start},
		{"hanging", func() { log.signal(syscall.SIGSTOP) }, func() { log.signal(syscall.SIGCONT) }},
	} {
		versions++
		session := p.open(request("debian", fmt.Sprint(versions), "container", []string{"latest"}, file{format: "rootfs.squashfs", data: image}))
		url := p.create(session, 0, len(image))
		if resp := p.patch(url, 0, image[:100_000]); resp.StatusCode != 204 {
			t.Fatalf("%s: first PATCH: %d", outage.name, resp.StatusCode)
		}
		outage.begin()
		putOff := func(what string, resp *http.Response, began time.Time) {
			t.Helper()
			took := time.Since(began)
			t.Logf("%s: %s: %d after %s", outage.name, what, resp.StatusCode, took.Round(time.Millisecond))
			if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || took > 15*time.Second {
				t.Errorf("%s: %s: %d after %s, Retry-After %q, want 503 in a few seconds", outage.name, what, resp.StatusCode, took, resp.Header.Get("Retry-After"))
			}
		}
		began := time.Now()
		for offset := 100_000; offset < 300_000; offset += 50_000 {
			if resp := p.patch(url, offset, image[offset:offset+50_000]); resp.StatusCode != 204 {
				t.Errorf("%s: PATCH at %d: %d", outage.name, offset, resp.StatusCode)
			}
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: four PATCHes that need no event took %s", outage.name, took)
		}
		if at := p.offset(url); at != 300_000 {
			t.Errorf("%s: offset %d, want all that was sent", outage.name, at)
		}
		began = time.Now()
		putOff("the last PATCH", p.patch(url, 300_000, image[300_000:]), began)
		began = time.Now()
		putOff("a new session", p.call("POST", "/api/images", request("debian", "other", "container", nil, file{format: "rootfs.squashfs", data: image}), nil), began)
		var ready struct {
			NATS struct {
				OK    bool
				Error string
			}
			Postgres struct{ OK bool }
		}
		if resp := p.call("GET", "/readyz", nil, &ready); resp.StatusCode != 503 || ready.NATS.OK || ready.NATS.Error == "" || !ready.Postgres.OK {
			t.Errorf("%s: /readyz says %d, %+v", outage.name, resp.StatusCode, ready)
		}
		outage.end()
		deadline := time.Now().Add(time.Minute)
		for { // as a client does: ask for the offset, which records the file
			resp := p.call("HEAD", url, nil, nil, "Tus-Resumable", "1.0.0")
			if resp.StatusCode == 200 && resp.Header.Get("Upload-Offset") == fmt.Sprint(len(image)) {
				break
			}
			if resp.StatusCode != 503 || time.Now().After(deadline) {
				t.Fatalf("%s: HEAD: %d, offset %s", outage.name, resp.StatusCode, resp.Header.Get("Upload-Offset"))
			}
			time.Sleep(100 * time.Millisecond) // a poll
		}
		if job := p.await(session); job.State != "succeeded" {
			t.Fatalf("%s: job %+v", outage.name, job)
		}
		awaitVersion(t, p, "debian", fmt.Sprint(versions))
	}
	if n := factsOf(t, node, "imgsrv.version.published.v1"); n != versions {
		t.Errorf("%d versions were published by the log, want %d", n, versions)
	}
	if n := factsOf(t, node, "imgsrv.job.succeeded.v1"); n != versions {
		t.Errorf("%d jobs have succeeded by the log, want %d", n, versions)
	}
	verified(t, node)
	node.stop(t)
}
