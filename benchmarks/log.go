package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// appends measures commands (load the entity, decide, append, synced), one after the other, beside publishing the same bytes to the same
// stream, synced too.
func appends(ctx context.Context, b *bench) error {
	folder, err := b.folder("nats")
	if err != nil {
		return err
	}
	log, nc, stop, err := b.openLog(ctx, folder, true)
	if err != nil {
		return err
	}
	defer stop()
	js, err := natsjs.New(nc)
	if err != nil {
		return err
	}
	n, done := either(b, 5000, 300), 0
	pairs, err := b.pair(ctx, func(ctx context.Context) (float64, error) {
		began := time.Now()
		for range n {
			done++
			alias := fmt.Sprint("a", done%100)
			_, err := log.Decide(ctx, jetstream.Cause{Actor: "bench"}, func(ctx context.Context) ([]events.Change, error) {
				current, err := log.Alias(ctx, "debian", alias)
				if err != nil {
					return nil, err
				}
				return []events.Change{{Fact: aliasMoved("debian", alias, fmt.Sprint("v", done)), Expect: current.Sequence}}, nil
			})
			if err != nil {
				return 0, err
			}
		}
		return float64(n) / seconds(began), nil
	}, func(ctx context.Context) (float64, error) {
		msg, err := factMessage(aliasMoved("floor", "a", "v1"), "")
		if err != nil {
			return 0, err
		}
		began := time.Now()
		for range n {
			if _, err := js.PublishMsg(ctx, msg); err != nil {
				return 0, err
			}
		}
		return float64(n) / seconds(began), nil
	})
	if err != nil {
		return err
	}
	b.report(beside("append", "commands: load, decide, append, synced", "JetStream publish, synced", "appends/s", pairs).atLeast(0.5))
	return nil
}

func aliasMoved(image, alias, version string) events.AliasMoved {
	return events.AliasMoved{Alias: events.Alias{Image: image, Alias: alias, Version: version}}
}

func factMessage(fact events.Fact, id string) (*nats.Msg, error) {
	data, err := json.Marshal(fact)
	e := madeEvent{fact.Entity().Subject(), string(fact.Type()), time.Now().UTC().Format(time.RFC3339Nano), string(data)}
	return e.message(id), err
}

// lag has 2,000 facts a second appended, in the way of any command, by some writers at once, to a NATS server beside imgsrv, and asks the catalog for
// every fiftieth of them, from its acknowledgement to the answer that has it in it.
func lag(ctx context.Context, b *bench) error {
	const rate, every, writers = 2000, 50, 100
	store, err := b.folder("nats")
	if err != nil {
		return err
	}
	images := either(b, 1000, 100) // a multiple of writers: each alias is moved by one of them
	if _, err := b.fill(ctx, store, images, 1); err != nil {
		return err
	}
	_, address, err := b.natsServer(ctx, store)
	if err != nil {
		return err
	}
	s, err := b.fresh(ctx, "--nats-url="+address, "--deltas=0")
	if err != nil {
		return err
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	nc, err := nats.Connect(address)
	if err != nil {
		return err
	}
	defer nc.Close()
	log, err := jetstream.Open(ctx, nc, jetstream.Config{Source: "imgsrv://bench", Log: quiet, Meter: noop.Meter{}})
	if err != nil {
		return err
	}
	n := either(b, 30, 5) * rate
	var took []time.Duration
	var errs []error
	var mu sync.Mutex
	var asked, working sync.WaitGroup
	ask := func(sequence events.Sequence) {
		acknowledged := time.Now()
		err := s.asNewAs(ctx, "/api/images?limit=1", uint64(sequence))
		mu.Lock()
		defer mu.Unlock()
		took, errs = append(took, time.Since(acknowledged)), append(errs, err)
	}
	began := time.Now()
	for w := range writers {
		working.Go(func() {
			last := map[events.Alias]events.Sequence{}
			for i := w; i < n && ctx.Err() == nil; i += writers {
				if wait := time.Until(began.Add(time.Duration(i) * time.Second / rate)); wait > 0 {
					time.Sleep(wait)
				}
				fact := aliasMoved(madeName(i%images), fmt.Sprint("lag-", i/images%2), "v000000")
				sequence, err := log.Append(ctx, jetstream.Cause{Actor: "bench"}, events.Change{Fact: fact, Expect: last[fact.Alias]})
				if err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
					return
				}
				if last[fact.Alias] = sequence; i/writers%every == w%every {
					asked.Go(func() { ask(sequence) })
				}
			}
		})
	}
	working.Wait()
	achieved := float64(n) / seconds(began)
	asked.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	r := alone("lag", "acknowledged to visible in the catalog, at 2,000 events/s", "ms p99", milliseconds(percentile(took, 99))).atMost(100)
	r.latencies(took, nil)
	r.Note = fmt.Sprintf("%.0f events/s were appended", achieved)
	b.report(r)
	return nil
}

// natsFolder is where an imgsrv keeps its events.
func natsFolder(data string) string { return filepath.Join(data, "nats") }
