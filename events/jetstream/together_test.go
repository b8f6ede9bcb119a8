package jetstream_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// Many appends at once are stored together. Each is told of its own events, and one that is refused, or that is about what another one
// is about, takes none of the others with it.
func TestAppendsAtOnceKeepToThemselves(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	old := mustAppend(t, log, events.Change{Fact: moved("taken", "1")})
	const writers, rounds = 60, 5
	type stored struct {
		aliases []string
		last    events.Sequence
	}
	all := make([][]stored, writers)
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for r := range rounds {
				if w%10 == 9 {
					_, err := log.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: moved(fmt.Sprint("lost-", w, "-", r), "1")}, events.Change{Fact: moved("taken", "2"), Expect: old + 1000})
					if !errors.Is(err, jetstream.ErrConflict) {
						t.Errorf("writer %d: error %v, want a conflict", w, err)
					}
					continue
				}
				var s stored
				var changes []events.Change
				for i := range 1 + w%3 {
					alias := fmt.Sprint("a-", w, "-", r, "-", i)
					s.aliases = append(s.aliases, alias)
					changes = append(changes, events.Change{Fact: moved(alias, fmt.Sprint(w))})
				}
				var err error
				if s.last, err = log.Append(t.Context(), jetstream.Cause{Key: fmt.Sprint(w, " ", r)}, changes...); err != nil {
					t.Error(err)
				}
				all[w] = append(all[w], s)
			}
		})
	}
	group.Wait()
	count := events.Sequence(1)
	for w := range all {
		for _, s := range all[w] {
			for i, alias := range s.aliases {
				count++
				current, err := log.Alias(t.Context(), "debian", alias)
				if want := s.last - events.Sequence(len(s.aliases)-1-i); err != nil || current.Sequence != want || current.State.Version != fmt.Sprint(w) {
					t.Errorf("%s: sequence %d, version %q (%v); want %d and %d", alias, current.Sequence, current.State.Version, err, want, w)
				}
			}
		}
	}
	if head, err := log.Head(t.Context()); err != nil || head != count {
		t.Errorf("%d events (%v), want %d", head, err, count)
	}
}

// Of many that would follow the same event exactly one does.
func TestOfAppendsAtOnceToOneEntityOneIsStored(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	for r := range 5 {
		var group sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for w := range 40 {
			group.Go(func() {
				_, err := log.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: moved(fmt.Sprint("one-", r), fmt.Sprint(w))}, events.Change{Fact: moved(fmt.Sprint("other-", r, "-", w), "1")})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					won++
				case !errors.Is(err, jetstream.ErrConflict):
					t.Error(err)
				}
			})
		}
		group.Wait()
		if won != 1 {
			t.Errorf("round %d: %d appends were stored, want 1", r, won)
		}
	}
}

// BenchmarkAppendsAtOnce is what many get done together, synced: appends of one event and of three.
func BenchmarkAppendsAtOnce(b *testing.B) {
	for _, changes := range []int{1, 3} {
		for _, writers := range []int{1, 4, 16, 64} {
			b.Run(fmt.Sprintf("events=%d/writers=%d", changes, writers), func(b *testing.B) {
				server, err := jetstream.StartServer(b.Context(), jetstream.ServerConfig{StoreDir: b.TempDir(), Log: discard})
				if err != nil {
					b.Fatal(err)
				}
				defer server.Stop()
				nc, err := server.Connect()
				if err != nil {
					b.Fatal(err)
				}
				defer nc.Close()
				log, err := jetstream.Open(b.Context(), nc, jetstream.Config{Source: "bench", Log: discard, Meter: noop.Meter{}})
				if err != nil {
					b.Fatal(err)
				}
				b.ResetTimer()
				var group sync.WaitGroup
				for w := range writers {
					group.Go(func() {
						for i := w; i < b.N; i += writers {
							var batch []events.Change
							for c := range changes {
								batch = append(batch, events.Change{Fact: moved(fmt.Sprint("x-", i, "-", c), "1")})
							}
							if _, err := log.Append(b.Context(), jetstream.Cause{Actor: "bench"}, batch...); err != nil {
								b.Error(err)
							}
						}
					})
				}
				group.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
			})
		}
	}
}
