package jetstream_test

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// export reads the whole history of a log.
func export(t *testing.T, log *jetstream.Log) (records []jetstream.Record) {
	t.Helper()
	head, err := log.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Export(t.Context(), head, func(r jetstream.Record) error {
		records = append(records, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return records
}

// lines gives records and then an error, where there is one.
func lines(records []jetstream.Record, err error) iter.Seq2[jetstream.Record, error] {
	return func(yield func(jetstream.Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
		if err != nil {
			yield(jetstream.Record{}, err)
		}
	}
}

func history(t *testing.T) []jetstream.Record {
	t.Helper()
	h := eventstest.New()
	for _, version := range []string{"1", "2.0", "3~rc1"} {
		h.Publish(t, eventstest.Session("debian", version, "latest"))
	}
	log := natstest.Log(t)
	for _, batch := range h.Batches {
		mustAppend(t, log, batch...)
	}
	return export(t, log)
}

func TestAnImportThatBrokeGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	records := history(t)
	log, nc := natstest.LogAndConn(t)
	broken := errors.New("the line broke")
	half := len(records) / 2
	done, err := log.Import(t.Context(), lines(records[:half], broken))
	if !errors.Is(err, broken) || done.Appended != half || done.Head != events.Sequence(half) {
		t.Fatalf("%+v, %v", done, err)
	}
	// Another process, after a restart.
	again, err := jetstream.Open(t.Context(), nc, jetstream.Config{Source: "imgsrv://test", Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
	if err != nil {
		t.Fatal(err)
	}
	for name, l := range map[string]*jetstream.Log{"this one": log, "the next": again} {
		_, err := l.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: moved("other", "1")})
		if !errors.Is(err, jetstream.ErrImporting) || !errors.Is(err, jetstream.ErrUnavailable) {
			t.Errorf("%s appends in the middle of an import: %v", name, err)
		}
	}
	if _, err := again.Import(t.Context(), lines(records[:half-1], nil)); !errors.Is(err, jetstream.ErrDifferent) {
		t.Errorf("an import that ends earlier: %v", err)
	}
	done, err = again.Import(t.Context(), lines(records, nil))
	if err != nil || done.Present != half || done.Appended != len(records)-half {
		t.Fatalf("%+v, %v", done, err)
	}
	got := export(t, again)
	for i := range got {
		got[i].Time = records[i].Time // the stream's own
	}
	if diff := cmp.Diff(records, got); diff != "" {
		t.Errorf("(-exported +imported):\n%s", diff)
	}
	if again.Identity() != log.Identity() {
		t.Error("the stream became another one")
	}
	mustAppend(t, again, events.Change{Fact: moved("other", "1")})
	if _, err := again.Import(t.Context(), lines(records, nil)); !errors.Is(err, jetstream.ErrNotEmpty) {
		t.Errorf("a second import: %v", err)
	}
}

func TestARefusedFirstLineLeavesTheStreamAsItWas(t *testing.T) {
	t.Parallel()
	records := history(t)
	log := natstest.Log(t)
	wrong := func(change func(*jetstream.Record)) []jetstream.Record {
		r := slices.Clone(records)
		r[0].Headers = map[string][]string{}
		for name, values := range records[0].Headers {
			r[0].Headers[name] = values
		}
		change(&r[0])
		return r
	}
	for name, given := range map[string][]jetstream.Record{
		"a gap":             records[1:],
		"an unknown type":   wrong(func(r *jetstream.Record) { r.Headers["ce-type"] = []string{"imgsrv.new.v1"} }),
		"no time":           wrong(func(r *jetstream.Record) { delete(r.Headers, "ce-time") }),
		"no id":             wrong(func(r *jetstream.Record) { delete(r.Headers, "ce-id") }),
		"another subject":   wrong(func(r *jetstream.Record) { r.Subject += "x" }),
		"what is no object": wrong(func(r *jetstream.Record) { r.Data = []byte("[]") }),
	} {
		var bad *jetstream.BadRecord
		if _, err := log.Import(t.Context(), lines(given, nil)); !errors.As(err, &bad) || bad.Line != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustAppend(t, log, events.Change{Fact: moved("a", "1")})
}

func TestAnImportIsNotDoneTwiceAtOnce(t *testing.T) {
	t.Parallel()
	records := history(t)
	log := natstest.Log(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done, err := log.Import(ctx, func(yield func(jetstream.Record, error) bool) {
		if _, err := log.Import(ctx, lines(records, nil)); !errors.Is(err, jetstream.ErrNotEmpty) {
			t.Errorf("an import within an import: %v", err)
		}
		lines(records, nil)(yield)
	})
	if err != nil || done.Appended != len(records) {
		t.Errorf("%+v, %v", done, err)
	}
}
