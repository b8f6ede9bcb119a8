package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	fastStop      = 20 * time.Second // for SIGINT: sessions are ended, a checkpoint is written
	immediateStop = 5 * time.Second  // for SIGQUIT: the server's children are killed, the next start replays the log
	tick          = 20 * time.Millisecond
)

// EndLeftover ends a server that a killed imgsrv left running in dataDir, with its data intact, and removes its lock
// files, so that the next start finds a free cluster. Without such a server it does nothing. A process that isn't
// the server of this very folder is never touched, whatever postmaster.pid says: process numbers are used again.
//
// The caller must hold dataDir for itself (imgsrv locks it): a server that is in use would be ended as well.
// StartManaged does this by itself.
func EndLeftover(ctx context.Context, dataDir string, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dataDir, err := resolve(dataDir)
	if err != nil {
		return err
	}
	return endLeftover(ctx, layoutAt(filepath.Join(dataDir, "postgres")), log)
}

// lockFile is what imgsrv reads of postmaster.pid (src/include/utils/pidfile.h).
type lockFile struct {
	pid   int
	shmID int // System V shared memory segment of the server; -1 when not yet written
}

// readLockFile returns ok false where there is no file, or none that a server wrote.
func readLockFile(cluster string) (lf lockFile, ok bool, err error) {
	text, err := os.ReadFile(filepath.Join(cluster, "postmaster.pid"))
	if errors.Is(err, fs.ErrNotExist) {
		return lockFile{}, false, nil
	}
	if err != nil {
		return lockFile{}, false, fmt.Errorf("read the lock file of the PostgreSQL cluster: %w", err)
	}
	lf, ok = parseLockFile(string(text))
	return lf, ok, nil
}

func parseLockFile(text string) (lockFile, bool) {
	lines := strings.Split(text, "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 1 { // 0, 1 and negative numbers would address whole groups or init
		return lockFile{}, false
	}
	lf := lockFile{pid: pid, shmID: -1}
	if len(lines) > 6 { // line 7: key and id of the segment
		if f := strings.Fields(lines[6]); len(f) == 2 {
			if id, err := strconv.Atoi(f[1]); err == nil {
				lf.shmID = id
			}
		}
	}
	return lf, true
}

func endLeftover(ctx context.Context, l layout, log *slog.Logger) error {
	if !hasProc() {
		// Nothing tells whose process a number is. PostgreSQL's own lock files then decide, and its message, which the failed
		// start shows, names the process to end.
		return nil
	}
	lf, locked, err := readLockFile(l.cluster)
	if err != nil {
		return err
	}
	if locked {
		// The handle pins the process (a pidfd) before we look at it, so the signal can't hit a later one of that number.
		p, err := os.FindProcess(lf.pid)
		if err == nil && isPostmaster(lf.pid, l.cluster) {
			log.Warn("a PostgreSQL server was left by an earlier run; ending it", "pid", lf.pid, "postgres_dir", l.home)
			err = endProcess(ctx, p)
			if err != nil {
				return fmt.Errorf("end the PostgreSQL server (process %d) that an earlier run left: %w", lf.pid, err)
			}
		}
		if p != nil {
			_ = p.Release() // only gives the handle back
		}
	}
	// Server processes outlive a postmaster that was killed for as long as they are busy. A second server beside them would
	// destroy data.
	if err := endBackends(ctx, l.cluster, log); err != nil {
		return err
	}
	if locked {
		if err := waitDetached(ctx, lf.shmID); err != nil {
			return err
		}
	}
	// Nobody uses the cluster now. A lock file whose number belongs to some other process of the same user by now would
	// make postgres refuse to start.
	for _, path := range []string{
		filepath.Join(l.cluster, "postmaster.pid"), filepath.Join(l.sockets, socketName), filepath.Join(l.sockets, socketName+".lock"),
	} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove a lock file of an earlier PostgreSQL server: %w", err)
		}
	}
	return nil
}

// hasProc says whether there is a /proc like Linux's.
func hasProc() bool {
	_, err := os.Stat("/proc/self/stat")
	return err == nil
}

// isPostmaster says whether a process is a postgres server that works in the given cluster: its executable is
// called postgres and its working folder, which a server never changes, is the cluster.
//
// Both links are closed to a root without CAP_SYS_PTRACE (a usual container) when the process belongs to another user.
// Then the command line decides: of all server processes only the postmaster keeps its own, and ours was given -D.
func isPostmaster(pid int, cluster string) bool {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	exe, err := os.Readlink(filepath.Join(proc, "exe"))
	if err == nil {
		cwd, err := os.Readlink(filepath.Join(proc, "cwd"))
		return err == nil && isServerProgram(exe) && sameFolder(cwd, cluster)
	}
	if !errors.Is(err, fs.ErrPermission) {
		return false // gone, a zombie or a thread of the kernel
	}
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return false
	}
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimRight(line, "\x00"), []byte{0}) {
		args = append(args, string(arg))
	}
	i := slices.Index(args, "-D")
	return isServerProgram(args[0]) && i > 0 && i+1 < len(args) && sameFolder(args[i+1], cluster)
}

func isServerProgram(exe string) bool {
	// The kernel adds the suffix when a package upgrade replaced the file under the running server.
	name := filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	return name == "postgres" || name == "postmaster"
}

func sameFolder(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// endProcess ends a server: fast, then immediate, then by force; the write-ahead log keeps the data whole in each case.
func endProcess(ctx context.Context, p *os.Process) error {
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{syscall.SIGINT, fastStop}, {syscall.SIGQUIT, immediateStop}, {syscall.SIGKILL, immediateStop}} {
		if err := p.Signal(step.sig); errors.Is(err, os.ErrProcessDone) {
			return nil
		} else if err != nil {
			return err
		}
		gone, err := waitUntil(ctx, step.wait, func() bool { return !running(p) })
		if gone || err != nil {
			return err
		}
	}
	return errors.New("it survived SIGKILL")
}

// running is false for a zombie as well: where process 1 doesn't collect orphans, as in many containers, a dead server
// keeps its number.
func running(p *os.Process) bool {
	if err := p.Signal(syscall.Signal(0)); err != nil {
		return !errors.Is(err, os.ErrProcessDone)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid))
	if err != nil {
		return false
	}
	// proc_pid_stat(5): the state follows the program's name, which may itself hold parentheses.
	_, state, _ := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(" "))
	return !bytes.HasPrefix(state, []byte("Z")) && !bytes.HasPrefix(state, []byte("X"))
}

// endBackends ends the server processes in a cluster that has no postmaster any more. They notice by themselves as
// soon as they wait for anything.
func endBackends(ctx context.Context, cluster string, log *slog.Logger) error {
	for _, step := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{0, time.Second}, {syscall.SIGQUIT, immediateStop}, {syscall.SIGKILL, immediateStop}} {
		if step.sig != 0 {
			for _, pid := range serverProcesses(cluster) {
				p, err := os.FindProcess(pid)
				if err != nil {
					continue
				}
				if isPostmaster(pid, cluster) { // looked at again with the process pinned
					log.Warn("a process of an earlier PostgreSQL server is still at work; ending it", "pid", pid, "signal", step.sig)
					err = p.Signal(step.sig)
				}
				_ = p.Release() // only gives the handle back
				if err != nil && !errors.Is(err, os.ErrProcessDone) {
					return fmt.Errorf("end process %d of an earlier PostgreSQL server: %w", pid, err)
				}
			}
		}
		gone, err := waitUntil(ctx, step.wait, func() bool { return len(serverProcesses(cluster)) == 0 })
		if gone || err != nil {
			return err
		}
	}
	return fmt.Errorf("processes %v of an earlier PostgreSQL server in %s do not end", serverProcesses(cluster), cluster)
}

// serverProcesses lists the postgres processes that work in a cluster, as far as /proc shows them to us.
func serverProcesses(cluster string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && isPostmaster(pid, cluster) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// waitDetached waits until no process is attached to a System V shared memory segment: postgres keeps a small one for
// just this question, and refuses to start while another process has it. The table is readable for everybody, so this
// also works where /proc hides the processes themselves.
func waitDetached(ctx context.Context, shmID int) error {
	if shmID < 0 {
		return nil
	}
	gone, err := waitUntil(ctx, fastStop, func() bool {
		table, err := os.ReadFile("/proc/sysvipc/shm")
		return err != nil || attached(string(table), shmID) == 0
	})
	if err == nil && !gone {
		err = fmt.Errorf("processes of an earlier PostgreSQL server still hold its shared memory (segment %d, see ipcs -m): end them", shmID)
	}
	return err
}

// attached reads from the text of /proc/sysvipc/shm (sysvipc(5)) how many processes have a segment attached.
func attached(table string, shmID int) int {
	for line := range strings.Lines(table) {
		f := strings.Fields(line) // key shmid perms size cpid lpid nattch …
		if len(f) > 6 && f[1] == strconv.Itoa(shmID) {
			n, err := strconv.Atoi(f[6])
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// waitUntil looks at a condition that nothing signals until it holds, the time is over (false) or the context ends.
func waitUntil(ctx context.Context, limit time.Duration, done func() bool) (bool, error) {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		if done() {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("wait for an earlier PostgreSQL server to end: %w", context.Cause(ctx))
		case <-timeout.C:
			return done(), nil
		case <-ticker.C:
		}
	}
}
