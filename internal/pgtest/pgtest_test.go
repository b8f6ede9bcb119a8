package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/internal/testtool"
	"github.com/imgsrv/imgsrv/store/postgres"
)

func TestEachTestHasAnEmptyDatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "b", "c"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, err := postgres.Open(t.Context(), URL(t))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			// Fails where another of the three made it before.
			if _, err := pool.Exec(t.Context(), `CREATE TABLE only_here (x int)`); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestDatabaseIsDroppedWithTheConnectionsLeftInIt(t *testing.T) {
	t.Parallel()
	var left string
	ok := t.Run("a test that forgets its connection", func(t *testing.T) {
		left = URL(t)
		conn, err := pgx.Connect(t.Context(), left)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	if !ok || left == "" {
		t.SkipNow()
	}
	_, err := pgx.Connect(t.Context(), left)
	if err == nil || postgres.IsUnavailable(err) {
		t.Errorf("connect to the dropped database: %v, want a refusal by a server that is there", err)
	}
}

func TestWithDatabaseReplacesTheDatabaseOnly(t *testing.T) {
	t.Parallel()
	for admin, want := range map[string]string{
		"postgres://u:p@h:1/old?sslmode=disable":          "postgres://u:p@h:1/new?sslmode=disable",
		"postgres://u@/old?host=%2Frun%2Fpg&dbname=older": "postgres://u@/new?host=%2Frun%2Fpg",
		"postgres://h":             "postgres://h/new",
		"host=/run/pg dbname=old ": "host=/run/pg dbname=old  dbname=new",
	} {
		got, err := withDatabase(admin, "new")
		if err != nil {
			t.Errorf("%s: %v", admin, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		cfg, err := pgx.ParseConfig(got)
		if err != nil {
			t.Errorf("%s: %v", got, err)
			continue
		}
		if cfg.Database != "new" {
			t.Errorf("%s leads to database %s", got, cfg.Database)
		}
	}
}

// Names of the environment variables that make this test program the one to be killed.
const (
	childBase     = "PGTEST_CHILD_BASE"     // where to make its folder
	childWatchdog = "PGTEST_CHILD_WATCHDOG" // 1: with a watchdog
)

// TestMain lets the tests of what happens when a test process dies run this program as one. Users of this package
// need none.
func TestMain(m *testing.M) {
	if base := os.Getenv(childBase); base != "" {
		if err := serveUntilKilled(base, os.Getenv(childWatchdog) == "1"); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func serveUntilKilled(base string, withWatchdog bool) error {
	folder, lock, err := claim(base)
	if err != nil {
		return err
	}
	signs := []*os.File{lock}
	if withWatchdog {
		alive, err := startWatchdog(folder)
		if err != nil {
			return err
		}
		signs = append(signs, alive)
	}
	m, err := postgres.StartManaged(context.Background(), postgres.ManagedConfig{DataDir: folder, Disposable: true})
	if errors.Is(err, postgres.ErrNoBinaries) {
		fmt.Println("absent")
	}
	if err != nil {
		return err
	}
	fmt.Println("ready", folder, m.URL())
	<-m.Done()
	runtime.KeepAlive(signs)
	return errors.New("the server ended before this process")
}

// runAndKill starts a test process with a server under base, kills it with SIGKILL and returns the server's folder and URL.
func runAndKill(t *testing.T, base string, withWatchdog bool) (folder, url string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childBase+"="+base)
	if withWatchdog {
		cmd.Env = append(cmd.Env, childWatchdog+"=1")
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		said = append(said, lines.Text())
		if f := strings.Fields(lines.Text()); len(f) == 3 && f[0] == "ready" {
			folder, url = f[1], f[2]
			break
		}
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	err = cmd.Wait()
	if slices.Contains(said, "absent") {
		testtool.Absent(t, "PostgreSQL's server programs (apt install postgresql)")
	}
	if folder == "" {
		t.Fatalf("the test process started no server: %v\n%s", err, strings.Join(said, "\n"))
	}
	return folder, url
}

// openBase is a folder that, unlike t.TempDir(), the server's user can reach.
func openBase(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp(baseFolder(), "pgtest-self-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	return base
}

func TestServerEndsWithItsKilledTestProcess(t *testing.T) {
	t.Parallel()
	base := openBase(t)
	folder, url := runAndKill(t, base, true)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// The folder's lock file is the last thing that goes; its end has no signal to wait for.
	for {
		_, err := os.Lstat(folder + ".lock")
		if os.IsNotExist(err) {
			break
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the watchdog left %s", folder)
		case <-time.After(20 * time.Millisecond):
		}
	}
	if _, err := pgx.Connect(t.Context(), url); !postgres.IsUnavailable(err) {
		t.Errorf("connect after the end: %v, want that the server is away", err)
	}
	if diff := cmp.Diff([]string(nil), names(t, base)); diff != "" {
		t.Errorf("left in the folder: %s", diff)
	}
}

func TestNextTestProcessSweepsWhatADeadOneLeft(t *testing.T) {
	t.Parallel()
	base := openBase(t)
	_, url := runAndKill(t, base, false)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatalf("the server should have outlived its process: %v", err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	living, lock, err := claim(base)
	if err != nil {
		t.Fatal(err)
	}
	sweep(t.Context(), base)
	if _, err := pgx.Connect(t.Context(), url); !postgres.IsUnavailable(err) {
		t.Errorf("connect after the sweep: %v, want that the server is away", err)
	}
	if diff := cmp.Diff([]string{filepath.Base(living), filepath.Base(living) + ".lock"}, names(t, base)); diff != "" {
		t.Errorf("left in the folder: %s", diff)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	sweep(t.Context(), base)
	if diff := cmp.Diff([]string(nil), names(t, base)); diff != "" {
		t.Errorf("left in the folder after its owner let go: %s", diff)
	}
}

func names(t *testing.T, folder string) []string {
	t.Helper()
	var list []string
	entries, err := fs.ReadDir(os.DirFS(folder), ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
