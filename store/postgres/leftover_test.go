package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

func needProc(t *testing.T) {
	t.Helper()
	if !hasProc() {
		t.Skip("only with Linux's /proc can a leftover server be told from other processes")
	}
}

func TestServerLeftRunningIsEndedAndItsDataKept(t *testing.T) {
	t.Parallel()
	needProc(t)
	dataDir := openFolder(t)
	forgotten := startServer(t, dataDir)
	keep(t, forgotten.URL())
	// A session that nobody closes must not hold the shutdown up.
	conn, err := pgx.Connect(t.Context(), forgotten.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) }) // broken by then
	m := startServer(t, dataDir)
	select {
	case <-forgotten.Done():
	default:
		t.Error("the earlier server still runs")
	}
	checkKept(t, m.URL())
}

// The postmaster is killed while one of its sessions computes and so does not notice.
func TestBusySessionOfAKilledServerIsEndedBeforeANewServerStarts(t *testing.T) {
	t.Parallel()
	needProc(t)
	dataDir := openFolder(t)
	killed := startServer(t, dataDir)
	keep(t, killed.URL())
	conn, err := pgx.Connect(t.Context(), killed.URL())
	if err != nil {
		t.Fatal(err)
	}
	busy := int(conn.PgConn().PID())
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", busy)); err != nil {
		t.Skipf("this machine hides the sessions of a server from root (no CAP_SYS_PTRACE), so they can't be ended: %v", err)
	}
	t.Cleanup(func() {
		if slices.Contains(serverProcesses(killed.layout.cluster), busy) { // only after a failure
			if err := syscall.Kill(busy, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}
	})
	ended := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.WithoutCancel(t.Context()), `SELECT sum(i) FROM generate_series(1, 1000000000000) i`)
		ended <- err
	}()
	// Until the server itself says that the query runs.
	watcher, err := pgx.Connect(t.Context(), killed.URL())
	if err != nil {
		t.Fatal(err)
	}
	for active := false; !active; {
		err := watcher.QueryRow(t.Context(), `SELECT state = 'active' AND query LIKE 'SELECT sum%' FROM pg_stat_activity WHERE pid = $1`, busy).Scan(&active)
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := killed.process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-killed.Done()
	_ = watcher.Close(t.Context()) // broken

	m := startServer(t, dataDir)
	if err := <-ended; !IsUnavailable(err) {
		t.Errorf("the session of the killed server ended with %v", err)
	}
	checkKept(t, m.URL())
	if slices.Contains(serverProcesses(m.layout.cluster), busy) {
		t.Error("the session of the killed server still runs")
	}
}

func TestProcessThatGotTheNumberOfAnEndedServerIsSpared(t *testing.T) {
	t.Parallel()
	needProc(t)
	dataDir, otherDir := openFolder(t), openFolder(t)
	m := startServer(t, dataDir)
	keep(t, m.URL())
	stop(t, m)
	other := startServer(t, otherDir)

	// Of the server's own user: of such a process PostgreSQL itself would believe that it is the server.
	acct, err := serverAccount(m.layout.home)
	if err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "3600")
	sleeper.Dir = m.layout.cluster // even with the right folder it is no postgres
	sleeper.SysProcAttr = acct.sysProcAttr()
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	slept := make(chan struct{})
	go func() {
		defer close(slept)
		_ = sleeper.Wait() // killed below
	}()
	t.Cleanup(func() {
		if err := sleeper.Process.Kill(); err != nil {
			t.Error(err)
		}
		<-slept
	})
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}

	for name, pid := range map[string]int{
		"a process that is no postgres":   sleeper.Process.Pid,
		"the postgres of another cluster": other.process.Pid,
		"this process":                    os.Getpid(),
		"no process":                      gone.Process.Pid,
	} {
		text := fmt.Sprintf("%d\n%s\n1700000000\n5432\n%s\n\n", pid, m.layout.cluster, m.layout.sockets)
		for _, path := range []string{filepath.Join(m.layout.cluster, "postmaster.pid"), filepath.Join(m.layout.sockets, socketName+".lock")} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(path, acct.uid, acct.gid); err != nil {
				t.Fatal(err)
			}
		}
		again := startServer(t, dataDir)
		checkKept(t, again.URL())
		stop(t, again)
		select {
		case <-slept:
			t.Fatalf("postmaster.pid names %s: it was ended", name)
		case <-other.Done():
			t.Fatalf("postmaster.pid names %s: it was ended", name)
		default:
		}
	}
	if got := ask(t, other.URL(), `SELECT 'well'`); got != "well" {
		t.Errorf("the other server says %q", got)
	}
}

func TestEndLeftoverEndsTheServerOfItsFolderOnly(t *testing.T) {
	t.Parallel()
	needProc(t)
	dataDir, otherDir := openFolder(t), openFolder(t)
	m, other := startServer(t, dataDir), startServer(t, otherDir)
	for range 2 { // with a server, and without one
		if err := EndLeftover(t.Context(), dataDir, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := EndLeftover(t.Context(), openFolder(t), nil); err != nil {
		t.Errorf("in an empty folder: %v", err)
	}
	<-m.Done()
	if got := ask(t, other.URL(), `SELECT 'well'`); got != "well" {
		t.Errorf("the other server says %q", got)
	}
}

func FuzzParseLockFile(f *testing.F) {
	f.Add("4711\n/var/lib/x/data\n1700000000\n5432\n/var/lib/x/run\n\n  39912345        32\nready   \n")
	f.Add("-4711\n")
	f.Add("1\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		lf, ok := parseLockFile(text)
		if !ok {
			if lf != (lockFile{}) {
				t.Errorf("refused, yet %+v", lf)
			}
			return
		}
		if lf.pid <= 1 {
			t.Errorf("%q would address process %d", text, lf.pid)
		}
		first, _, _ := strings.Cut(text, "\n")
		if n, err := strconv.Atoi(strings.TrimSpace(first)); err != nil || n != lf.pid {
			t.Errorf("%q gives process %d", text, lf.pid)
		}
	})
}

func TestLockFileOfARunningServerIsUnderstood(t *testing.T) {
	t.Parallel()
	m := startServer(t, openFolder(t))
	lf, ok, err := readLockFile(m.layout.cluster)
	if err != nil || !ok {
		t.Fatalf("lock file: %v, %v", ok, err)
	}
	if lf.pid != m.process.Pid {
		t.Errorf("process %d, want %d", lf.pid, m.process.Pid)
	}
	table, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Skipf("no table of shared memory: %v", err)
	}
	if attached(string(table), lf.shmID) == 0 {
		t.Errorf("the running server has no process attached to segment %d:\n%s", lf.shmID, table)
	}
	stop(t, m)
	if table, err = os.ReadFile("/proc/sysvipc/shm"); err != nil {
		t.Fatal(err)
	}
	if n := attached(string(table), lf.shmID); n != 0 {
		t.Errorf("after the stop %d processes are attached", n)
	}
}
