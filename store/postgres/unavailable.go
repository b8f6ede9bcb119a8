package postgres

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
)

// IsUnavailable says whether an error of a database call means that PostgreSQL is away for now: not running, still
// starting, shutting down, out of connections or room, or the connection broke. Then the same call may succeed later, and a
// statement that was under way may or may not have been done.
//
// It is false for what the server said about a statement or a login, and for a call that the caller itself ended or
// gave too little time. Pass it errors of database calls only: a broken connection to anything else looks the same.
func IsUnavailable(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return unavailableState(pgErr.Code)
	}
	var connectErr *pgconn.ConnectError
	connecting := errors.As(err, &connectErr)
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return false
	case connecting:
		return true // not reached in time, refused, no such socket, no such host
	case errors.Is(err, context.DeadlineExceeded):
		return false
	}
	var netErr net.Error
	return errors.As(err, &netErr) ||
		errors.Is(err, pgconn.ErrConnClosed) ||
		errors.Is(err, net.ErrClosed) ||
		errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, syscall.EPIPE)
}

// unavailableState sorts SQLSTATE codes (PostgreSQL's documentation, appendix A).
func unavailableState(code string) bool {
	switch code {
	case "57P01", // admin_shutdown
		"57P02", // crash_shutdown
		"57P03", // cannot_connect_now: starting up or shutting down
		"57P05", // idle_session_timeout
		"53100", // disk_full: no fault of the statement, nor of the event that it is about
		"53300", // too_many_connections
		"40P01": // deadlock_detected: with the emptying of a projection's tables; the next attempt finds them free
		return true
	}
	return strings.HasPrefix(code, "08") // connection_exception
}
