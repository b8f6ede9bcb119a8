package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// database is the one that imgsrv uses in its own cluster.
const database = "imgsrv"

// startLimit bounds one start. It is long because a server that was killed replays its log before it answers.
const startLimit = 2 * time.Minute

// readyTick is how often a server that starts is asked whether it answers: that is a part of each start of imgsrv.
const readyTick = 5 * time.Millisecond

// ManagedConfig says what server StartManaged starts.
type ManagedConfig struct {
	// DataDir is imgsrv's data folder; the server lives in its subfolder postgres. The caller holds the folder for itself:
	// a server found running there is a leftover and is ended. When imgsrv runs as root, the folder should let other users
	// pass (mode 0711), or the server has to live elsewhere.
	DataDir string
	// Log gets what an operator should know of the server's life; nil: nothing is logged.
	Log *slog.Logger
	// Disposable makes a small server that starts fast and syncs nothing: for tests, whose data may be lost with the
	// machine.
	Disposable bool
}

// Managed is a PostgreSQL server that this process started. Whoever started it must call Stop.
type Managed struct {
	layout layout
	log    *slog.Logger

	process *os.Process
	done    chan struct{} // closed when the process has ended
	state   *os.ProcessState
	waitErr error

	stopping chan struct{} // closed by the first Stop
	stopOnce sync.Once
}

// StartManaged starts a server and returns when it answers and has the database imgsrv. The first start makes the
// cluster. A leftover of an earlier run is ended first.
//
// Errors: ErrNoBinaries; *VersionError; anything else says what failed, with the end of the server's log where the
// server said something. The end of ctx ends the start, not the server once started.
func StartManaged(ctx context.Context, cfg ManagedConfig) (*Managed, error) {
	return startManaged(ctx, cfg, machinePlaces(), systemHome)
}

func startManaged(ctx context.Context, cfg ManagedConfig, where places, system string) (*Managed, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("PostgreSQL was not ready after %s", startLimit))
	defer cancel()
	began := time.Now()

	found, err := where.find(ctx)
	if err != nil {
		return nil, err
	}
	dataDir, err := resolve(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	l, acct, err := locate(ctx, dataDir, system, found[0].postgres, log)
	if err != nil {
		return nil, err
	}
	in, err := choose(found, l.cluster)
	if err != nil {
		return nil, err
	}
	if err := acct.own(l.home); err != nil {
		return nil, err
	}
	if err := l.placeSocket(ctx, acct, in.postgres, []string{os.TempDir(), "/tmp"}); err != nil {
		return nil, err
	}
	if err := endLeftover(ctx, l, log); err != nil {
		return nil, err
	}
	if err := initCluster(ctx, l, acct, in, cfg.Disposable, log); err != nil {
		return nil, err
	}
	m, err := launch(l, acct, in, cfg.Disposable, log)
	if err != nil {
		return nil, err
	}
	if err := m.waitReady(ctx); err != nil {
		// The start may have failed because ctx ended; the server must be gone all the same.
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), immediateStop)
		defer cancel()
		return nil, errors.Join(err, m.Stop(stopCtx))
	}
	log.Info("PostgreSQL is ready", "version", in.major, "pid", m.process.Pid, "user", acct.name,
		"postgres_dir", l.home, "took", time.Since(began).Round(time.Millisecond))
	return m, nil
}

// URL is the connection URL of the database imgsrv, over the unix socket. Only the user that runs the server and root
// can use it.
func (m *Managed) URL() string { return m.layout.url(database) }

func (l layout) url(db string) string {
	// Everything is stated, so that no PG* variable of the environment gets a say.
	q := url.Values{"host": {l.sockets}, "port": {port}, "sslmode": {"disable"}}
	return (&url.URL{Scheme: "postgres", User: url.User(superuser), Path: "/" + db, RawQuery: q.Encode()}).String()
}

// DataDir is the folder that holds all of the server: <DataDir>/postgres, or a folder under /var/lib/imgsrv where the
// server's user can't reach the former. The cluster is its subfolder data; the server's log is beside it, with the
// suffix .log.
func (m *Managed) DataDir() string { return m.layout.home }

// Done is closed when the server process has ended, for whatever reason.
func (m *Managed) Done() <-chan struct{} { return m.done }

// Stop ends the server and waits for its end. It first ends all sessions and writes a checkpoint (a fast shutdown);
// when that takes longer than 20 s or ctx ends, it goes over to an immediate one, after which the next start replays
// the log. It may be called several times and at once. An error means that the server still runs.
func (m *Managed) Stop(ctx context.Context) error {
	m.stopOnce.Do(func() { close(m.stopping) })
	ended, err := m.signalAndWait(ctx, syscall.SIGINT, fastStop)
	if ended || err != nil {
		return err
	}
	m.log.Warn("PostgreSQL does not stop; ending it at once", "pid", m.process.Pid)
	// ctx may have ended: the immediate shutdown is bounded by time alone, so that nothing is left behind.
	ctx = context.WithoutCancel(ctx)
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		ended, err := m.signalAndWait(ctx, sig, immediateStop)
		if ended || err != nil {
			return err
		}
	}
	return fmt.Errorf("stop PostgreSQL: process %d does not end", m.process.Pid)
}

func (m *Managed) signalAndWait(ctx context.Context, sig syscall.Signal, limit time.Duration) (ended bool, err error) {
	if err := m.process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return false, fmt.Errorf("stop PostgreSQL: %w", err)
	}
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-m.done:
		return true, nil
	case <-ctx.Done():
		return false, nil
	case <-timeout.C:
		return false, nil
	}
}

// waitReady returns when the server answers and the database is there.
func (m *Managed) waitReady(ctx context.Context) error {
	ticker := time.NewTicker(readyTick)
	defer ticker.Stop()
	for {
		err := ensureDatabase(ctx, m.layout)
		if err == nil {
			return nil
		}
		if !IsUnavailable(err) && ctx.Err() == nil {
			return fmt.Errorf("prepare the database: %w", err)
		}
		select {
		case <-m.done:
			return fmt.Errorf("PostgreSQL ended while it started (%s)%s", m.ending(), m.logTail())
		case <-ctx.Done():
			return fmt.Errorf("wait for PostgreSQL to start: %w (%w)%s", context.Cause(ctx), err, m.logTail())
		case <-ticker.C:
		}
	}
}

// ensureDatabase makes the database where it is absent.
func ensureDatabase(ctx context.Context, l layout) (err error) {
	conn, err := pgx.Connect(ctx, l.url("postgres"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.WithoutCancel(ctx))) }()
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, database).Scan(&exists); err != nil || exists {
		return err
	}
	_, err = conn.Exec(ctx, `CREATE DATABASE `+database)
	return err
}
