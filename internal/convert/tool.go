package convert

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	toolName = "qemu-img"
	// niceness is that of the tool: what clients wait for goes first.
	niceness = 10
	// maxOutput bounds what is kept of the tool's words, in bytes.
	maxOutput = 64 << 10
)

// Converter makes formats.
type Converter struct {
	limits Limits

	mu       sync.Mutex
	probed   bool
	isolated isolation
}

// New makes a converter. It looks for its tool with each work, so that one that is installed meanwhile is found.
func New(limits Limits) *Converter { return &Converter{limits: limits} }

// tool is qemu-img as it was found.
type tool struct {
	path     string
	version  string
	memory   int64
	isolated isolation
}

// exitError is the end of a tool with an error. It unwraps to an [*Error].
type exitError struct {
	status int
	err    *Error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// Isolated says whether the tool runs without a network, after its first run.
func (c *Converter) Isolated() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isolated != notIsolated
}

// find looks for the tool, asks for its version, and finds out how far it can be shut in.
func (c *Converter) find(ctx context.Context) (*tool, error) {
	path, err := exec.LookPath(toolName)
	if err != nil {
		return nil, &Error{CodeToolAbsent, toolName + " is not installed on the server (Debian: qemu-utils)"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &tool{path: path, memory: c.limits.MemoryBytes, isolated: c.isolated}
	ways := []isolation{c.isolated}
	if !c.probed {
		ways = isolations()
	}
	for _, t.isolated = range ways {
		var said []byte
		if said, err = t.run(ctx, os.TempDir(), "--version"); err == nil {
			line, _, _ := strings.Cut(string(said), "\n")
			t.version = strings.TrimPrefix(line, "qemu-img version ")
			c.probed, c.isolated = true, t.isolated
			return t, nil
		}
	}
	return nil, err
}

// limited sets the bounds and becomes the tool: $1 is its address space in KiB or unlimited. POSIX sh knows no
// bound of memory but this one, which no program can get around.
// The tool's threads, of which it may begin dozens, share that space: each gets a small stack, and no arena of the
// allocator of its own (see MALLOC_ARENA_MAX below), which takes 64 MiB.
const limited = `ulimit -c 0 && ulimit -s 1024 && ulimit -v "$1" && shift && exec "$@"`

// run runs the tool in a folder until it ends or the context does, and gives what it wrote. It dies with us.
func (t *tool) run(ctx context.Context, dir string, arguments ...string) ([]byte, error) {
	memory := "unlimited"
	if t.memory > 0 {
		memory = strconv.FormatInt(t.memory>>10, 10)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", limited, "sh", memory, t.path}, arguments...)...) //nolint:gosec // arguments are names that were checked
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "MALLOC_ARENA_MAX=2", "TMPDIR=" + dir}
	var out, words capped
	cmd.Stdout, cmd.Stderr = &out, &words
	cmd.SysProcAttr = t.isolated.attributes()
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	// The kernel ends the child with the thread that began it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, &Error{CodeToolFailed, fmt.Sprintf("start %s: %v", toolName, err)}
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, niceness) // as fast as it is allowed, then
	err := cmd.Wait()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		why := strings.TrimSpace(strings.ReplaceAll(words.String(), dir+"/", ""))
		if why == "" {
			why = exit.String()
		}
		return nil, &exitError{exit.ExitCode(), &Error{CodeToolFailed, fmt.Sprintf("%s %s: %s", toolName, arguments[0], why)}}
	}
	if err != nil {
		return nil, &Error{CodeToolFailed, fmt.Sprintf("%s %s: %v", toolName, arguments[0], err)}
	}
	return out.Bytes(), nil
}

// capped keeps the beginning of what is written.
type capped struct{ bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	if room := maxOutput - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
