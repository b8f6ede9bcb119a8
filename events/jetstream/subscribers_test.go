package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

func TestARemovedSubscriberIsCutOffAndStaysOut(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	file := site.Add(t, "mirror", "debian")
	closed := make(chan struct{})
	nc := site.Connect(t, file, nats.ReconnectWait(time.Millisecond), nats.ClosedHandler(func(*nats.Conn) { close(closed) }), quiet)
	stays := site.Connect(t, site.Add(t, "other"))
	if _, err := site.Subscribers.Remove(t.Context(), "mirror", "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-closed:
	case <-time.After(answerLimit):
		t.Error("the connection goes on")
	}
	if err := nc.LastError(); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("the connection ended with %v, want a refusal", err)
	}
	if _, err := jetstream.Connect(site.Server.URL(), file); !errors.Is(err, nats.ErrAuthorization) || !strings.Contains(err.Error(), "removed") {
		t.Errorf("connecting again: %v", err)
	}
	if err := stays.FlushTimeout(answerLimit); err != nil || !stays.IsConnected() {
		t.Errorf("another subscriber: %v", err)
	}
	// The name may be given again, with all that belongs to it.
	if got := hear(t, site.Connect(t, site.Add(t, "mirror", "alpine")), jetstream.SubscribeConfig{Durable: "mirror"}, 2); !slices.Equal(got, []string{"2 alpine", "4 latest"}) {
		t.Errorf("the new one heard %v", got)
	}
	if _, err := jetstream.Connect(site.Server.URL(), file); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("the old credentials, after the name was given again: %v", err)
	}
}

func TestSubscribersAreThereAfterARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run := func(use func(*natstest.Site)) {
		t.Helper()
		server, own := startServer(t, jetstream.ServerConfig{StoreDir: dir, Listen: "127.0.0.1:0", Log: discard, NoSync: true})
		log, err := jetstream.Open(t.Context(), own, jetstream.Config{Source: "test", Log: discard, Meter: noop.Meter{}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		subscribers := jetstream.NewSubscribers(log, server, discard)
		done := make(chan error, 1)
		go func() { done <- subscribers.Run(ctx) }()
		use(&natstest.Site{Server: server, Own: own, Log: log, Subscribers: subscribers})
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		own.Close()
		server.Stop()
	}
	var file, removed string
	run(func(site *natstest.Site) {
		stock(t, site.Log, site.Own)
		file, removed = site.Add(t, "mirror"), site.Add(t, "gone")
		if _, err := site.Subscribers.Remove(t.Context(), "gone", "test", time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := hear(t, site.Connect(t, file), jetstream.SubscribeConfig{Durable: "mirror"}, 1); !slices.Equal(got, []string{"1 debian"}) {
			t.Errorf("heard %v", got)
		}
	})
	run(func(site *natstest.Site) {
		// At once: who comes before the subscribers are known waits, and isn't refused.
		if got := hear(t, site.Connect(t, file), jetstream.SubscribeConfig{Durable: "mirror"}, 1); !slices.Equal(got, []string{"2 alpine"}) {
			t.Errorf("after a restart heard %v", got)
		}
		if _, err := jetstream.Connect(site.Server.URL(), removed); !errors.Is(err, nats.ErrAuthorization) {
			t.Errorf("a removed one: %v", err)
		}
		if err := site.Log.RemoveConsumer(t.Context(), "mirror"); err != nil {
			t.Fatal(err)
		}
	})
	run(func(site *natstest.Site) { // a consumer that is gone is made again
		if got := hear(t, site.Connect(t, file), jetstream.SubscribeConfig{Durable: "mirror"}, 1); !slices.Equal(got, []string{"1 debian"}) {
			t.Errorf("with a consumer made anew heard %v", got)
		}
	})
}

// A durable consumer from before there were subscribers goes on where it was, once there is one of its name; what
// it filtered then, or had delivered, is forgotten.
func TestASubscriberTakesOverAConsumerOfItsName(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	js, err := natsjs.New(site.Own)
	if err != nil {
		t.Fatal(err)
	}
	old, err := js.CreateConsumer(t.Context(), jetstream.StreamName, natsjs.ConsumerConfig{Durable: "mirror", AckPolicy: natsjs.AckExplicitPolicy, FilterSubject: events.SubjectAll})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := old.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := msg.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Next(); err != nil { // delivered, not acknowledged, and of alpine
		t.Fatal(err)
	}
	if got := hear(t, site.Connect(t, site.Add(t, "mirror", "debian")), jetstream.SubscribeConfig{Durable: "mirror"}, 1); !slices.Equal(got, []string{"3 latest"}) {
		t.Errorf("heard %v", got)
	}
}

func TestSubscribersAreListedWithHowFarTheyHaveCome(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	file := site.Add(t, "b", "debian")
	site.Add(t, "a")
	site.Add(t, "c")
	if _, err := site.Subscribers.Remove(t.Context(), "c", "test", time.Now()); err != nil {
		t.Fatal(err)
	}
	hear(t, site.Connect(t, file), jetstream.SubscribeConfig{Durable: "b"}, 1)
	list, err := site.Subscribers.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprintf("%s %v at %d, %d wait", s.Name, s.Images, s.Position.Acknowledged, s.Position.Pending))
	}
	if want := []string{"a [] at 0, 4 wait", "b [debian] at 1, 1 wait"}; !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
	if _, _, _, err := site.Subscribers.Add(t.Context(), events.Subscriber{Name: "a", MaxPending: 1}); refusalCode(err) != events.CodeSubscriberExists {
		t.Errorf("the same name again: %v", err)
	}
	for _, name := range []string{"", "A", "a.b", "intake", "publication", "webhook-x", jetstream.ConsumerRedelivery, jetstream.ConsumerIntake, jetstream.ConsumerPublication, jetstream.ConsumerDerive, "imgsrv-x", "a b", "a*"} {
		if _, _, _, err := site.Subscribers.Add(t.Context(), events.Subscriber{Name: name, MaxPending: 1}); refusalCode(err) != events.CodeInvalid {
			t.Errorf("name %q: %v, want a refusal", name, err)
		}
	}
	if _, err := site.Subscribers.Remove(t.Context(), "nobody", "test", time.Now()); refusalCode(err) != events.CodeNotFound {
		t.Errorf("removing nobody: %v", err)
	}
}

func refusalCode(err error) events.Code {
	var refusal *events.Error
	if errors.As(err, &refusal) {
		return refusal.Code
	}
	return ""
}

// The secret half of a key is in the credentials, and nowhere else.
func TestNoEventHoldsASeed(t *testing.T) {
	t.Parallel()
	site := natstest.Listen(t)
	file, err := os.ReadFile(site.Add(t, "mirror"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(file), "SU") {
		t.Fatalf("no seed in the credentials:\n%s", file)
	}
	if err := site.Log.Read(t.Context(), 1, nil, func(e events.Event) error {
		for _, line := range strings.Split(string(file), "\n") {
			if strings.HasPrefix(line, "SU") && strings.Contains(string(e.Data), line) {
				t.Error("the event holds the seed")
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestACredentialsFileThatIsNone(t *testing.T) {
	t.Parallel()
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := account.Seed()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"empty": "", "words": "no seed here", "broken": "SUAAAAAAAAAA", "of an account": string(seed)} {
		path := filepath.Join(t.TempDir(), "creds")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := jetstream.CredentialsFile(path); err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "SUA") || strings.Contains(err.Error(), string(seed)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := jetstream.CredentialsFile(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that isn't there is none")
	}
}

// The file is what NATS clients know as an nkey file.
func TestACredentialsFileIsOneOfNATS(t *testing.T) {
	t.Parallel()
	site := stocked(t)
	option, err := nats.NkeyOptionFromSeed(site.Add(t, "mirror"))
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(site.Server.URL(), option, quiet)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if got := hear(t, nc, jetstream.SubscribeConfig{Durable: "mirror"}, 1); !slices.Equal(got, []string{"1 debian"}) {
		t.Errorf("heard %v", got)
	}
	if err := jetstream.Subscribe(t.Context(), nc, jetstream.SubscribeConfig{Durable: "publication"},
		jetstream.Handle(func(context.Context, jetstream.Delivery, events.AliasMoved) error { return nil })); !errors.Is(err, nats.ErrPermissionViolation) {
		t.Errorf("another's durable: %v, want what NATS says of it", err)
	}
}
