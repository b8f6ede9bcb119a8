package streams_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/streams"
)

func TestRunnerBringsPublicationsFromTheStreamIntoTheDocuments(t *testing.T) {
	t.Parallel()
	db, log, h := newDatabase(t), natstest.Log(t), newHistory(t)
	runner, err := projections.NewRunner(db.pool, log, streams.New(), projections.Config{Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- runner.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("the runner ended with %v", err)
		}
	})

	h.publish(events.Upload{Image: "deb", Version: "1", Aliases: []string{"latest"}, Variants: []events.UploadVariant{variant(vm, "default", "one")}})
	h.publish(events.Upload{Image: "deb", Version: "2", Aliases: []string{"latest"}, Variants: []events.UploadVariant{variant(vm, "default", "two")}})
	h.moveAlias("deb", "latest", "1")
	var last events.Sequence
	for _, changes := range h.batches {
		if last, err = log.Append(t.Context(), jetstream.Cause{Actor: "test"}, changes...); err != nil {
			t.Fatal(err)
		}
	}
	wait, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := runner.WaitFor(wait, last); err != nil {
		t.Fatal(err)
	}
	set := db.stored(t)
	want := map[string][]string{digest("one"): {"deb", "deb/1", "deb/latest"}, digest("two"): {"deb/2"}}
	if diff := cmp.Diff(want, shortNames(read(t, set, clientrules.Incus))); diff != "" || set.Changed.Sequence != last {
		t.Errorf("changed at %d of %d, names (-want +got):\n%s", set.Changed.Sequence, last, diff)
	}
}
