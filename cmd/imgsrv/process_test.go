package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/backup"
)

// childVariable turns the test binary into a node of a process of its own, which can be killed.
const childVariable = "IMGSRV_TEST_CHILD"

// childSpec says what node the child runs, and where it comes to harm.
type childSpec struct {
	Flags ServerFlags // those that startChild is given
	// KillAt, where not empty, makes the process kill itself when a job reaches that step for the first time.
	KillAt events.Step
	// HoldAt, where not empty, makes the first process of a storage folder that reaches this step wait there until the test lets it go
	// on; see [hold].
	HoldAt events.Step
	// KillWhenDeriving makes the process kill itself when a tool is writing a further format.
	KillWhenDeriving bool
	// OpenFiles, where not 0, is how many files the process may have open.
	OpenFiles uint64
	// KillInBackup makes the process kill itself when it has copied some bytes of the blobs to a backup.
	KillInBackup bool
	// Env is added to the environment of the process.
	Env []string
	// CertInterval, where not 0, is how often the certificates' files are looked at.
	CertInterval time.Duration
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(natsVariable); spec != "" {
		fmt.Fprintln(os.Stderr, "child NATS server:", runNATS(spec))
		os.Exit(1)
	}
	if spec := os.Getenv(childVariable); spec != "" {
		if err := runChild(spec); err != nil {
			fmt.Fprintln(os.Stderr, "child node:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runChild starts the node, writes it to standard output as a line of JSON, and serves until SIGTERM.
func runChild(encoded string) error {
	var spec childSpec
	if err := json.Unmarshal([]byte(encoded), &spec); err != nil {
		return err
	}
	if spec.OpenFiles != 0 {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: spec.OpenFiles, Max: spec.OpenFiles}); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	hooks := testHooks{certInterval: spec.CertInterval}
	if spec.KillAt != "" {
		hooks.stepStarted = func(_ string, step events.Step) {
			// The mark outlives the process, as nothing else of it does.
			mark := filepath.Join(spec.Flags.DataDir, "killed-at-"+string(step))
			if _, err := os.Stat(mark); step != spec.KillAt || err == nil {
				return
			}
			if err := os.WriteFile(mark, nil, 0o600); err != nil {
				panic(err)
			}
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // the signal is on its way
		}
	}
	if spec.HoldAt != "" {
		hooks.stepStarted = func(_ string, step events.Step) { hold(spec, step) }
	}
	if spec.KillInBackup {
		hooks.backupTold = func(p backup.Progress) {
			if p.Stage == "blobs" && p.Done > 0 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // the signal is on its way
			}
		}
	}
	if spec.KillWhenDeriving {
		written := filepath.Join(spec.Flags.StorageDir, "cas", "tmp", ".scratch-*", "disk.compressed.qcow2")
		hooks.deriveStarted = func(events.Derived) {
			go func() {
				for {
					if there, _ := filepath.Glob(written); len(there) > 0 {
						_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
					}
					time.Sleep(time.Millisecond)
				}
			}()
		}
	}
	node, err := startNode(ctx, spec.Flags, spec.Flags.logger(os.Stderr), hooks)
	if err != nil {
		return err
	}
	node.reloadOn(hangup)
	if err := json.NewEncoder(os.Stdout).Encode(node); err != nil {
		return err
	}
	return errors.Join(node.Wait(ctx), node.Stop())
}

// child is a node in a process of its own.
type child struct {
	Node // what it said of itself
	cmd  *exec.Cmd
	done chan struct{}
}

// startChild starts a node, with what a spec adds to it, and waits until it serves.
func startChild(t *testing.T, flags ServerFlags, more ...childSpec) *child {
	t.Helper()
	var spec childSpec
	if len(more) > 0 {
		spec = more[0]
	}
	spec.Flags = flags
	encoded, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	c.cmd.Env = append(append(os.Environ(), childVariable+"="+string(encoded)), spec.Env...)
	c.cmd.Stderr = os.Stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	line := make(chan []byte, 1)
	go func() {
		defer close(c.done)
		scanner := bufio.NewScanner(out)
		for scanner.Scan() {
			line <- append([]byte(nil), scanner.Bytes()...)
		}
		_ = c.cmd.Wait() // killed as often as not
	}()
	select {
	case text := <-line:
		if err := json.Unmarshal(text, &c.Node); err != nil {
			t.Fatalf("the child says %q: %v", text, err)
		}
	case <-c.done:
		t.Fatal("the child ended before it was ready")
	case <-time.After(2 * time.Minute):
		t.Fatal("the child was not ready after two minutes")
	}
	return c
}

// kill ends the process with SIGKILL and waits for its end.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	<-c.done
}

// waitEnd waits until the process has ended by itself.
func (c *child) waitEnd(t *testing.T) {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(time.Minute):
		t.Fatal("the process goes on living")
	}
}

// stop ends the process in order.
func (c *child) stop(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	c.waitEnd(t)
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}
