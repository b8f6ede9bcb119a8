// Package vcdiff makes deltas in the form VCDIFF (RFC 3284) and applies them, with the program xdelta3: Incus and LXD apply theirs
// with it. It runs the program with less priority and bounds of time and memory; it knows nothing of images and versions.
package vcdiff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Program is what deltas are made with.
const Program = "xdelta3"

// Errors that callers decide on.
var (
	// ErrAbsent: there is no xdelta3 here.
	ErrAbsent = errors.New(Program + " isn't installed")
	// ErrTooLarge: the delta would be larger than was allowed.
	ErrTooLarge = errors.New("the delta is too large to be worth it")
	// ErrTimeout: it took longer than was allowed.
	ErrTimeout = errors.New("it took too long")
)

// Tool is an xdelta3 that was found, and what one run of it may take.
type Tool struct {
	Path    string        // of the program
	Memory  int64         // bytes of address space; 0: 1 GiB
	Timeout time.Duration // 0: 30 minutes
	Nice    int           // added to this process's niceness; 0: 10
	// Foreign deltas are somebody else's: no other program is started for what they say of compressed files.
	Foreign bool
}

const (
	defaultMemory  = 1 << 30
	defaultTimeout = 30 * time.Minute
	defaultNice    = 10

	smallestWindow = 64 << 20 // xdelta3's own default
	fixedMemory    = 160 << 20
	maxComplaint   = 2 << 10
)

// Find looks for the program in PATH; ErrAbsent where it isn't.
func Find() (*Tool, error) {
	path, err := exec.LookPath(Program)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return &Tool{Path: path}, nil
}

// Version is the program's, such as 3.0.11; "" where it doesn't say.
func (t *Tool) Version(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	said, err := exec.CommandContext(ctx, t.Path, "-V").CombinedOutput() //nolint:gosec // the program's own path
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(said), "\n")
	line, _, _ = strings.Cut(line, ",") // what follows is its copyright
	return strings.TrimPrefix(strings.TrimSpace(line), "Xdelta version ")
}

// Window is how much of a base of so many bytes the encoder keeps in reach, in bytes: all of it where the memory allows, for blocks
// move far in a disk. A base that isn't in reach as a whole costs time and size, not correctness: the decoder reads it at any place.
//
// Measured with xdelta3 3.0.11 and 200 MB, of which a quarter had moved to the end: 52 MB of delta, 0.13 GB and much time with a window of
// 64 MiB; 1 MB of delta, 0.28 GB and less than a second with one of 256 MiB. An encoder takes less than twice its window, and some.
func (t *Tool) Window(baseBytes int64) int64 {
	window := int64(smallestWindow)
	for window < baseBytes && 2*(2*window)+fixedMemory <= t.memory() {
		window *= 2
	}
	return window
}

func (t *Tool) memory() int64 {
	if t.Memory > 0 {
		return t.Memory
	}
	return defaultMemory
}

// Arguments are those of an encoding, with names in place of the files, for people.
func (t *Tool) Arguments(baseBytes int64, base, target string) []string {
	// -D: what looks compressed isn't unpacked first, which a client would have to undo. -A: no names of ours in the delta.
	return []string{"-e", "-1", "-S", "none", "-D", "-A=", "-B", strconv.FormatInt(t.Window(baseBytes), 10), "-c", "-s", base, target}
}

// Encode writes the delta that makes target of base, both regular files, to out; at most maxBytes, else the error is ErrTooLarge. What
// was written by then is nothing. The caller checks the result with Decode.
func (t *Tool) Encode(ctx context.Context, base, target *os.File, out io.Writer, maxBytes int64) error {
	info, err := base.Stat()
	if err != nil {
		return fmt.Errorf("make a delta: %w", err)
	}
	capped := &cappedWriter{w: out, left: maxBytes}
	if err := t.run(ctx, capped, t.Arguments(info.Size(), base.Name(), target.Name())); err != nil {
		return fmt.Errorf("make a delta: %w", err)
	}
	return nil
}

// Decode applies a delta to its base as the clients do, and writes what comes out, at most maxBytes (ErrTooLarge).
func (t *Tool) Decode(ctx context.Context, base, delta *os.File, out io.Writer, maxBytes int64) error {
	capped := &cappedWriter{w: out, left: maxBytes}
	arguments := []string{"-f", "-d", "-c", "-s", base.Name(), delta.Name()}
	if t.Foreign {
		arguments = append([]string{"-D", "-R"}, arguments...)
	}
	if err := t.run(ctx, capped, arguments); err != nil {
		return fmt.Errorf("apply a delta: %w", err)
	}
	return nil
}

func (t *Tool) run(ctx context.Context, out *cappedWriter, arguments []string) error {
	timeout := t.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out.exceeded = cancel
	command := exec.CommandContext(limited, t.Path, arguments...) //nolint:gosec // the program's own path, and files of ours
	command.Env = []string{}                                      // xdelta3 takes further arguments from XDELTA
	command.Stdout = out
	var complaint bytes.Buffer
	command.Stderr = &cappedWriter{w: &complaint, left: maxComplaint, drop: true}
	command.WaitDelay = 5 * time.Second
	dieWithUs(command)
	// The system ends the program with the thread that began it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := command.Start(); err != nil {
		return err
	}
	nice := t.Nice
	if nice == 0 {
		nice = defaultNice
	}
	limitErr := limit(command.Process.Pid, t.memory(), nice)
	if limitErr != nil {
		cancel()
	}
	err := command.Wait()
	switch {
	case out.err != nil:
		return out.err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil:
		return nil // also where it had ended before it could be limited
	case limitErr != nil:
		return limitErr
	case limited.Err() != nil:
		return fmt.Errorf("%w, more than %s", ErrTimeout, timeout)
	}
	return fmt.Errorf("%s: %w: %s", Program, err, strings.TrimSpace(complaint.String()))
}

// cappedWriter takes so many bytes and no more: then it fails, or drops the rest.
type cappedWriter struct {
	w        io.Writer
	left     int64
	drop     bool
	exceeded func() // called once what follows is of no use
	err      error
}

func (c *cappedWriter) Write(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if int64(len(p)) > c.left {
		if !c.drop {
			return 0, c.fail(ErrTooLarge)
		}
		n, err := c.w.Write(p[:c.left])
		c.left -= int64(n)
		return len(p), err
	}
	n, err := c.w.Write(p)
	c.left -= int64(n)
	if err != nil {
		return n, c.fail(err)
	}
	return n, nil
}

func (c *cappedWriter) fail(err error) error {
	c.err = err
	if c.exceeded != nil {
		c.exceeded()
	}
	return err
}
