package projections_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/projections/jobs"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// BenchmarkVisible measures from the start of an append to the end of the wait for its row, on an idle node.
func BenchmarkVisible(b *testing.B) {
	log := natstest.Log(b)
	pool, err := postgres.Open(b.Context(), pgtest.URL(b))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	if err := migrations.Apply(b.Context(), pool, catalog.Name, migrations.Catalog()); err != nil {
		b.Fatal(err)
	}
	r, err := projections.NewRunner(pool, log, catalog.New(), projections.Config{Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	move := func(i int) {
		fact := events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: fmt.Sprint("a", i), Version: "1"}}
		sequence, err := log.Append(b.Context(), jetstream.Cause{}, events.Change{Fact: fact})
		if err != nil {
			b.Fatal(err)
		}
		if err := r.WaitFor(b.Context(), sequence); err != nil {
			b.Fatal(err)
		}
	}
	i := 0
	move(i)
	for b.Loop() {
		i++
		move(i)
	}
}

// BenchmarkApply measures how fast the tables are filled, in events/s: the bound of a rebuild.
func BenchmarkApply(b *testing.B) {
	h := eventstest.New()
	for i := range 60 {
		h.Publish(b, eventstest.Session(fmt.Sprint("image-", i%10), fmt.Sprint(i), "latest"))
	}
	for _, p := range []projections.Projector{catalog.New(), jobs.New()} {
		b.Run(p.Name(), func(b *testing.B) {
			pool, err := postgres.Open(b.Context(), pgtest.URL(b))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(pool.Close)
			if err := migrations.Apply(b.Context(), pool, p.Name(), p.Migrations()); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				for rest := h.Events; len(rest) > 0; {
					n := min(500, len(rest))
					err := pgx.BeginFunc(b.Context(), pool, func(tx pgx.Tx) error {
						if _, err := tx.Exec(b.Context(), `SELECT set_config('search_path', $1, true)`, p.Name()); err != nil {
							return err
						}
						return p.Apply(b.Context(), tx, rest[:n])
					})
					if err != nil {
						b.Fatal(err)
					}
					rest = rest[n:]
				}
			}
			b.ReportMetric(float64(b.N*len(h.Events))/b.Elapsed().Seconds(), "events/s")
		})
	}
}
