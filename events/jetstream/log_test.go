package jetstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

var discard = slog.New(slog.DiscardHandler)

func startServer(t *testing.T, cfg jetstream.ServerConfig) (*jetstream.Server, *nats.Conn) {
	t.Helper()
	server, err := jetstream.StartServer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return server, nc
}

// openLog opens the log of a folder; stop ends it before the test does.
func openLog(t *testing.T, cfg jetstream.ServerConfig) (log *jetstream.Log, stop func()) {
	t.Helper()
	server, nc := startServer(t, cfg)
	log, err := jetstream.Open(t.Context(), nc, jetstream.Config{Source: "test", Log: discard, Meter: noop.Meter{}})
	if err != nil {
		t.Fatal(err)
	}
	return log, func() {
		nc.Close()
		server.Stop()
	}
}

func moved(alias, version string) events.AliasMoved {
	return events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: alias, Version: version}}
}

func mustAppend(t *testing.T, log *jetstream.Log, changes ...events.Change) events.Sequence {
	t.Helper()
	sequence, err := log.Append(t.Context(), jetstream.Cause{Actor: "test"}, changes...)
	if err != nil {
		t.Fatal(err)
	}
	return sequence
}

func TestAnAppendStatesWhatItHasSeen(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	first := mustAppend(t, log, events.Change{Fact: moved("a", "1")})
	second := mustAppend(t, log, events.Change{Fact: moved("a", "2"), Expect: first})
	for name, expect := range map[string]events.Sequence{"as if new": 0, "one behind": first, "ahead": second + 1} {
		if _, err := log.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: moved("a", "3"), Expect: expect}); !errors.Is(err, jetstream.ErrConflict) {
			t.Errorf("%s: %v, want a conflict", name, err)
		}
	}
	current, err := log.Alias(t.Context(), "debian", "a")
	if err != nil || current.Sequence != second || current.State.Version != "2" {
		t.Errorf("alias %+v (%v), want version 2 at %d", current, err, second)
	}
	none, err := log.Alias(t.Context(), "debian", "never")
	if err != nil || none.Sequence != 0 {
		t.Errorf("an entity without facts: %+v, %v", none, err)
	}
}

func TestABatchIsAllOrNothing(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	a := mustAppend(t, log, events.Change{Fact: moved("a", "1")})
	_, err := log.Append(t.Context(), jetstream.Cause{},
		events.Change{Fact: moved("b", "1")}, events.Change{Fact: moved("a", "2"), Expect: a + 7}, events.Change{Fact: moved("c", "1")})
	if !errors.Is(err, jetstream.ErrConflict) {
		t.Fatalf("error %v, want a conflict", err)
	}
	if head, err := log.Head(t.Context()); err != nil || head != a {
		t.Fatalf("head %d (%v) after a refused batch, want %d", head, err, a)
	}
	last := mustAppend(t, log, events.Change{Fact: moved("b", "1")}, events.Change{Fact: moved("a", "2"), Expect: a}, events.Change{Fact: moved("c", "1")})
	if last != a+3 {
		t.Errorf("batch ends at %d, want %d", last, a+3)
	}
}

// A client that lost the answer gives the same command again: same cause, same states.
func TestAnAppendGivenAgainIsTheSameEvent(t *testing.T) {
	t.Parallel()
	for name, changes := range map[string][]events.Change{
		"one fact": {{Fact: moved("a", "1")}},
		"a batch":  {{Fact: moved("a", "1")}, {Fact: moved("b", "1")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			log := natstest.Log(t)
			cause := jetstream.Cause{Key: "move"}
			first, err := log.Append(t.Context(), cause, changes...)
			if err != nil {
				t.Fatal(err)
			}
			again, err := log.Append(t.Context(), cause, changes...)
			if err != nil || again != first {
				t.Errorf("again: sequence %d (%v), want %d", again, err, first)
			}
			if head, err := log.Head(t.Context()); err != nil || head != events.Sequence(len(changes)) {
				t.Errorf("%d events (%v), want %d", head, err, len(changes))
			}
			// Once the entity has moved on, the same command is old news.
			mustAppend(t, log, events.Change{Fact: changes[len(changes)-1].Fact, Expect: first})
			if _, err := log.Append(t.Context(), jetstream.Cause{Key: "other"}, changes...); !errors.Is(err, jetstream.ErrConflict) {
				t.Errorf("another cause: %v, want a conflict", err)
			}
		})
	}
}

func TestDecideMeetsConflictsByDecidingAgain(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	const writers, rounds = 8, 10
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for r := range rounds {
				_, err := log.Decide(t.Context(), jetstream.Cause{Key: fmt.Sprint(w, " ", r)}, func(ctx context.Context) ([]events.Change, error) {
					current, err := log.Alias(ctx, "debian", "counter")
					if err != nil {
						return nil, err
					}
					n := 0
					if current.Sequence != 0 {
						if _, err := fmt.Sscan(current.State.Version, &n); err != nil {
							return nil, err
						}
					}
					return []events.Change{{Fact: moved("counter", fmt.Sprint(n+1)), Expect: current.Sequence}}, nil
				})
				for errors.Is(err, jetstream.ErrConflict) { // bounded inside; a caller may go on
					t.Log("a writer lost ten times in a row")
					return
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	current, err := log.Alias(t.Context(), "debian", "counter")
	if err != nil || current.State.Version != fmt.Sprint(current.Sequence) {
		t.Errorf("counter %s after %d events (%v): an increment was lost", current.State.Version, current.Sequence, err)
	}
}

func TestManyBatchesAtOnceAllGetThrough(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	var group sync.WaitGroup
	for i := range 200 { // the server takes 50 in flight
		group.Go(func() {
			_, err := log.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: moved(fmt.Sprint("x", i), "1")}, events.Change{Fact: moved(fmt.Sprint("y", i), "1")})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if head, err := log.Head(t.Context()); err != nil || head != 400 {
		t.Errorf("head %d (%v), want 400", head, err)
	}
}

func TestAnEventTellsItsStory(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	cause := jetstream.Cause{Actor: "admin", Correlation: "upload-1", Causation: "event-0"}
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	sequence, err := log.Append(tracecontext.With(t.Context(), parent), cause, events.Change{Fact: moved("latest", "12.5.0")})
	if err != nil {
		t.Fatal(err)
	}
	event, ok, err := log.Last(t.Context(), events.AliasEntity("debian", "latest"))
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	got := []any{event.Sequence, event.Type, event.Subject, event.Actor, event.Correlation, event.Causation, event.TraceParent, event.Source, event.Fact}
	want := []any{sequence, events.Type("imgsrv.alias.moved.v2"), "imgsrv.events.alias.debian.latest", "admin", "upload-1", "event-0", parent, "imgsrv://test", moved("latest", "12.5.0")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if age := time.Since(event.Time); age < 0 || age > time.Minute {
		t.Errorf("the event is %s old", age)
	}
}

func TestATailReadsInOrderAndGoesOn(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	var expect events.Sequence
	for i := range 30 {
		expect = mustAppend(t, log, events.Change{Fact: moved("a", fmt.Sprint(i)), Expect: expect})
	}
	tail, err := log.Tail(t.Context(), 10)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	var got []events.Sequence
	read := func(until events.Sequence) {
		for len(got) == 0 || got[len(got)-1] < until {
			batch, err := tail.Next(t.Context(), 7)
			if err != nil {
				t.Fatal(err)
			}
			if len(batch) > 7 {
				t.Fatalf("a batch of %d, at most 7 were asked for", len(batch))
			}
			for _, event := range batch {
				got = append(got, event.Sequence)
			}
		}
	}
	read(30)
	mustAppend(t, log, events.Change{Fact: moved("b", "new")})
	read(31)
	for i, sequence := range got {
		if sequence != events.Sequence(11+i) {
			t.Fatalf("sequences %v, want 11 to 31", got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := tail.Next(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at the head: %v, want to wait until the context ends", err)
	}
}

func TestATailStopsAtWhatItCantRead(t *testing.T) {
	t.Parallel()
	log, nc := natstest.LogAndConn(t)
	mustAppend(t, log, events.Change{Fact: moved("a", "1")})
	publishRaw(t, nc, "imgsrv.events.alias.x.y", "imgsrv.alias.teleported.v1")
	mustAppend(t, log, events.Change{Fact: moved("b", "1")})
	tail, err := log.Tail(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tail.Close()
	for seen := 0; seen < 1; {
		batch, err := tail.Next(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		seen += len(batch)
	}
	for range 2 { // it stays there
		_, err = tail.Next(t.Context(), 10)
		var bad *jetstream.Undecodable
		if !errors.As(err, &bad) || bad.Event.Sequence != 2 || !errors.Is(err, events.ErrUnknownType) {
			t.Fatalf("error %v, want event 2 of an unknown type", err)
		}
	}
}

func publishRaw(t *testing.T, nc *nats.Conn, subject, typ string) {
	t.Helper()
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	msg := nats.NewMsg(subject)
	msg.Data = []byte(`{}`)
	msg.Header["ce-id"], msg.Header["ce-type"], msg.Header["ce-time"] = []string{"raw"}, []string{typ}, []string{"2026-11-24T12:00:00Z"}
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
}

func TestTheStreamOutlivesItsServerAndKeepsItsIdentity(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var identity string
	for round := range 3 {
		log, stop := openLog(t, jetstream.ServerConfig{StoreDir: dir, Log: discard})
		if round == 0 {
			identity = log.Identity()
		}
		if log.Identity() != identity || identity == "" {
			t.Fatalf("round %d: identity %q, want %q", round, log.Identity(), identity)
		}
		if got := mustAppend(t, log, events.Change{Fact: moved(fmt.Sprint("a", round), "1")}); got != events.Sequence(round+1) {
			t.Fatalf("round %d: sequence %d", round, got)
		}
		stop()
	}
	other := natstest.Log(t)
	if other.Identity() == identity {
		t.Error("another stream has the same identity")
	}
}

func TestAForeignStreamOfOurNameIsRefused(t *testing.T) {
	t.Parallel()
	server, nc := startServer(t, jetstream.ServerConfig{StoreDir: t.TempDir(), Log: discard, NoSync: true})
	defer server.Stop()
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), natsjs.StreamConfig{Name: jetstream.StreamName, Subjects: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := jetstream.Open(t.Context(), nc, jetstream.Config{Log: discard, Meter: noop.Meter{}}); err == nil {
		t.Error("opened a stream that is not ours")
	}
}

func TestTheEnvelopeIsCloudEventsBinaryMode(t *testing.T) {
	t.Parallel()
	log, nc := natstest.LogAndConn(t)
	mustAppend(t, log, events.Change{Fact: moved("latest", "1")})
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), jetstream.StreamName)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := stream.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"ce-specversion": "1.0", "ce-type": "imgsrv.alias.moved.v2", "ce-subject": "debian/latest", "ce-source": "imgsrv://test", "content-type": "application/json"} {
		if got := msg.Header[name]; len(got) != 1 || got[0] != want {
			t.Errorf("header %s is %v, want %s", name, got, want)
		}
	}
	var payload map[string]any
	if err := json.Unmarshal(msg.Data, &payload); err != nil || payload["version"] != "1" {
		t.Errorf("payload %s (%v)", msg.Data, err)
	}
}
