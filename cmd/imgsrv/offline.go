package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/internal/datadir"
	"github.com/imgsrv/imgsrv/projections"
	projcatalog "github.com/imgsrv/imgsrv/projections/catalog"
	projjobs "github.com/imgsrv/imgsrv/projections/jobs"
	projstreams "github.com/imgsrv/imgsrv/projections/streams"
)

// projectors are all projections that there are.
func projectors() []projections.Projector {
	return []projections.Projector{projcatalog.New(), projjobs.New(), projstreams.New()}
}

// operator makes the operator of a projection that this node runs.
func (n *Node) operator(pool *pgxpool.Pool, log *jetstream.Log, p projections.Projector, runner *projections.Runner) *projections.Operator {
	o := projections.NewOperator(pool, log, p, runner, projections.RebuildConfig{Log: n.log, Version: version()})
	n.onStop("rebuild of "+p.Name(), func() error { o.Stop(); return nil })
	return o
}

// openOffline opens the stores of a server that doesn't run: the event log and PostgreSQL, as its flags say, without anything
// that serves or consumes. The returned function closes them. Stores in the data folder are kept for this process alone; a
// server that uses them makes it a *datadir.InUseError.
func openOffline(ctx context.Context, flags ServerFlags, log *slog.Logger) (_ *jetstream.Log, _ *pgxpool.Pool, stop func() error, err error) {
	n := &Node{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Stop())
		}
	}()
	if flags.NATSURL == "" || flags.PostgresURL == "" {
		if _, err := os.Stat(flags.DataDir); errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil, fmt.Errorf("there is no data folder %s: say where the server's is with --data-dir", flags.DataDir)
		}
		lock, err := datadir.Open(flags.DataDir)
		if err != nil {
			return nil, nil, nil, err
		}
		n.onStop("data folder", lock.Close)
		if err := backup.CheckFinished(flags.DataDir); err != nil {
			return nil, nil, nil, err
		}
	}
	connectPostgres := n.beginPostgres(ctx, flags, flags.DataDir)
	nc, _, err := n.connectNATS(ctx, flags, flags.DataDir)
	if err != nil {
		return nil, nil, nil, err
	}
	events, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv", Log: log, Meter: noop.Meter{}})
	if err != nil {
		return nil, nil, nil, err
	}
	pool, err := connectPostgres()
	if err != nil {
		return nil, nil, nil, err
	}
	return events, pool, n.Stop, nil
}
