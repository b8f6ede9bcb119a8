package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	maxConns       = 16               // of the 100 that a server allows by default; pool_max_conns in the URL overrides it
	connectTimeout = 5 * time.Second  // for one attempt; connect_timeout in the URL overrides it
	openPatience   = 10 * time.Second // how long Open waits for a server that is away
)

// ErrBadURL says that a text is no PostgreSQL connection URL. Neither it nor its cause repeats that text, which may
// hold a password.
var ErrBadURL = errors.New("not a valid PostgreSQL URL: give postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=… " +
	"(or key=value pairs), with special characters of the password percent-encoded and certificate files that exist")

// Open connects a pool to the server at url, a connection URL or libpq key=value pairs, and checks that it answers.
// A server that is away, or still starting, gets 10 s (or until ctx ends) to appear.
//
// Defaults, each of which the URL can override: application_name imgsrv, timezone UTC, connect_timeout 5 s,
// pool_max_conns 16. Errors: ErrBadURL; otherwise one without the password, on which IsUnavailable says whether the
// server was away.
func Open(ctx context.Context, url string) (*pgxpool.Pool, error) {
	cfg, err := poolConfig(url)
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("make a PostgreSQL pool: %w", err)
	}
	if err := ping(ctx, pool); err != nil {
		pool.Close()
		return nil, fmt.Errorf("reach PostgreSQL (does it run, and is --postgres-url right? Its database has to be there): %w", err)
	}
	return pool, nil
}

func poolConfig(url string) (*pgxpool.Config, error) {
	base, err := pgconn.ParseConfig(url)
	if err != nil {
		return nil, ErrBadURL // err holds the text; see its Unwrap and ConnString
	}
	_, sized := base.RuntimeParams["pool_max_conns"]
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, ErrBadURL
	}
	if !sized {
		cfg.MaxConns = maxConns
	}
	if cfg.ConnConfig.ConnectTimeout == 0 { // pgx would wait as long as the kernel does: minutes
		cfg.ConnConfig.ConnectTimeout = connectTimeout
	}
	params := cfg.ConnConfig.RuntimeParams
	if params["application_name"] == "" {
		params["application_name"] = "imgsrv"
	}
	if params["timezone"] == "" && params["TimeZone"] == "" {
		params["timezone"] = "UTC"
	}
	return cfg, nil
}

// ping waits until the server answers.
func ping(ctx context.Context, pool *pgxpool.Pool) error {
	patience := time.NewTimer(openPatience)
	defer patience.Stop()
	var away error // what the last attempt that ctx left time for said
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := pool.Ping(ctx)
		if err != nil && ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), away)
		}
		if err == nil || !IsUnavailable(err) {
			return err
		}
		away = err
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), away)
		case <-patience.C:
			return away
		case <-time.After(pause):
		}
	}
}
