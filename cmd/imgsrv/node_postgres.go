package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// database is a PostgreSQL that answers, with the projections' tables in it.
type database struct {
	kept *postgres.Kept // nil with --postgres-url
	pool *pgxpool.Pool
	err  error
}

// beginPostgres has PostgreSQL started, and the projections' tables made or brought up to date, while the caller goes on with what needs
// neither. The function that it returns waits for that.
func (n *Node) beginPostgres(ctx context.Context, flags ServerFlags, dataDir string) func() (*pgxpool.Pool, error) {
	ctx, cancel := context.WithCancel(ctx)
	var db database
	done := make(chan struct{})
	go func() {
		defer close(done)
		db = n.openDatabase(ctx, flags, dataDir)
	}()
	n.onStop("PostgreSQL", func() error {
		cancel()
		<-done
		if db.pool != nil {
			db.pool.Close()
		}
		if db.kept == nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		return db.kept.Stop(ctx)
	})
	return func() (*pgxpool.Pool, error) {
		<-done
		if db.err != nil {
			return nil, db.err
		}
		n.PostgresAt = "PostgreSQL of --postgres-url"
		if db.kept != nil {
			n.background("private PostgreSQL", db.kept.Run)
			n.PostgresAt = db.kept.DataDir() + "  (private PostgreSQL)"
		}
		return db.pool, nil
	}
}

// openDatabase gives what it has come to with an error, too: it is to be stopped again.
func (n *Node) openDatabase(ctx context.Context, flags ServerFlags, dataDir string) (db database) {
	address := flags.PostgresURL
	if address == "" {
		if db.kept, db.err = postgres.Keep(ctx, postgres.ManagedConfig{DataDir: dataDir, Log: n.log}); db.err != nil {
			return db
		}
		address = db.kept.URL()
	}
	if db.pool, db.err = postgres.Open(ctx, address); db.err != nil {
		return db
	}
	var work errgroup.Group
	for _, p := range projectors() {
		work.Go(func() error {
			if err := migrations.Apply(ctx, db.pool, p.Name(), p.Migrations()); err != nil {
				return fmt.Errorf("migrate the projection %s: %w", p.Name(), err)
			}
			return nil
		})
	}
	db.err = work.Wait()
	return db
}
