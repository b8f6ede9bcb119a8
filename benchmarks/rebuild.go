package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// rebuild measures the catalog's rebuild, in the harness's own process, with the log and the PostgreSQL that imgsrv has. The peer is the
// slower of its two floors: an ordered consumer that reads the events, and COPY of the rows that come out.
func rebuild(ctx context.Context, b *bench) error {
	store, err := b.folder("nats")
	if err != nil {
		return err
	}
	n, err := b.fill(ctx, store, either(b, 1_000_000, 20_000)/eventsPerVersion(), 50)
	if err != nil {
		return err
	}
	log, nc, stop, err := b.openLog(ctx, store, true)
	if err != nil {
		return err
	}
	defer stop()
	data, err := b.folder("data")
	if err != nil {
		return err
	}
	pg, err := postgres.StartManaged(ctx, postgres.ManagedConfig{DataDir: data})
	if err != nil {
		return err
	}
	b.after(func() { _ = pg.Stop(context.Background()) }) // in a temporary folder
	pool, err := postgres.Open(ctx, pg.URL())
	if err != nil {
		return err
	}
	defer pool.Close()
	p := catalog.New()
	if err := migrations.Apply(ctx, pool, p.Name(), p.Migrations()); err != nil {
		return err
	}
	head, err := log.Head(ctx)
	if err != nil {
		return err
	}
	var rows int64
	pairs, err := b.pair(ctx, func(ctx context.Context) (float64, error) {
		began := time.Now()
		err := projections.NewRebuilder(pool, log, p, projections.RebuildConfig{Log: quiet}).Run(ctx)
		return float64(head) / seconds(began), err
	}, func(ctx context.Context) (float64, error) {
		reading, err := readAll(ctx, nc, head)
		if err != nil {
			return 0, err
		}
		copying, copied, err := copyRows(ctx, pool, p)
		rows = copied
		return float64(head) / max(reading, copying).Seconds(), err
	})
	if err != nil {
		return err
	}
	r := beside("rebuild", fmt.Sprintf("rebuild of the catalog from %d events", n), "slower of reading and COPY", "events/s", pairs).atLeast(0.6)
	r.Note = fmt.Sprintf("%d rows", rows)
	b.report(r)
	return nil
}

// readAll is how long an ordered consumer takes to read the stream, undecoded.
func readAll(ctx context.Context, nc *nats.Conn, head events.Sequence) (time.Duration, error) {
	js, err := natsjs.New(nc)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	consumer, err := js.OrderedConsumer(ctx, jetstream.StreamName, natsjs.OrderedConsumerConfig{})
	if err != nil {
		return 0, err
	}
	messages, err := consumer.Messages(natsjs.PullMaxMessages(2000))
	if err != nil {
		return 0, err
	}
	defer messages.Stop()
	for range head {
		if _, err := messages.Next(); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// copyRows is how long COPY takes for the rows of the live tables, into empty ones with the same indexes.
func copyRows(ctx context.Context, pool *pgxpool.Pool, p projections.Projector) (took time.Duration, rows int64, err error) {
	if err := migrations.Apply(ctx, pool, "copied", p.Migrations()); err != nil {
		return 0, 0, err
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Release()
	defer func() {
		_, dropErr := conn.Exec(ctx, `DROP SCHEMA copied CASCADE`)
		err = errors.Join(err, dropErr)
	}()
	found, err := conn.Query(ctx, `SELECT tablename::text FROM pg_tables WHERE schemaname = 'copied' AND tablename NOT IN ('position', $1) ORDER BY tablename`, migrations.VersionTable)
	if err != nil {
		return 0, 0, err
	}
	tables, err := pgx.CollectRows(found, pgx.RowTo[string])
	if err != nil {
		return 0, 0, err
	}
	for _, table := range tables {
		var data bytes.Buffer
		if _, err := conn.Conn().PgConn().CopyTo(ctx, &data, `COPY `+pgx.Identifier{p.Name(), table}.Sanitize()+` TO STDOUT (FORMAT binary)`); err != nil {
			return 0, 0, err
		}
		began := time.Now()
		tag, err := conn.Conn().PgConn().CopyFrom(ctx, &data, `COPY `+pgx.Identifier{"copied", table}.Sanitize()+` FROM STDIN (FORMAT binary)`)
		if err != nil {
			return 0, 0, err
		}
		took += time.Since(began)
		rows += tag.RowsAffected()
	}
	return took, rows, nil
}

// ping asks a PostgreSQL whether it answers.
func ping(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, pingPatience)
	defer cancel()
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}
