// Package pgtest gives each test an empty PostgreSQL database of its own, on one server per test process, so that
// tests run in parallel against the real thing. Only tests import it; it must not know imgsrv's tables.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/internal/testtool"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// urlVariable is the environment variable that names a running server to use. Its role must be allowed to make
// databases.
const urlVariable = "IMGSRV_TEST_POSTGRES_URL"

// errAbsent says that there is no way to a server on this machine.
var errAbsent = errors.New("a PostgreSQL server: set " + urlVariable + ", or install its programs (apt install postgresql), or start Docker")

// instance is a running server.
type instance struct {
	url   string     // of a database from which others can be made
	signs []*os.File // held open as signs that this process lives; see startLocal
}

// server is the one server of this test process. A process-wide variable, because tests share nothing else that
// outlives each of them; its end is seen to by a watchdog, not by a TestMain in each package.
var server = sync.OnceValues(startServer)

// URL makes an empty database for this test and returns its connection URL. The database is dropped when the test
// ends, with whatever connections are left. Without any way to a server the test is skipped (see testtool).
//
// The server is, in this order: the one that IMGSRV_TEST_POSTGRES_URL names; a private one from this machine's
// PostgreSQL programs, which syncs nothing and ends with the test process, however that ends; a container, where
// Docker answers.
func URL(t testing.TB) string {
	t.Helper()
	srv, err := server()
	if errors.Is(err, errAbsent) {
		testtool.Absent(t, err.Error())
	}
	if err != nil {
		t.Fatalf("start a PostgreSQL server for the tests: %v", err)
	}
	admin := srv.url
	// Random, because several test processes may share a server.
	name := "imgsrv_test_" + strings.ToLower(rand.Text()[:16])
	if err := execute(admin, `CREATE DATABASE `+name+` TEMPLATE template0`); err != nil {
		t.Fatalf("make a database for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := execute(admin, `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			t.Errorf("drop the database of the test: %v", err)
		}
	})
	own, err := withDatabase(admin, name)
	if err != nil {
		t.Fatalf("make a database for the test: %v", err)
	}
	return own
}

func startServer() (*instance, error) {
	if u := os.Getenv(urlVariable); u != "" {
		return &instance{url: u}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	srv, err := startLocal(ctx)
	if !errors.Is(err, postgres.ErrNoBinaries) {
		return srv, err
	}
	return startContainer(ctx)
}

// execute runs one statement on a connection of its own: a CREATE DATABASE must not stand in a transaction, and an idle
// pool would hold connections that tests need.
func execute(admin, statement string) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	_, err = conn.Exec(ctx, statement)
	return err
}

// withDatabase is the same connection URL, or key=value pairs, for another database.
func withDatabase(admin, name string) (string, error) {
	if !strings.Contains(admin, "://") {
		return admin + " dbname=" + name, nil // the last of two counts
	}
	u, err := url.Parse(admin)
	if err != nil {
		return "", fmt.Errorf("%s is no URL", urlVariable) // err repeats it, with its password
	}
	u.Path = "/" + name
	q := u.Query()
	q.Del("dbname")
	q.Del("database")
	u.RawQuery = q.Encode()
	return u.String(), nil
}
