package postgres

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/internal/testtool"
)

// openFolder makes a temporary folder that, unlike t.TempDir(), other users can pass.
func openFolder(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("/tmp", "imgsrv-postgres-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	return folder
}

func needPrograms(t *testing.T) {
	t.Helper()
	if _, err := machinePlaces().find(t.Context()); errors.Is(err, ErrNoBinaries) {
		testtool.Absent(t, "PostgreSQL's server programs (apt install postgresql)")
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root runs the server as another user")
	}
}

// startServer starts a disposable server that ends with the test.
func startServer(t *testing.T, dataDir string) *Managed {
	t.Helper()
	return start(t, ManagedConfig{DataDir: dataDir, Disposable: true}, machinePlaces(), filepath.Join(dataDir, "unused"))
}

func start(t *testing.T, cfg ManagedConfig, where places, system string) *Managed {
	t.Helper()
	needPrograms(t)
	m, err := startManaged(t.Context(), cfg, where, system)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, m) })
	return m
}

func stop(t *testing.T, m *Managed) {
	t.Helper()
	if err := m.Stop(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	select {
	case <-m.Done():
	default:
		t.Error("the server runs after Stop")
	}
}

// ask runs a query that gives one text.
func ask(t *testing.T, url, query string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	var answer string
	if err := conn.QueryRow(t.Context(), query).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}

// keep writes a row that a later server of the same cluster must still have.
func keep(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `SET synchronous_commit = on; CREATE TABLE kept (word text); INSERT INTO kept VALUES ('still here')`); err != nil {
		t.Error(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func checkKept(t *testing.T, url string) {
	t.Helper()
	if got := ask(t, url, `SELECT word FROM kept`); got != "still here" {
		t.Errorf("the row that the earlier server took is %q", got)
	}
}
