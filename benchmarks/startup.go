package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// startup measures from the command to the first answer: of imgsrv, and of a NATS server and a PostgreSQL that are started at the same time by hand.
// Cold there is nothing; warm both sides take turns with the same folders, which hold 1,000,000 events and what was derived from them.
func startup(ctx context.Context, b *bench) error {
	cold, err := b.pair(ctx, func(ctx context.Context) (float64, error) {
		s, err := b.fresh(ctx)
		if err != nil {
			return 0, err
		}
		s.stop()
		return s.took.Seconds(), nil
	}, func(ctx context.Context) (float64, error) {
		store, err := b.folder("nats")
		if err != nil {
			return 0, err
		}
		home, err := b.postgresFolder("postgres")
		if err != nil {
			return 0, err
		}
		return b.byHand(ctx, store, filepath.Join(home, "data"), home)
	})
	if err != nil {
		return err
	}
	b.report(beside("startup-cold", "start with an empty folder", "nats-server, initdb and postgres", "s", cold).atMost(1.3))

	n := either(b, 1_000_000, 50_000)
	s, err := b.madeServer(ctx, n/eventsPerVersion(), 50)
	if err != nil {
		return err
	}
	s.stop()
	cluster := filepath.Join(s.data, "postgres", "data")
	if _, err := os.Stat(cluster); err != nil {
		return fmt.Errorf("imgsrv's PostgreSQL isn't below its data folder: %w", err)
	}
	sockets, err := b.postgresFolder("sockets")
	if err != nil {
		return err
	}
	warm, err := b.pair(ctx, func(ctx context.Context) (float64, error) {
		again, err := b.imgsrv(ctx, s.data, s.storage)
		if err != nil {
			return 0, err
		}
		again.stop()
		return again.took.Seconds(), nil
	}, func(ctx context.Context) (float64, error) { return b.byHand(ctx, natsFolder(s.data), cluster, sockets) })
	if err != nil {
		return err
	}
	b.report(beside("startup-warm", fmt.Sprintf("start with %d events", n), "nats-server and postgres", "s", warm).atMost(1.3))
	return nil
}

// byHand starts both servers at once, makes the cluster where there is none, and stops them again. It gives how long it took until both answered.
func (b *bench) byHand(ctx context.Context, store, cluster, sockets string) (float64, error) {
	var natsErr, pgErr error
	var started [2]*process
	var both sync.WaitGroup
	began := time.Now()
	both.Go(func() { started[0], _, natsErr = b.natsServer(ctx, store) })
	if _, err := os.Stat(cluster); err != nil {
		pgErr = b.initdb(ctx, cluster)
	}
	if pgErr == nil {
		started[1], _, pgErr = b.postgres(ctx, cluster, sockets)
	}
	both.Wait()
	took := seconds(began)
	for _, p := range started {
		if p != nil {
			p.stop()
		}
	}
	return took, errors.Join(natsErr, pgErr)
}
