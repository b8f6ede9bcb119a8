package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/imgsrv/imgsrv/store/postgres"
)

const folderPrefix = "imgsrv-pgtest-"

// startLocal starts a private server in a folder of its own. Nobody stops it: a watchdog does when this process ends,
// and where the watchdog was killed too, the next test process that comes here does.
func startLocal(ctx context.Context) (*instance, error) {
	base := baseFolder()
	sweep(ctx, base)
	folder, lock, err := claim(base)
	if err != nil {
		return nil, fmt.Errorf("claim a folder for the test server: %w", err)
	}
	// Before the server, so that there is no moment at which a dying test process leaves one behind.
	alive, err := startWatchdog(folder)
	if err != nil {
		return nil, fmt.Errorf("start the watchdog of the test server: %w", err)
	}
	m, err := postgres.StartManaged(ctx, postgres.ManagedConfig{DataDir: folder, Disposable: true})
	if err != nil {
		return nil, errors.Join(err, alive.Close(), lock.Close()) // the watchdog removes the folder
	}
	return &instance{url: m.URL(), signs: []*os.File{lock, alive}}, nil
}

// minFree is the free space, in bytes, from which a file system in memory takes the test server: a new cluster has 40 MB, and
// several test processes run at once.
const minFree = 4 << 30

// baseFolder is a short name (a socket's path is at most 107 bytes) that the server's user can reach; so not $TMPDIR,
// which root may keep for itself. In memory, where there is room, no server waits for a disk that compilers keep busy.
func baseFolder() string {
	var st syscall.Statfs_t
	if err := syscall.Statfs("/dev/shm", &st); err == nil && uint64(st.Bavail)*uint64(st.Bsize) >= minFree {
		return "/dev/shm"
	}
	if info, err := os.Stat("/tmp"); err == nil && info.IsDir() {
		return "/tmp"
	}
	return os.TempDir()
}

// claim makes a folder that is marked as in use until the returned file is closed: by a lock on it, beside the folder.
// The kernel gives the lock back in whatever way the process ends, and no child inherits it.
func claim(base string) (folder string, lock *os.File, err error) {
	for {
		folder = filepath.Join(base, folderPrefix+strings.ToLower(rand.Text()[:10]))
		lock, err = os.OpenFile(folder+".lock", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return "", nil, err
		}
		held, err := tryLock(lock)
		if held && err == nil {
			err = os.Mkdir(folder, 0o711)
			if err == nil {
				return folder, lock, nil
			}
		}
		// Without an error another process swept the file between its making and its locking.
		if err := errors.Join(err, lock.Close()); err != nil {
			return "", nil, err
		}
	}
}

// tryLock takes the lock, and says whether it did and the file still has its name.
func tryLock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(f.Name())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	opened, err := f.Stat()
	return err == nil && os.SameFile(named, opened), err
}

// sweep removes what dead test processes of this user left. What can't be removed now, as when their watchdog is at it
// at this moment, is no reason to fail tests: it stays marked, and the next test process tries again.
func sweep(ctx context.Context, base string) {
	locks, err := filepath.Glob(filepath.Join(base, folderPrefix+"*.lock"))
	if err != nil {
		return
	}
	for _, path := range locks {
		_ = sweepOne(ctx, path)
	}
}

func sweepOne(ctx context.Context, path string) (err error) {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || !mine(info) {
		return nil
	}
	lock, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if held, err := tryLock(lock); err != nil || !held {
		return err
	}
	folder := strings.TrimSuffix(path, ".lock")
	if info, err := os.Lstat(folder); err == nil && mine(info) {
		if err := postgres.EndLeftover(ctx, folder, nil); err != nil {
			return err
		}
		if err := os.RemoveAll(folder); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

func mine(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// watchdog reads from a pipe that nobody ever writes to: it comes to its end when the test process does. Then it ends the
// server, which has nothing to save, and removes the folder.
const watchdog = `
read -r _
folder=$1
pidfile=$folder/postgres/data/postmaster.pid
pid=$(head -n 1 "$pidfile" 2>/dev/null)
if [ -n "$pid" ]; then
	kill -QUIT "$pid" 2>/dev/null
	n=0
	# It removes the file last; where nobody collects the dead, its number stays.
	while [ -e "$pidfile" ] && kill -0 "$pid" 2>/dev/null && [ $n -lt 200 ]; do sleep 0.05; n=$((n + 1)); done
fi
n=0
until rm -rf "$folder" 2>/dev/null && [ ! -e "$folder" ] || [ $n -ge 50 ]; do sleep 0.1; n=$((n + 1)); done
[ -e "$folder" ] || rm -f "$folder.lock"
`

// startWatchdog starts the process that outlives this one by a moment; it acts when the returned file is closed, which
// the end of this process does. It has a process group of its own, so that a Ctrl-C doesn't hit it, and no part of our
// standard streams, or `go test` would wait for it.
func startWatchdog(folder string) (alive *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/bin/sh", "-c", watchdog, "watchdog", folder)
	cmd.Stdin = r
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(cmd.Start(), r.Close()); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, cmd.Process.Release()
}
