package crash

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of these tests: for what takes milliseconds, on a machine that may be busy.
const patience = 90 * time.Second

var (
	buildOnce sync.Once
	buildErr  error
	buildDir  string
)

func TestMain(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		_ = os.RemoveAll(buildDir) // in a temporary folder
	}
	os.Exit(code)
}

// program builds imgsrv with the places of package faults in it, once.
func program(t *testing.T) string {
	t.Helper()
	buildOnce.Do(func() {
		if buildDir, buildErr = os.MkdirTemp("", "imgsrv-crash-"); buildErr != nil {
			return
		}
		build := exec.Command("go", "build", "-tags", "faults", "-o", filepath.Join(buildDir, "imgsrv"), "../../cmd/imgsrv")
		if out, err := build.CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("build imgsrv: %w: %s", err, out)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return filepath.Join(buildDir, "imgsrv")
}

// server is a running imgsrv.
type server struct {
	cmd   *exec.Cmd
	base  string        // of its URLs
	ended chan struct{} // closed when the process has ended
	log   lockedBuffer
}

// lockedBuffer is what a process has said.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// startServer starts imgsrv and returns when it serves or has ended.
func startServer(t *testing.T, flags []string, environment ...string) *server {
	t.Helper()
	s := &server{ended: make(chan struct{})}
	s.cmd = exec.Command(program(t), append([]string{"start"}, flags...)...)
	s.cmd.Env = append(os.Environ(), environment...)
	s.cmd.Stderr = &s.log
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		defer close(s.ended)
		base := ""
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if fields := strings.Fields(lines.Text()); len(fields) == 2 && fields[0] == "HTTP" {
				base = fields[1]
			}
			if strings.HasPrefix(lines.Text(), "Ctrl-C") {
				ready <- base
			}
		}
		_, _ = io.Copy(io.Discard, out) // a line too long for the scanner
		_ = s.cmd.Wait()                // killed as often as not
	}()
	select {
	case s.base = <-ready:
	case <-s.ended:
	case <-time.After(patience):
		s.kill()
		t.Fatalf("no server is ready after %s:\n%s", patience, s.log.String())
	}
	return s
}

// kill ends the process with SIGKILL and waits for its end.
func (s *server) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
}

// alive says whether the process has not ended.
func (s *server) alive() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// wasKilled says whether the process, which has ended, was ended by SIGKILL.
func (s *server) wasKilled() bool {
	status, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// stop ends the process in order.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.kill()
		t.Fatalf("SIGTERM doesn't end the server:\n%s", s.log.String())
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after SIGTERM:\n%s", code, s.log.String())
	}
}
