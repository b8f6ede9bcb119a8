package webhooks_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/webhooks"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// got is a request as a receiver has it.
type got struct {
	header   http.Header
	body     []byte
	sequence events.Sequence
}

// receiver is somebody's endpoint: it answers as it is told and keeps what comes.
type receiver struct {
	*httptest.Server
	requests chan got
	mu       sync.Mutex
	answer   func(w http.ResponseWriter, r got)
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{requests: make(chan got, 1000), answer: func(http.ResponseWriter, got) {}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return
	}
	sequence, _ := strconv.ParseUint(q.Header.Get("Imgsrv-Sequence"), 10, 64)
	g := got{q.Header.Clone(), body, events.Sequence(sequence)}
	r.mu.Lock()
	answer := r.answer
	r.mu.Unlock()
	answer(w, g)
	r.requests <- g
}

// answers makes the receiver answer with statuses, one after the other, the last one for ever.
func (r *receiver) answers(statuses ...int) {
	var n int
	r.mu.Lock()
	defer r.mu.Unlock()
	var mu sync.Mutex
	r.answer = func(w http.ResponseWriter, _ got) {
		mu.Lock()
		defer mu.Unlock()
		w.WriteHeader(statuses[min(n, len(statuses)-1)])
		n++
	}
}

func (r *receiver) next(t *testing.T) got {
	t.Helper()
	select {
	case g := <-r.requests:
		return g
	case <-time.After(20 * time.Second):
		t.Fatal("no request within 20 s")
		panic("unreachable")
	}
}

// verify does what a receiver has to do, by the specification and without our code: the secret is base64 after
// whsec_, signed is id.timestamp.body.
func verify(t *testing.T, secret string, g got) {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil || len(key) < 24 || len(key) > 64 {
		t.Fatalf("secret %q: %d bytes, %v; Standard Webhooks wants 24 to 64", secret, len(key), err)
	}
	mac := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(mac, "%s.%s.%s", g.header.Get("webhook-id"), g.header.Get("webhook-timestamp"), g.body)
	if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); g.header.Get("webhook-signature") != want {
		t.Errorf("signature %q, want %q", g.header.Get("webhook-signature"), want)
	}
	seconds, err := strconv.ParseInt(g.header.Get("webhook-timestamp"), 10, 64)
	if age := time.Since(time.Unix(seconds, 0)); err != nil || age < -5*time.Second || age > time.Minute {
		t.Errorf("timestamp %q is %s old: %v", g.header.Get("webhook-timestamp"), age, err)
	}
}

// site is a log with the webhooks of a node.
type site struct {
	t    *testing.T
	log  *jetstream.Log
	keys *webhooks.Keys
	node *webhooks.Manager
	stop func()
}

func quick(c *webhooks.Config) {
	c.Pauses = []time.Duration{10 * time.Millisecond, 20 * time.Millisecond}
}

func newSite(t *testing.T, change ...func(*webhooks.Config)) *site {
	t.Helper()
	s := &site{t: t, log: natstest.Log(t), keys: webhooks.NewKeys(filepath.Join(t.TempDir(), "webhook.key"))}
	s.start(change...)
	return s
}

// start runs a node; an earlier one goes on unless it was stopped.
func (s *site) start(change ...func(*webhooks.Config)) {
	s.t.Helper()
	targets, err := webhooks.ParseTargets([]string{"127.0.0.1"})
	if err != nil {
		s.t.Fatal(err)
	}
	cfg := webhooks.Config{Log: s.log, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Keys: s.keys, Targets: targets}
	for _, c := range change {
		c(&cfg)
	}
	if s.node, err = webhooks.New(cfg); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	node := s.node
	go func() { done <- node.Run(ctx) }()
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				s.t.Errorf("the node ended with %v", err)
			}
		})
	}
	s.t.Cleanup(s.stop)
}

// add adds a webhook and gives it with its secret.
func (s *site) add(w events.Webhook) (events.Webhook, string) {
	s.t.Helper()
	keyID, err := s.node.KeyID()
	if err != nil {
		s.t.Fatal(err)
	}
	w.ID, w.KeyID, w.AddedBy, w.AddedAt = uuid.Must(uuid.NewV7()).String(), keyID, "admin", time.Now().UTC()
	changes, err := events.AddWebhook(w, events.Current[events.Webhook]{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.append(changes...)
	secret, err := s.node.Secret(w)
	if err != nil {
		s.t.Fatal(err)
	}
	return w, secret
}

func (s *site) append(changes ...events.Change) events.Sequence {
	s.t.Helper()
	sequence, err := s.log.Append(s.t.Context(), jetstream.Cause{Actor: "zoë \"q\" 100%", Correlation: "c"}, changes...)
	if err != nil {
		s.t.Fatal(err)
	}
	return sequence
}

// move appends a fact about an alias that has none yet.
func (s *site) move(image, alias string) events.Sequence {
	s.t.Helper()
	return s.append(events.Change{Fact: events.AliasMoved{Alias: events.Alias{Image: image, Alias: alias, Version: "1"}}})
}

// delivery waits until a delivery is in a state.
func (s *site) delivery(w events.Webhook, sequence events.Sequence, state events.DeliveryState) events.Delivery {
	s.t.Helper()
	var current events.Current[events.Delivery]
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var err error
		if current, err = s.log.Delivery(s.t.Context(), w.ID, sequence); err != nil {
			s.t.Fatal(err)
		}
		if current.State.State == state {
			return current.State
		}
	}
	s.t.Fatalf("the delivery is %+v after 20 s, not %s", current.State, state)
	panic("unreachable")
}

// request asks for a redelivery as an operator does.
func (s *site) request(w events.Webhook, sequence events.Sequence) {
	s.t.Helper()
	hook, err := s.log.Webhook(s.t.Context(), w.ID)
	if err != nil {
		s.t.Fatal(err)
	}
	event, ok, err := s.log.At(s.t.Context(), sequence)
	if err != nil || !ok {
		s.t.Fatalf("event %d: %v, %v", sequence, ok, err)
	}
	current, err := s.log.Delivery(s.t.Context(), w.ID, sequence)
	if err != nil {
		s.t.Fatal(err)
	}
	changes, err := events.RequestDelivery(hook, w.ID, current, event, "admin", time.Now().UTC())
	if err != nil {
		s.t.Fatal(err)
	}
	s.append(changes...)
}
