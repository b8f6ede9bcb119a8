package projections_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// generate fills a log with at least n events of whole publications, 50 versions an image, as fast as the server takes them.
func generate(b *testing.B, nc *nats.Conn, n int) {
	b.Helper()
	js, err := natsjs.New(nc, natsjs.WithPublishAsyncMaxPending(4000))
	if err != nil {
		b.Fatal(err)
	}
	h := eventstest.New()
	for sent, i := 0, 0; sent < n; i++ {
		h.Publish(b, eventstest.Session(fmt.Sprintf("image-%04d", i/50), fmt.Sprint(i%50+1), "latest"))
		for _, event := range h.Events {
			msg := nats.NewMsg(event.Subject)
			msg.Data = event.Data
			for name, value := range map[string]string{"ce-specversion": "1.0", "ce-id": fmt.Sprint("event-", sent), "ce-source": event.Source, "ce-type": string(event.Type),
				"ce-time": event.Time.Format(time.RFC3339Nano), "ce-actor": event.Actor, "content-type": "application/json"} {
				msg.Header[name] = []string{value}
			}
			if _, err := js.PublishMsgAsync(msg); err != nil {
				b.Fatal(err)
			}
			sent++
		}
		h.Events, h.Batches = nil, nil // what the next decision needs is kept beside them
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(time.Minute):
		b.Fatal("the server doesn't acknowledge")
	}
}

// readRaw is how long an ordered consumer takes to read the stream, undecoded.
func readRaw(b *testing.B, nc *nats.Conn, head events.Sequence) time.Duration {
	b.Helper()
	js, err := natsjs.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	started := time.Now()
	consumer, err := js.OrderedConsumer(b.Context(), jetstream.StreamName, natsjs.OrderedConsumerConfig{})
	if err != nil {
		b.Fatal(err)
	}
	messages, err := consumer.Messages(natsjs.PullMaxMessages(2000))
	if err != nil {
		b.Fatal(err)
	}
	defer messages.Stop()
	for range head {
		if _, err := messages.Next(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(started)
}

// copyRows is how long COPY takes for the rows of a schema, into empty tables with the same indexes.
func copyRows(b *testing.B, pool *pgxpool.Pool, p projections.Projector) (took time.Duration, rows int64) {
	b.Helper()
	ctx := b.Context()
	if err := migrations.Apply(ctx, pool, "copied", p.Migrations()); err != nil {
		b.Fatal(err)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Release()
	tables, err := query(ctx, pool, `SELECT tablename::text FROM pg_tables WHERE schemaname = 'copied' AND tablename NOT IN ('position', $1)`, migrations.VersionTable)
	if err != nil {
		b.Fatal(err)
	}
	for _, table := range tables {
		var data bytes.Buffer
		if _, err := conn.Conn().PgConn().CopyTo(ctx, &data, `COPY `+pgx.Identifier{p.Name(), table}.Sanitize()+` TO STDOUT (FORMAT binary)`); err != nil {
			b.Fatal(err)
		}
		started := time.Now()
		tag, err := conn.Conn().PgConn().CopyFrom(ctx, &data, `COPY `+pgx.Identifier{"copied", table}.Sanitize()+` FROM STDIN (FORMAT binary)`)
		if err != nil {
			b.Fatal(err)
		}
		took += time.Since(started)
		rows += tag.RowsAffected()
	}
	if _, err := conn.Exec(ctx, `DROP SCHEMA copied CASCADE`); err != nil {
		b.Fatal(err)
	}
	return took, rows
}

// BenchmarkRebuild rebuilds each projection from 200,000 events (20,000 with -short), and measures, in the same run, its two
// floors: an ordered consumer that reads the same events, and COPY of the rows that come out. of_floor is the rebuild's rate as a part of the
// slower floor's.
func BenchmarkRebuild(b *testing.B) {
	n := 200_000
	if testing.Short() {
		n = 20_000
	}
	log, nc := natstest.LogAndConn(b)
	generate(b, nc, n)
	head, err := log.Head(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range all() {
		b.Run(p.Name(), func(b *testing.B) {
			pool, err := postgres.Open(b.Context(), pgtest.URL(b))
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(pool.Close)
			if err := migrations.Apply(b.Context(), pool, p.Name(), p.Migrations()); err != nil {
				b.Fatal(err)
			}
			var rebuilding, reading, copying time.Duration
			var rows int64
			for b.Loop() {
				started := time.Now()
				if err := rebuilder(pool, log, p, 0).Run(b.Context()); err != nil {
					b.Fatal(err)
				}
				rebuilding += time.Since(started)
				reading += readRaw(b, nc, head)
				took, copied := copyRows(b, pool, p)
				copying, rows = copying+took, copied
			}
			rate := func(took time.Duration) float64 { return float64(b.N) * float64(head) / took.Seconds() }
			floor := min(rate(reading), rate(copying))
			b.ReportMetric(rate(rebuilding), "events/s")
			b.ReportMetric(rate(reading), "read_events/s")
			b.ReportMetric(rate(copying), "copy_events/s")
			b.ReportMetric(float64(rows), "rows")
			b.ReportMetric(rate(rebuilding)/floor, "of_floor")
		})
		b.Run(p.Name()+"_polled", func(b *testing.B) { benchmarkPolled(b, log, p, head) })
	}
}

// benchmarkPolled rebuilds while a live runner is active and clients read without a pause; then the tables are compared with the events.
func benchmarkPolled(b *testing.B, log *jetstream.Log, p projections.Projector, head events.Sequence) {
	pool, err := postgres.Open(b.Context(), pgtest.URL(b))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(pool.Close)
	if err := migrations.Apply(b.Context(), pool, p.Name(), p.Migrations()); err != nil {
		b.Fatal(err)
	}
	if err := rebuilder(pool, log, p, 0).Run(b.Context()); err != nil { // faster than the runner
		b.Fatal(err)
	}
	runner, err := projections.NewRunner(pool, log, p, projections.Config{Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var work sync.WaitGroup
	work.Go(func() {
		if err := runner.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	var polls [2]int
	for client := range polls {
		work.Go(func() {
			for ctx.Err() == nil {
				var at events.Sequence
				if err := runner.WaitFor(ctx, head); err == nil {
					err = pool.QueryRow(context.WithoutCancel(ctx), `SELECT sequence FROM `+p.Name()+`.position`).Scan(&at)
					if err != nil || at < head {
						b.Errorf("a client reads %d, %v: want at least %d", at, err, head)
					}
				}
				polls[client]++
			}
		})
	}
	for b.Loop() {
		if err := rebuilder(pool, log, p, 0).Run(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	stop()
	work.Wait()
	found, err := projections.Verify(b.Context(), pool, log, p, projections.VerifyConfig{Log: slog.New(slog.DiscardHandler)})
	if err != nil || found.Total != 0 {
		b.Errorf("%+v, %v", found, err)
	}
	b.ReportMetric(float64(b.N)*float64(head)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(polls[0]+polls[1])/float64(b.N), "polls")
}
