package jetstream_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// BenchmarkCommand measures the whole way of a command (load the entity, decide, append, synced) beside its floor: a
// publish of the same bytes to the same stream, synced too. The two take turns, so that they meet the same machine.
// command/floor is the ratio of their rates. Beside it, what the syncing costs: the same with a sync now and then.
func BenchmarkCommand(b *testing.B) {
	for name, every := range map[string]time.Duration{"always": 0, "1s": time.Second} {
		b.Run("sync="+name, func(b *testing.B) { benchmarkCommand(b, every) })
	}
}

func benchmarkCommand(b *testing.B, syncEvery time.Duration) {
	server, err := jetstream.StartServer(b.Context(), jetstream.ServerConfig{StoreDir: b.TempDir(), SyncEvery: syncEvery, Log: discard})
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
	js, err := natsjs.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	payload := []byte(`{"image":"debian","alias":"latest","version":"12.5.0","upload_id":"019aba40-0000-7000-8000-000000000001"}`)
	var floor, command time.Duration
	b.ResetTimer()
	for i := range b.N {
		started := time.Now()
		msg := nats.NewMsg("imgsrv.events.alias.floor." + fmt.Sprint(i%100))
		msg.Data = payload
		if _, err := js.PublishMsg(b.Context(), msg); err != nil {
			b.Fatal(err)
		}
		floor += time.Since(started)

		started = time.Now()
		alias := fmt.Sprint(i % 100)
		_, err := log.Decide(b.Context(), jetstream.Cause{Actor: "bench"}, func(ctx context.Context) ([]events.Change, error) {
			current, err := log.Alias(ctx, "debian", alias)
			if err != nil {
				return nil, err
			}
			return []events.Change{{Fact: moved(alias, fmt.Sprint(i)), Expect: current.Sequence}}, nil
		})
		if err != nil {
			b.Fatal(err)
		}
		command += time.Since(started)
	}
	b.ReportMetric(float64(b.N)/command.Seconds(), "commands/s")
	b.ReportMetric(float64(b.N)/floor.Seconds(), "floor/s")
	b.ReportMetric(floor.Seconds()/command.Seconds(), "command/floor")
}
