package postgres

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// keepServer keeps a disposable server until the test ends.
func keepServer(t *testing.T, start func(context.Context, ManagedConfig) (*Managed, error)) *Kept {
	t.Helper()
	needPrograms(t)
	k, err := keepWith(t.Context(), ManagedConfig{DataDir: openFolder(t), Disposable: true}, start)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := k.Stop(context.Background()); err != nil {
			t.Errorf("Stop: %v", err)
		}
		if pids := serverProcesses(k.server().layout.cluster); len(pids) > 0 {
			t.Errorf("processes %v are left", pids)
		}
	})
	return k
}

// waitOther waits until another server than m is there.
func waitOther(t *testing.T, k *Kept, m *Managed) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for k.server() == m {
		if time.Now().After(deadline) {
			t.Fatal("a minute later no server has taken the place of the one that ended")
		}
		time.Sleep(10 * time.Millisecond) // a poll
	}
}

func TestAServerThatIsKilledIsStartedAgainWithItsData(t *testing.T) {
	t.Parallel()
	k := keepServer(t, StartManaged)
	url := k.URL()
	keep(t, url)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGQUIT} {
		m := k.server()
		if err := m.process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		<-m.Done()
		waitOther(t, k, m)
		if k.URL() != url {
			t.Fatalf("the server is at %s now, and was at %s", k.URL(), url)
		}
		checkKept(t, url)
	}
}

func TestARestartThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	var starts atomic.Int32
	k := keepServer(t, func(ctx context.Context, cfg ManagedConfig) (*Managed, error) {
		if n := starts.Add(1); n == 2 || n == 3 {
			return nil, errors.New("no memory for it now")
		}
		return StartManaged(ctx, cfg)
	})
	m := k.server()
	if err := m.process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	waitOther(t, k, m)
	if n := starts.Load(); n != 4 {
		t.Errorf("%d starts, want the first, two that fail and one more", n)
	}
	if got := ask(t, k.URL(), `SELECT 'well'`); got != "well" {
		t.Errorf("the server says %q", got)
	}
}
