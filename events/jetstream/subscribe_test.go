package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// visitor is a connection of subscriber "a", to a server with the two images of exampleServer.
func visitor(t *testing.T) *nats.Conn {
	t.Helper()
	url, credentials, stop := exampleServer("a")
	t.Cleanup(stop)
	nc, err := jetstream.Connect(url, credentials)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// hear subscribes until so many publications and moves have come, as "sequence what".
func hear(t *testing.T, nc *nats.Conn, cfg jetstream.SubscribeConfig, count int) (got []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	note := func(d jetstream.Delivery, what string) error {
		if got = append(got, fmt.Sprintf("%d %s", d.Sequence, what)); len(got) == count {
			cancel()
		}
		return nil
	}
	err := jetstream.Subscribe(ctx, nc, cfg,
		jetstream.Handle(func(_ context.Context, d jetstream.Delivery, p events.VersionPublished) error {
			return note(d, p.Image)
		}),
		jetstream.Handle(func(_ context.Context, d jetstream.Delivery, m events.AliasMoved) error {
			return note(d, m.Alias.Alias)
		}))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestASubscriberGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	nc := visitor(t)
	if got := hear(t, nc, jetstream.SubscribeConfig{Durable: "a"}, 1); !slices.Equal(got, []string{"1 alpine"}) {
		t.Errorf("the first event: %v", got)
	}
	position, ok, err := jetstream.SubscriberPosition(t.Context(), nc, "a")
	if err != nil || !ok || position.Acknowledged != 1 {
		t.Errorf("position %+v, %v, %v", position, ok, err)
	}
	// Where it began is not asked again.
	if got := hear(t, nc, jetstream.SubscribeConfig{Durable: "a", From: 1}, 2); !slices.Equal(got, []string{"2 debian-bookworm", "3 latest"}) {
		t.Errorf("after a restart: %v", got)
	}
	if err := nc.PublishMsg(&nats.Msg{Subject: "imgsrv.events.alias.x.y", Data: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := nc.LastError(); !errors.Is(err, nats.ErrPermissionViolation) {
		t.Errorf("a subscriber's append: %v, want a refusal", err)
	}
}

// Who has the right to make consumers gets names of their own choice.
func TestDurableNamesOfThoseWithRights(t *testing.T) {
	t.Parallel()
	log, nc := natstest.LogAndConn(t)
	for _, fact := range []events.Fact{published("alpine", "3.20"), published("debian-bookworm", "12.5.0"), events.AliasMoved{Alias: events.Alias{Image: "debian-bookworm", Alias: "latest", Version: "12.5.0"}}} {
		mustAppend(t, log, events.Change{Fact: fact})
	}
	if got := hear(t, nc, jetstream.SubscribeConfig{Durable: "b", From: 3}, 1); !slices.Equal(got, []string{"3 latest"}) {
		t.Errorf("from event 3: %v", got)
	}
	if got := hear(t, nc, jetstream.SubscribeConfig{Durable: "c", Images: []string{"debian-bookworm"}}, 2); !slices.Equal(got, []string{"2 debian-bookworm", "3 latest"}) {
		t.Errorf("one image: %v", got)
	}
}

// What its handlers don't want is passed over, since its consumer isn't its own to change.
func TestASubscriberOfOneImageOfMany(t *testing.T) {
	t.Parallel()
	nc := visitor(t)
	if got := hear(t, nc, jetstream.SubscribeConfig{Durable: "a", Images: []string{"debian-bookworm"}}, 2); !slices.Equal(got, []string{"2 debian-bookworm", "3 latest"}) {
		t.Errorf("one image: %v", got)
	}
}

func TestASubscriberHearsInOrderThoughItsHandlerFails(t *testing.T) {
	t.Parallel()
	nc := visitor(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []string
	err := jetstream.Subscribe(ctx, nc, jetstream.SubscribeConfig{Durable: "a"},
		jetstream.Handle(func(_ context.Context, d jetstream.Delivery, _ events.VersionPublished) error {
			got = append(got, fmt.Sprintf("event %d, attempt %d", d.Sequence, d.Attempt))
			switch {
			case d.Sequence == 1 && d.Attempt == 1:
				return errors.New("not now")
			case d.Sequence == 1 && d.Attempt == 2:
				return &jetstream.RetryAfter{Delay: 10 * time.Millisecond}
			case d.Sequence == 2:
				cancel()
			}
			return nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"event 1, attempt 1", "event 1, attempt 2", "event 1, attempt 3", "event 2, attempt 1"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsNoSubscriptionIsRefused(t *testing.T) {
	t.Parallel()
	nc := visitor(t)
	one := jetstream.Handle(func(context.Context, jetstream.Delivery, events.AliasMoved) error { return nil })
	several := jetstream.Handle(func(context.Context, jetstream.Delivery, events.AliasFact) error { return nil })
	for name, err := range map[string]error{
		"no name":      jetstream.Subscribe(t.Context(), nc, jetstream.SubscribeConfig{}, one),
		"no handler":   jetstream.Subscribe(t.Context(), nc, jetstream.SubscribeConfig{Durable: "a"}),
		"not one type": jetstream.Subscribe(t.Context(), nc, jetstream.SubscribeConfig{Durable: "a"}, several),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestASubscriberThatIsForgottenBeginsAnew(t *testing.T) {
	t.Parallel()
	log, nc := natstest.LogAndConn(t)
	mustAppend(t, log, events.Change{Fact: moved("a", "1")})
	cfg := jetstream.SubscribeConfig{Durable: "a", Forget: time.Hour}
	for range 2 {
		if got := hear(t, nc, cfg, 1); !slices.Equal(got, []string{"1 a"}) {
			t.Errorf("heard %v", got)
		}
		if err := jetstream.Unsubscribe(t.Context(), nc, "a"); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := jetstream.SubscriberPosition(t.Context(), nc, "a"); ok || err != nil {
			t.Errorf("after Unsubscribe: %v, %v", ok, err)
		}
	}
	if err := jetstream.Unsubscribe(t.Context(), nc, "a"); err != nil {
		t.Errorf("a name that isn't known: %v", err)
	}
}

// Reading some subjects up to a sequence is the history without the rest, and leaves no consumer behind.
func TestReadingUpToASequence(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	for _, image := range []string{"alpine", "debian", "fedora.x"} {
		h.Publish(t, eventstest.Session(image, "1", "latest"))
		h.Publish(t, eventstest.Session(image, "2.0", "latest"))
	}
	log := natstest.Log(t)
	for _, batch := range h.Batches {
		mustAppend(t, log, batch...)
	}
	rapid.Check(t, func(rt *rapid.T) {
		upTo := events.Sequence(rapid.IntRange(0, int(h.Head())+3).Draw(rt, "up to"))
		images := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"alpine", "debian", "fedora.x", "none"}), 0, 3, rapid.ID).Draw(rt, "images")
		kind := rapid.SampledFrom([]string{events.KindVersion, events.KindAlias, events.KindImage}).Draw(rt, "kind")
		var want, got []events.Sequence
		for _, e := range h.Events {
			if e.Fact.Entity().Kind == kind && e.Sequence <= upTo && (len(images) == 0 || slices.Contains(images, events.ImageOf(e.Fact))) {
				want = append(want, e.Sequence)
			}
		}
		if err := log.Read(t.Context(), upTo, events.SubjectsAbout(kind, images...), func(e events.Event) error {
			got = append(got, e.Sequence)
			return nil
		}); err != nil {
			rt.Fatalf("%v", err)
		}
		if !slices.Equal(got, want) {
			rt.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestTheSequenceAtATimeIsTheLastEventThen(t *testing.T) {
	t.Parallel()
	log := natstest.Log(t)
	begin := time.Now()
	if got, err := log.SequenceAt(t.Context(), begin); got != 0 || err != nil {
		t.Errorf("in an empty stream: %d, %v", got, err)
	}
	for i := range 37 {
		mustAppend(t, log, events.Change{Fact: moved(fmt.Sprintf("a%d", i), "1")})
	}
	for sequence := events.Sequence(1); sequence <= 37; sequence++ {
		event, ok, err := log.At(t.Context(), sequence)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if got, err := log.SequenceAt(t.Context(), event.Time); got != sequence || err != nil {
			t.Errorf("at the time of event %d: %d, %v", sequence, got, err)
		}
		if got, err := log.SequenceAt(t.Context(), event.Time.Add(-1)); got != sequence-1 || err != nil {
			t.Errorf("just before event %d: %d, %v", sequence, got, err)
		}
	}
	if _, ok, err := log.At(t.Context(), 38); ok || err != nil {
		t.Errorf("event 38: %v, %v", ok, err)
	}
}
