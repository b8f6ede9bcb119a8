package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	readyPatience = 5 * time.Minute // 1,000,000 events are read at a start
	endPatience   = time.Minute
	restPatience  = 30 * time.Minute // consumers come to each event of a long log
)

// process is a server that the harness has started.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	once sync.Once
	end  os.Signal
	log  string // what it said
	// profiled: SIGUSR1 makes it write its profile.
	profiled bool
}

// start starts a program, whose output goes to a file. The end of the group ends it, if nobody has before.
func (b *bench) start(cmd *exec.Cmd, end os.Signal) (*process, error) {
	out, err := os.CreateTemp(b.dir, filepath.Base(cmd.Path)+"-*.log")
	if err != nil {
		return nil, err
	}
	defer out.Close() //nolint:errcheck // the child has its own
	p := &process{cmd: cmd, done: make(chan struct{}), end: end, log: out.Name()}
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM // should the harness be killed
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	go func() {
		_ = cmd.Wait() // it ends when it is told
		close(p.done)
	}()
	b.after(p.stop)
	return p, nil
}

// stop ends the process in order, or by force after a minute, and waits for its end.
func (p *process) stop() {
	p.once.Do(func() {
		if p.profiled {
			_ = p.cmd.Process.Signal(syscall.SIGUSR1)
			time.Sleep(time.Second)
		}
		_ = p.cmd.Process.Signal(p.end)
		select {
		case <-p.done:
		case <-time.After(endPatience):
			_ = p.cmd.Process.Kill()
			<-p.done
		}
	})
}

// await asks until ready says nil.
func (p *process) await(ctx context.Context, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended while it started: %w; it said: %s", p.cmd.Path, err, tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("%s isn't ready: %w; it said: %s", p.cmd.Path, err, tail(p.log))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// idleShare is the part of a processor that counts as rest.
const idleShare = 0.05

// settle waits until a process rests: what it has to do once, for what happened before, is not what is measured.
func (p *process) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restPatience)
	defer cancel()
	for before := -1.0; ; {
		used, err := cpuOf(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		if before >= 0 && used-before < idleShare {
			return nil
		}
		before = used
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s doesn't come to rest: %w", p.cmd.Path, ctx.Err())
		case <-time.After(time.Second):
		}
	}
}

// cpuOf is how much time the processors have spent on a process, s (proc_pid_stat(5): utime and stime, in hundredths).
func cpuOf(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat says too little", pid)
	}
	user, err := strconv.ParseFloat(fields[11], 64)
	system, systemErr := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100, errors.Join(err, systemErr)
}

func tail(path string) string {
	text, _ := os.ReadFile(path) // for an error's text
	return strings.TrimSpace(string(text[max(0, len(text)-2000):]))
}

// freePort is a port of the loopback that nobody has now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// fromApt finds a program, and installs its Debian package where root runs the harness.
func (b *bench) fromApt(ctx context.Context, program, pkg string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	if os.Geteuid() == 0 {
		b.logf("  installing %s", pkg)
		cmd := exec.CommandContext(ctx, "apt-get", "-q", "install", "-y", "--no-install-recommends", pkg)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("apt-get install %s: %w: %s", pkg, err, out[max(0, len(out)-1000):])
		}
		return exec.LookPath(program)
	}
	return "", fmt.Errorf("%s is missing: install it (Debian: apt install %s)", program, pkg)
}

// fromGo builds a Go program, of the version that imgsrv is made with where it is one of its modules, and keeps it for later runs.
func (b *bench) fromGo(ctx context.Context, module, pkg, version string) (string, error) {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == module {
				version = m.Version
			}
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(cache, "imgsrv-bench", version)
	program := filepath.Join(folder, filepath.Base(strings.TrimSuffix(pkg, "/v2")))
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	b.logf("  building %s@%s", pkg, version)
	cmd := exec.CommandContext(ctx, "go", "install", pkg+"@"+version)
	cmd.Env, cmd.Dir = append(os.Environ(), "GOBIN="+folder, "GOFLAGS="), b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go install %s@%s: %w: %s", pkg, version, err, out[max(0, len(out)-1000):])
	}
	return program, nil
}

// account is who PostgreSQL's programs run as: for root another user, since they refuse root; nil: whoever runs the harness.
func account() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(u.Uid)
	gid, gidErr := strconv.Atoi(u.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, errors.Join(err, gidErr)
}

// memoryOf is what a process takes now and took at most, MB (proc_pid_status(5)).
func memoryOf(pid int) (now, peak float64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			now = kib * 1024 / 1e6
		case "VmHWM:":
			peak = kib * 1024 / 1e6
		}
	}
	return now, peak, nil
}
