package catalog_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	projectedcatalog "github.com/imgsrv/imgsrv/projections/catalog"
	projectedjobs "github.com/imgsrv/imgsrv/projections/jobs"
	"github.com/imgsrv/imgsrv/store/catalog"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// fromHistory makes a catalog of what a history leads to.
func fromHistory(t *testing.T, h *eventstest.History) *catalog.Catalog {
	t.Helper()
	c, _ := poolFromHistory(t, h)
	return c
}

// poolFromHistory is fromHistory with the connections that the catalog reads through.
func poolFromHistory(t *testing.T, h *eventstest.History) (*catalog.Catalog, *pgxpool.Pool) {
	t.Helper()
	pool, err := postgres.Open(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	fill := func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL search_path = catalog`); err != nil {
			return err
		}
		if err := projectedcatalog.New().Apply(ctx, tx, h.Events); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL search_path = jobs`); err != nil {
			return err
		}
		return projectedjobs.New().Apply(ctx, tx, h.Events)
	}
	if err := migrations.Apply(t.Context(), pool, "catalog", migrations.Catalog()); err != nil {
		t.Fatal(err)
	}
	if err := migrations.Apply(t.Context(), pool, "jobs", migrations.Jobs()); err != nil {
		t.Fatal(err)
	}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return fill(t.Context(), tx) }); err != nil {
		t.Fatal(err)
	}
	return catalog.New(pool, nil), pool
}
