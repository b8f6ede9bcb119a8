package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFreshStartGivesASafePrivateServer(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	dataDir := openFolder(t)
	m, err := StartManaged(t.Context(), ManagedConfig{DataDir: dataDir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, m) })
	if want := filepath.Join(dataDir, "postgres"); m.DataDir() != want {
		t.Errorf("server in %s, want %s", m.DataDir(), want)
	}
	got := map[string]string{}
	for _, name := range []string{
		"listen_addresses", "fsync", "full_page_writes", "server_encoding", "lc_collate", "timezone", "unix_socket_permissions",
	} {
		got[name] = ask(t, m.URL(), "SELECT current_setting('"+name+"')")
	}
	got["database"] = ask(t, m.URL(), "SELECT current_database()::text")
	got["ways in other than the socket"] = ask(t, m.URL(), "SELECT count(*)::text FROM pg_hba_file_rules WHERE type <> 'local' AND auth_method <> 'reject'")
	want := map[string]string{
		"listen_addresses": "", "fsync": "on", "full_page_writes": "on", "server_encoding": "UTF8", "lc_collate": "C", "timezone": "UTC",
		"unix_socket_permissions": "0700", "database": "imgsrv", "ways in other than the socket": "0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, folder := range []string{m.layout.home, m.layout.cluster, m.layout.sockets} {
		info, err := os.Stat(folder)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %o, want 700", folder, info.Mode().Perm())
		}
	}
	if pgid, err := syscall.Getpgid(m.process.Pid); err != nil || pgid != m.process.Pid {
		t.Errorf("the server's process group is %d (%v), want its own, %d", pgid, err, m.process.Pid)
	}
	if uid, ok := owner(fmt.Sprintf("/proc/%d", m.process.Pid)); ok && uid == 0 {
		t.Error("the server runs as root")
	}
}

func TestFolderNamesNeedNoCare(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(openFolder(t), `a, "b" [c] %20 'd' ü`)
	m := startServer(t, dataDir)
	keep(t, m.URL())
	stop(t, m)
	checkKept(t, startServer(t, dataDir).URL())
}

func TestStopMayBeCalledAgainAndAtOnce(t *testing.T) {
	t.Parallel()
	m := startServer(t, openFolder(t))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { stop(t, m) })
	}
	all.Wait()
	stop(t, m)
}

func TestStopWithoutTimeStillEndsTheServer(t *testing.T) {
	t.Parallel()
	m := startServer(t, openFolder(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.Stop(ctx); err != nil {
		t.Error(err)
	}
	<-m.Done()
}

// Whenever the start is cancelled, nothing of the server is left and the next start works.
func TestCancelledStartLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	needPrograms(t)
	dataDir := openFolder(t)
	l := layoutAt(filepath.Join(dataDir, "postgres"))
	cancelled := 0
	for _, after := range []time.Duration{0, 30, 100, 200, 350, 500, 700} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		m, err := startManaged(ctx, ManagedConfig{DataDir: dataDir, Disposable: true}, machinePlaces(), t.TempDir())
		cancel()
		if err == nil {
			stop(t, m) // the machine was fast enough
		} else {
			cancelled++
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("cancelled after %d ms: %v, want a deadline", after, err)
			}
		}
		if pids := serverProcesses(l.cluster); len(pids) > 0 {
			t.Errorf("cancelled after %d ms: processes %v are left", after, pids)
		}
		if half, err := filepath.Glob(filepath.Join(l.home, "data.new-*")); err != nil || len(half) > 0 {
			t.Errorf("cancelled after %d ms: %v is left (%v)", after, half, err)
		}
	}
	if cancelled == 0 {
		t.Error("not even a start without any time was cancelled")
	}
	startServer(t, dataDir)
}

func TestHalfMadeClusterOfAKilledStartIsRemoved(t *testing.T) {
	t.Parallel()
	dataDir := openFolder(t)
	half := filepath.Join(dataDir, "postgres", "data.new-1-1")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "PG_VERSION"), []byte("15\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	startServer(t, dataDir)
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want that it is gone", half, err)
	}
}

func TestErrorOfAFailedStartShowsWhatTheServerSaid(t *testing.T) {
	t.Parallel()
	dataDir := openFolder(t)
	m := startServer(t, dataDir)
	stop(t, m)
	conf, err := os.OpenFile(filepath.Join(m.layout.cluster, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = conf.WriteString("work_mem = 'a lot of it'\n")
	if err := errors.Join(err, conf.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = startManaged(t.Context(), ManagedConfig{DataDir: dataDir, Disposable: true}, machinePlaces(), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "a lot of it") || !strings.Contains(err.Error(), m.layout.log) {
		t.Errorf("start with a broken configuration: %v, want the server's message and its log's name", err)
	}
	if pids := serverProcesses(m.layout.cluster); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
}

func TestServerThatEndsByItselfIsReported(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer // written before Done is closed
	dataDir := openFolder(t)
	m := start(t, ManagedConfig{DataDir: dataDir, Disposable: true, Log: slog.New(slog.NewTextHandler(&said, nil))},
		machinePlaces(), t.TempDir())
	if err := m.process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-m.Done()
	if !strings.Contains(said.String(), "level=ERROR") || !strings.Contains(said.String(), m.layout.log) {
		t.Errorf("logged %q, want an error that names the server's log", said.String())
	}
}

func TestLogIsKeptToOneOldOneAndNeverWrittenThroughALink(t *testing.T) {
	t.Parallel()
	dataDir := openFolder(t)
	log := filepath.Join(dataDir, "postgres.log")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(log, maxLogBytes+1); err != nil {
		t.Fatal(err)
	}
	stop(t, startServer(t, dataDir))
	for path, large := range map[string]bool{log: false, log + ".old": true} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Size() > maxLogBytes; got != large || info.Size() == 0 {
			t.Errorf("%s has %d bytes", path, info.Size())
		}
	}
	if err := errors.Join(os.Remove(log), os.Symlink(log+".old", log)); err != nil {
		t.Fatal(err)
	}
	if _, err := startManaged(t.Context(), ManagedConfig{DataDir: dataDir, Disposable: true}, machinePlaces(), t.TempDir()); err == nil {
		t.Error("the server was given a log that is a link")
	}
}

func TestTooLongFolderPutsTheSocketElsewhere(t *testing.T) {
	t.Parallel()
	dataDir := filepath.Join(openFolder(t), strings.Repeat("long", 25))
	m := startServer(t, dataDir)
	u, err := url.Parse(m.URL())
	if err != nil {
		t.Fatal(err)
	}
	sockets := u.Query().Get("host")
	if strings.HasPrefix(sockets, dataDir) || !socketFits(sockets) {
		t.Errorf("the socket is in %s", sockets)
	}
	if m.DataDir() != filepath.Join(dataDir, "postgres") {
		t.Errorf("the server is in %s: only its socket should be elsewhere", m.DataDir())
	}
	keep(t, m.URL())
	stop(t, m)
	if _, err := os.Lstat(sockets); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stopped server left %s (%v)", sockets, err)
	}
	again := startServer(t, dataDir)
	if again.URL() != m.URL() {
		t.Errorf("the second start has its socket at %s, the first had %s", again.URL(), m.URL())
	}
	checkKept(t, again.URL())
}

func TestClosedDataFolderPutsTheServerElsewhere(t *testing.T) {
	t.Parallel()
	needRoot(t)
	closed := openFolder(t)
	if err := os.Chmod(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	dataDir, system := filepath.Join(closed, "imgsrv"), filepath.Join(openFolder(t), "system")
	var said bytes.Buffer
	cfg := ManagedConfig{DataDir: dataDir, Disposable: true, Log: slog.New(slog.NewTextHandler(&said, nil))}
	m := start(t, cfg, machinePlaces(), system)
	if want := filepath.Join(system, shortHash(dataDir), "postgres"); m.DataDir() != want {
		t.Errorf("server in %s, want %s", m.DataDir(), want)
	}
	keep(t, m.URL())
	stop(t, m)
	if !strings.Contains(said.String(), m.DataDir()) {
		t.Errorf("logged %q, want where the server is", said.String())
	}
	cfg.Log = nil
	checkKept(t, start(t, cfg, machinePlaces(), system).URL())
}

func TestRootKeepsTheOwnerOfAServerAndTakesOverItsOwn(t *testing.T) {
	t.Parallel()
	needRoot(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip("this machine has no user nobody")
	}
	uid, err := strconv.Atoi(nobody.Uid)
	if err != nil {
		t.Fatal(err)
	}
	dataDir := openFolder(t)
	home := filepath.Join(dataDir, "postgres")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, uid, -1); err != nil {
		t.Fatal(err)
	}
	m := startServer(t, dataDir)
	keep(t, m.URL())
	if got, ok := owner(m.layout.cluster); !ok || got != uid {
		t.Errorf("the cluster belongs to user %d, want %d", got, uid)
	}
	stop(t, m)
	// As a copy that root made would be; and nothing outside may be touched through a link.
	outside := filepath.Join(dataDir, "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(home, "link")); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(home, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, 0, 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	again := startServer(t, dataDir)
	checkKept(t, again.URL())
	if got, ok := owner(again.layout.cluster); !ok || got == 0 {
		t.Errorf("the cluster belongs to user %d", got)
	}
	if got, ok := owner(outside); !ok || got != 0 {
		t.Errorf("a file outside the server's folder was given to user %d", got)
	}
}

func TestSocketFolderThatIsNotPrivateIsRefused(t *testing.T) {
	t.Parallel()
	acct := account{name: "us", uid: os.Geteuid(), gid: os.Getegid()}
	for name, prepare := range map[string]func(path string) error{
		"a link to a private folder": func(path string) error {
			return errors.Join(os.Mkdir(path+"-real", 0o700), os.Symlink(path+"-real", path))
		},
		"a file":                     func(path string) error { return os.WriteFile(path, nil, 0o700) },
		"a folder that others enter": func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, 0o711)) },
	} {
		path := filepath.Join(t.TempDir(), "sockets")
		if err := prepare(path); err != nil {
			t.Fatal(err)
		}
		if err := acct.private(path); err == nil {
			t.Errorf("%s was taken for the socket", name)
		}
	}
	path := filepath.Join(t.TempDir(), "sockets")
	for range 2 { // made, then found
		if err := acct.private(path); err != nil {
			t.Error(err)
		}
	}
}
