// Package catalog answers questions about what is published and what is being published, from the tables
// that projections/catalog and projections/jobs keep. It only reads, and must not know how the rows came
// about or how new they are: who needs them to be new waits for the projection first.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/internal/kept"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// Errors that callers decide on.
var (
	// ErrNotFound: there is no such thing in the tables.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable: PostgreSQL is away for now; the same question may be asked again.
	ErrUnavailable = errors.New("the database is unavailable")
	// ErrBadCursor: an After that no earlier page has given.
	ErrBadCursor = errors.New("not a cursor of an earlier page")
)

// Bounds of a page.
const (
	DefaultLimit = 100  // for a limit of 0
	MaxLimit     = 1000 // larger limits are cut to it
)

// Catalog reads the schemas catalog and jobs.
type Catalog struct {
	pool *pgxpool.Pool
	kept *kept.Answers // of the schema catalog
}

// keptBytes bounds what is kept in memory of the tables.
const keptBytes = 8 << 20

// New makes a catalog that reads through a pool. Edition, optional, says in which state the schema catalog is, as far as that is known
// without asking (projections.Runner.Edition): while it is the same, versions and files that were found are given from memory.
func New(pool *pgxpool.Pool, edition func() (number uint64, ok bool)) *Catalog {
	return &Catalog{pool: pool, kept: kept.New(edition, keptBytes)}
}

// pageSize is a limit within its bounds.
func pageSize(limit int) int {
	if limit <= 0 {
		return DefaultLimit
	}
	return min(limit, MaxLimit)
}

// characterNotInRepertoire is the SQLSTATE for a text that PostgreSQL can't hold, such as one that is no UTF-8.
const characterNotInRepertoire = "22021"

// explain says what failed and translates what callers decide on.
func explain(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	var server *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	case errors.As(err, &server) && server.Code == characterNotInRepertoire:
		return fmt.Errorf("%s: %w: no name is written so", what, ErrNotFound)
	case postgres.IsUnavailable(err), errors.Is(err, errNoAnswer):
		return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// list runs a statement that asks for one row more than a page has, and says whether there was one.
func list[T any](ctx context.Context, c *Catalog, limit int, scan pgx.RowToFunc[T], statement string, args ...any) (page []T, more bool, err error) {
	err = again(ctx, func(ctx context.Context) error {
		rows, err := c.pool.Query(ctx, statement, args...)
		if err == nil {
			page, err = pgx.CollectRows(rows, scan)
		}
		return err
	})
	if err != nil {
		return nil, false, err
	}
	if len(page) > limit {
		return page[:limit], true, nil
	}
	return page, false, nil
}

// one runs a statement that has at most one row; none is pgx.ErrNoRows.
func one[T any](ctx context.Context, c *Catalog, scan pgx.RowToFunc[T], statement string, args ...any) (T, error) {
	var row T
	err := again(ctx, func(ctx context.Context) error {
		rows, err := c.pool.Query(ctx, statement, args...)
		if err == nil {
			row, err = pgx.CollectExactlyOneRow(rows, scan)
		}
		return err
	})
	return row, err
}

// deadlockDetected is the SQLSTATE of the statement that PostgreSQL has chosen to give way.
const deadlockDetected = "40P01"

// queryTimeout bounds a query with its wait for a connection: of a server that hangs, or has more to do than it can, a
// client hears in time.
const queryTimeout = 5 * time.Second

var errNoAnswer = errors.New("PostgreSQL did not answer in time")

// again runs a query within queryTimeout, and once more where it met the emptying of its tables, which takes their
// locks in another order: it is over by then.
func again(ctx context.Context, query func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	err := query(bounded)
	var server *pgconn.PgError
	if errors.As(err, &server) && server.Code == deadlockDetected && bounded.Err() == nil {
		err = query(bounded)
	}
	if err != nil && bounded.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return err
}
