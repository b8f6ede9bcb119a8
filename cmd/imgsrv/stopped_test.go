package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/pgtest"
)

const (
	heldMark    = "held" // holds the process's id
	releaseMark = "go on"
)

// hold waits in a step, if nobody else does, until the test says to go on.
func hold(spec childSpec, step events.Step) {
	if step != spec.HoldAt {
		return
	}
	mark, err := os.OpenFile(filepath.Join(spec.Flags.StorageDir, heldMark), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return
	}
	if err == nil {
		_, err = fmt.Fprintf(mark, "%d\n", os.Getpid())
	}
	if err = errors.Join(err, mark.Close()); err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(spec.Flags.StorageDir, releaseMark)); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// awaitHeld waits until a process holds, and gives its id.
func awaitHeld(t *testing.T, storage string) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(storage, heldMark))
		if err == nil && bytes.HasSuffix(text, []byte("\n")) {
			id, err := strconv.Atoi(string(bytes.TrimSpace(text)))
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
	}
	t.Fatal("no node has come to the step")
	return 0
}

// natsServer is one in this process, for nodes that share it.
func natsServer(t *testing.T) (url string) {
	t.Helper()
	return startNATS(t, natsOptions(t)).ClientURL()
}

func natsOptions(t *testing.T) *natsserver.Options {
	return &natsserver.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true}
}

func startNATS(t *testing.T, options *natsserver.Options) *natsserver.Server {
	t.Helper()
	ns, err := natsserver.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	go ns.Start()
	t.Cleanup(func() { ns.Shutdown(); ns.WaitForShutdown() })
	if !ns.ReadyForConnections(30 * time.Second) {
		t.Fatal("the NATS server doesn't come up")
	}
	return ns
}

// eventsOf reads all events of a NATS server.
func eventsOf(t *testing.T, url string) (all []events.Event) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	log, err := jetstream.Open(t.Context(), nc, jetstream.Config{Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
	if err != nil {
		t.Fatal(err)
	}
	head, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Read(t.Context(), head, nil, func(e events.Event) error { all = append(all, e); return nil }); err != nil {
		t.Fatal(err)
	}
	return all
}

// Of two nodes on the same stores one is stopped in the middle of a step, with SIGSTOP: it lives, and says nothing. The other takes the
// step over, and the projections; the stopped one goes on later, and does no harm.
func TestAStepOfAStoppedNodeIsTakenOver(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.TLSListen, flags.NATSURL, flags.StorageDir, flags.PostgresURL = "", natsServer(t), t.TempDir(), pgtest.URL(t)
	var nodes []*child
	for range 2 {
		flags.DataDir = t.TempDir()
		nodes = append(nodes, startChild(t, flags, childSpec{HoldAt: events.StepMaterialize}))
	}
	image := qcow2Image(t, 300_000)
	first := nodes[0].publisher(t)
	body := vm("debian", "1", []string{"latest"}, file{format: "disk.qcow2", data: image})
	session := first.open(body)
	first.upload(session, file{format: "disk.qcow2", data: image})

	id := awaitHeld(t, flags.StorageDir)
	stopped, other := nodes[0], nodes[1]
	if id != stopped.cmd.Process.Pid {
		stopped, other = other, stopped
	}
	if id != stopped.cmd.Process.Pid {
		t.Fatalf("process %d is none of the two", id)
	}
	if err := stopped.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	p := other.publisher(t)
	session.StatusURL = "/api/uploads/" + session.ID
	job := p.await(session)
	if job.State != "succeeded" {
		t.Fatalf("job %+v", job)
	}
	t.Logf("the other node had published %.1f s after the first was stopped", time.Since(began).Seconds())
	download := func(version string) {
		t.Helper()
		path := "/api/images/debian/versions/" + version + "/variants/amd64.virtual-machine.default/formats/disk.qcow2"
		eventually(t, func() string {
			var got []byte
			resp := p.call("GET", path, nil, &got)
			if resp.StatusCode == 200 && bytes.Equal(got, image) {
				return ""
			}
			return fmt.Sprintf("version %s: %d, %d bytes", version, resp.StatusCode, len(got))
		})
	}
	download("latest")
	t.Logf("its projections had it after %.1f s", time.Since(began).Seconds())

	if err := stopped.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(flags.StorageDir, releaseMark), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// The one that was stopped has to do this one alone.
	other.stop(t)
	p = stopped.publisher(t)
	p.publish(vm("debian", "2", nil, file{format: "disk.qcow2", data: image}), file{format: "disk.qcow2", data: image})
	download("1")
	succeeded := map[string]int{}
	for _, e := range eventsOf(t, flags.NATSURL) {
		if fact, ok := e.Fact.(events.JobSucceeded); ok {
			succeeded[fact.ID]++
		}
	}
	if n := succeeded[events.JobIDFor(session.ID)]; n != 1 || len(succeeded) != 2 {
		t.Errorf("the job succeeded %d times, and %d jobs did", n, len(succeeded))
	}
	stopped.stop(t)
	for _, folder := range []string{"uploads", "ingress/jobs"} {
		entries, err := os.ReadDir(filepath.Join(flags.StorageDir, folder))
		if err != nil || len(entries) != 0 {
			t.Errorf("%s holds %v (%v)", folder, entries, err)
		}
	}
}
