package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func TestPoolHasDefaultsThatTheURLOverrides(t *testing.T) {
	t.Parallel()
	m := startServer(t, openFolder(t))
	type settings struct {
		Application, Zone string
		Conns             int32
		Timeout           time.Duration
	}
	for suffix, want := range map[string]settings{
		"": {"imgsrv", "UTC", maxConns, connectTimeout},
		"&application_name=other&timezone=Asia/Tokyo&pool_max_conns=3&connect_timeout=7": {"other", "Asia/Tokyo", 3, 7 * time.Second},
	} {
		pool, err := Open(t.Context(), m.URL()+suffix)
		if err != nil {
			t.Fatal(err)
		}
		got := settings{Conns: pool.Config().MaxConns, Timeout: pool.Config().ConnConfig.ConnectTimeout}
		err = pool.QueryRow(t.Context(), `SELECT current_setting('application_name'), current_setting('timezone')`).Scan(&got.Application, &got.Zone)
		pool.Close()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("with %q: %s", suffix, diff)
		}
	}
}

func TestErrorsOfOpenHoldNoPassword(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"postgres://u:sesame@h:port/db",
		"postgres://u:sesame@[::1/db",
		"postgres://u:ses%ame-sesame@h/db",
		"postgres://u@h/db?password=sesame&sslmode=perhaps",
		"host=h password=sesame sslmode=perhaps",
		"host=h password='sesame",
		"postgres://u:sesame@h/db?pool_max_conns=none",
		"postgres//u:sesame@h/db",
	} {
		_, err := Open(t.Context(), url)
		if !errors.Is(err, ErrBadURL) {
			t.Errorf("%s: %v, want ErrBadURL", url, err)
		}
		for e := err; e != nil; e = errors.Unwrap(e) {
			if strings.Contains(fmt.Sprintf("%v %+v", e, e), "sesame") {
				t.Errorf("%s: the error tells the password: %+v", url, e)
			}
		}
	}
	// A port that nobody listens on: bound, and closed again.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = Open(ctx, "postgres://u:sesame@"+l.Addr().String()+"/db?sslmode=disable")
	if !IsUnavailable(err) || !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "sesame") {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestOpenWaitsForAServerThatIsStillAway(t *testing.T) {
	t.Parallel()
	dataDir := openFolder(t)
	m := startServer(t, dataDir)
	url := m.URL()
	stop(t, m)
	opened := make(chan error, 1)
	go func() {
		pool, err := Open(t.Context(), url)
		if err == nil {
			pool.Close()
		}
		opened <- err
	}()
	startServer(t, dataDir)
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestAwayIsToldFromRefusedByRealServers(t *testing.T) {
	t.Parallel()
	dataDir := openFolder(t)
	m := startServer(t, dataDir)
	pool, err := Open(t.Context(), m.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	exec := func(ctx context.Context, query string) error {
		_, err := pool.Exec(ctx, query)
		return err
	}
	ended, end := context.WithCancel(t.Context())
	end()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, noDatabase := pgx.Connect(t.Context(), strings.Replace(m.URL(), "/imgsrv?", "/nothere?", 1))
	_, noUser := pgx.Connect(t.Context(), strings.Replace(m.URL(), "imgsrv@", "nobody@", 1))
	for name, err := range map[string]error{
		"a query with an error":        exec(t.Context(), `SELECT nonsense`),
		"a database that isn't there":  noDatabase,
		"a role that isn't there":      noUser,
		"a call that its caller ended": exec(ended, `SELECT 1`),
		"a call with too little time":  exec(short, `SELECT pg_sleep(60)`),
		"no rows":                      pgx.ErrNoRows,
		"a statement timeout":          exec(t.Context(), `SET statement_timeout = 1; SELECT pg_sleep(60)`),
	} {
		if err == nil || IsUnavailable(err) {
			t.Errorf("%s counts as away: %v", name, err)
		}
	}
	if IsUnavailable(nil) {
		t.Error("no error counts as away")
	}

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = exec(t.Context(), `SELECT pg_terminate_backend(pg_backend_pid())`)
	if !IsUnavailable(err) {
		t.Errorf("a session that the server ended: %v", err)
	}
	stop(t, m)
	_, inTx := tx.Exec(t.Context(), `SELECT 1`)
	_, inTxAgain := tx.Exec(t.Context(), `SELECT 1`)
	_, direct := pgx.Connect(t.Context(), m.URL())
	for name, err := range map[string]error{
		"a transaction under way":           inTx,
		"its next statement":                inTxAgain,
		"the pool without a server":         exec(t.Context(), `SELECT 1`),
		"a new connection without a server": direct,
		"wrapped as a caller would":         fmt.Errorf("apply event 7: %w", direct),
	} {
		if !IsUnavailable(err) {
			t.Errorf("%s does not count as away: %v (%T)", name, err, err)
		}
	}
	_ = tx.Rollback(t.Context()) // gives the broken connection back

	startServer(t, dataDir)
	if err := exec(t.Context(), `SELECT 1`); err != nil {
		t.Errorf("the pool after the server came back: %v", err)
	}
}

func TestUnavailableStates(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]bool{
		"57P01": true, "57P02": true, "57P03": true, "08006": true, "08P01": true, "53100": true, "53300": true, "40P01": true,
		"57014": false, "23505": false, "40001": false, "42601": false, "28P01": false, "53200": false, "": false,
	} {
		if got := IsUnavailable(fmt.Errorf("x: %w", &pgconn.PgError{Code: code})); got != want {
			t.Errorf("SQLSTATE %q: %v, want %v", code, got, want)
		}
	}
	for _, err := range []error{io.ErrUnexpectedEOF, pgconn.ErrConnClosed, &net.OpError{Op: "read", Err: io.EOF}} {
		if !IsUnavailable(err) {
			t.Errorf("%v does not count as away", err)
		}
	}
	if IsUnavailable(errors.New("connection refused")) {
		t.Error("a text decides")
	}
}
