package webhooks_test

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/webhooks"
)

func TestAnEventComesAsASignedCloudEvent(t *testing.T) {
	t.Parallel()
	s, r := newSite(t), newReceiver(t)
	_, secret := s.add(events.Webhook{URL: r.URL + "/in?x=y"})
	sequence := s.move("debian", "latest")
	g := r.next(t)
	verify(t, secret, g)
	event, _, err := s.log.At(t.Context(), sequence)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Content-Type": "application/json", "Ce-Specversion": "1.0", "Ce-Id": event.ID, "Ce-Source": "imgsrv://test", "Ce-Type": string(event.Type),
		"Ce-Subject": "debian/latest", "Ce-Time": event.Time.Format(time.RFC3339Nano), "Webhook-Id": event.ID, "Imgsrv-Sequence": fmt.Sprint(sequence),
		"Ce-Actor": "zo%C3%AB%20%22q%22%20100%25", "Ce-Correlationid": "c",
	}
	have := map[string]string{}
	for name := range want {
		have[name] = g.header.Get(name)
	}
	if diff := cmp.Diff(want, have); diff != "" {
		t.Errorf("headers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]byte(event.Data), g.body); diff != "" {
		t.Errorf("body (-stored +sent):\n%s", diff)
	}
	var body struct{ Image, Alias string }
	if err := json.Unmarshal(g.body, &body); err != nil || body.Image != "debian" || body.Alias != "latest" {
		t.Errorf("body %s: %v", g.body, err)
	}
}

func TestOnlyWhatIsAskedForComes(t *testing.T) {
	t.Parallel()
	s, r := newSite(t), newReceiver(t)
	s.move("debian-sid", "before") // from now on means: not this one
	s.add(events.Webhook{URL: r.URL, Types: []string{"imgsrv.alias.*"}, Images: []string{"debian-*"}})
	s.move("ubuntu", "latest")
	s.append(events.Change{Fact: events.ImageDescribed{Image: events.Image{Name: "debian-sid"}}})
	want := s.move("debian-sid", "latest")
	if g := r.next(t); g.sequence != want {
		t.Errorf("event %d came, want %d", g.sequence, want)
	}
}

func TestTheWholeHistoryComesWhereItIsAskedFor(t *testing.T) {
	t.Parallel()
	s, r := newSite(t), newReceiver(t)
	first, second := s.move("a", "x"), s.move("a", "y")
	s.add(events.Webhook{URL: r.URL, From: 1})
	if a, b := r.next(t), r.next(t); a.sequence != first || b.sequence != second {
		t.Errorf("events %d, %d came, want %d, %d", a.sequence, b.sequence, first, second)
	}
}

func TestAFailedEventIsTriedAgainAndTheLaterOnesWait(t *testing.T) {
	t.Parallel()
	s, r := newSite(t, quick), newReceiver(t)
	r.answers(500, 302, 204)
	hook, secret := s.add(events.Webhook{URL: r.URL})
	first, second := s.move("a", "x"), s.move("a", "y")
	var order []events.Sequence
	var ids []string
	for range 4 {
		g := r.next(t)
		verify(t, secret, g)
		order, ids = append(order, g.sequence), append(ids, g.header.Get("webhook-id"))
	}
	if diff := cmp.Diff([]events.Sequence{first, first, first, second}, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
	if ids[0] != ids[1] || ids[1] != ids[2] || ids[2] == ids[3] {
		t.Errorf("webhook-ids %v: an event keeps its own", ids)
	}
	d := s.delivery(hook, first, events.DeliveryIsDelivered)
	if d.Attempts != 3 || d.Status != 204 || d.Error != "" || !d.LastAttempt.After(d.FirstAttempt) {
		t.Errorf("delivery %+v", d)
	}
}

func TestAnEventThatNeverSucceedsBecomesADeadLetterAndTheNextComes(t *testing.T) {
	t.Parallel()
	s, r := newSite(t, quick), newReceiver(t)
	r.answers(500, 500, 410, 200)
	hook, secret := s.add(events.Webhook{URL: r.URL})
	first, second := s.move("a", "x"), s.move("a", "y")
	for _, want := range []events.Sequence{first, first, first, second} {
		if g := r.next(t); g.sequence != want {
			t.Fatalf("event %d came, want %d", g.sequence, want)
		}
	}
	d := s.delivery(hook, first, events.DeliveryDead)
	if d.Attempts != 3 || d.Status != 410 || !strings.Contains(d.Error, "410 Gone") || d.EventType != "imgsrv.alias.moved.v1" && d.EventType != "imgsrv.alias.moved.v2" {
		t.Errorf("dead letter %+v", d)
	}

	s.request(hook, first)
	g := r.next(t)
	verify(t, secret, g)
	if g.sequence != first {
		t.Errorf("event %d came, want %d again", g.sequence, first)
	}
	if d := s.delivery(hook, first, events.DeliveryIsDelivered); d.Attempts != 4 || d.RequestedBy != "admin" || d.GivenUp() {
		t.Errorf("redelivered letter %+v", d)
	}
}

func TestAnEventThatWasDeliveredComesAgainOnRequest(t *testing.T) {
	t.Parallel()
	s, r := newSite(t, quick), newReceiver(t)
	older := s.move("a", "older")
	hook, _ := s.add(events.Webhook{URL: r.URL})
	first := s.move("a", "x")
	r.next(t)
	for _, sequence := range []events.Sequence{first, older} { // also what was before the webhook
		s.request(hook, sequence)
		if g := r.next(t); g.sequence != sequence {
			t.Errorf("event %d came, want %d", g.sequence, sequence)
		}
		s.delivery(hook, sequence, events.DeliveryIsDelivered)
	}
	r.answers(503)
	s.request(hook, first)
	r.next(t)
	if d := s.delivery(hook, first, events.DeliveryDead); d.Status != 503 {
		t.Errorf("a redelivery that failed: %+v", d)
	}
}

func TestARequestEndsTheWaitForTheNextAttempt(t *testing.T) {
	t.Parallel()
	s, r := newSite(t, func(c *webhooks.Config) { c.Pauses = []time.Duration{time.Hour} }), newReceiver(t)
	r.answers(500, 200)
	hook, _ := s.add(events.Webhook{URL: r.URL})
	first, second := s.move("a", "x"), s.move("a", "y")
	r.next(t)
	s.delivery(hook, first, events.DeliveryRetrying)
	s.request(hook, first)
	if a, b := r.next(t), r.next(t); a.sequence != first || b.sequence != second {
		t.Errorf("events %d, %d came, want %d, %d: a request for what is being retried keeps the order", a.sequence, b.sequence, first, second)
	}
}

func TestARestartKeepsPlaceAndAttempts(t *testing.T) {
	t.Parallel()
	s, r := newSite(t, func(c *webhooks.Config) { c.Pauses = []time.Duration{time.Hour, time.Millisecond} }), newReceiver(t)
	r.answers(500, 500, 200)
	hook, _ := s.add(events.Webhook{URL: r.URL})
	first := s.move("a", "x")
	r.next(t)
	before := s.delivery(hook, first, events.DeliveryRetrying)
	s.stop()
	second := s.move("a", "y") // while nobody sends
	// The clock of the second node is past the time of the next attempt.
	s.start(func(c *webhooks.Config) {
		c.Pauses = []time.Duration{time.Hour, time.Millisecond}
		c.Clock = func() time.Time { return time.Now().Add(2 * time.Hour) }
	})
	for _, want := range []events.Sequence{first, first, second} {
		if g := r.next(t); g.sequence != want {
			t.Fatalf("event %d came, want %d", g.sequence, want)
		}
	}
	if d := s.delivery(hook, first, events.DeliveryIsDelivered); d.Attempts != 3 || !d.FirstAttempt.Equal(before.FirstAttempt) {
		t.Errorf("delivery %+v after %+v: attempts and their beginning are kept", d, before)
	}
}

func TestTheWaitGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	hour := func(c *webhooks.Config) { c.Pauses = []time.Duration{time.Hour} }
	s, r := newSite(t, hour), newReceiver(t)
	r.answers(500, 200)
	hook, _ := s.add(events.Webhook{URL: r.URL})
	first := s.move("a", "x")
	r.next(t)
	s.delivery(hook, first, events.DeliveryRetrying)
	s.stop()
	s.start(hour)
	other := newReceiver(t)
	s.add(events.Webhook{URL: other.URL})
	s.move("a", "y")
	other.next(t) // the new node is at work
	select {
	case g := <-r.requests:
		t.Errorf("event %d came before its time", g.sequence)
	default:
	}
	s.request(hook, first)
	if g := r.next(t); g.sequence != first {
		t.Errorf("event %d came, want %d", g.sequence, first)
	}
}

func TestNodesShareAWebhook(t *testing.T) {
	t.Parallel()
	s, r := newSite(t), newReceiver(t)
	s.start() // a second node beside the first
	s.add(events.Webhook{URL: r.URL})
	var want, order []events.Sequence
	for i := range 50 {
		want = append(want, s.move("a", fmt.Sprint("x", i)))
	}
	for range want {
		order = append(order, r.next(t).sequence)
	}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("order (-want +got):\n%s", diff)
	}
}

func TestARemovedWebhookGetsNothingMore(t *testing.T) {
	t.Parallel()
	s, r, other := newSite(t), newReceiver(t), newReceiver(t)
	hook, _ := s.add(events.Webhook{URL: r.URL})
	s.move("a", "x")
	r.next(t)
	current, err := s.log.Webhook(t.Context(), hook.ID)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := events.RemoveWebhook(current, hook.ID, "admin", time.Now().UTC())
	if err != nil {
		t.Fatal(err)
	}
	s.append(changes...)
	s.add(events.Webhook{URL: other.URL}) // is heeded after the removal
	s.move("a", "y")
	other.next(t)
	select {
	case g := <-r.requests:
		t.Errorf("event %d came after the removal", g.sequence)
	default:
	}
}

func TestARestartHeedsTheRemovalOfAWebhook(t *testing.T) {
	t.Parallel()
	s, r, other := newSite(t), newReceiver(t), newReceiver(t)
	hook, _ := s.add(events.Webhook{URL: r.URL})
	s.move("a", "x")
	r.next(t)
	s.stop()
	current, err := s.log.Webhook(t.Context(), hook.ID)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := events.RemoveWebhook(current, hook.ID, "admin", time.Now().UTC())
	if err != nil {
		t.Fatal(err)
	}
	s.append(changes...)
	s.start()
	s.add(events.Webhook{URL: other.URL})
	s.move("a", "y")
	other.next(t)
	select {
	case g := <-r.requests:
		t.Errorf("event %d came after the removal", g.sequence)
	default:
	}
}

func TestAReceiverThatHangsIsAFailure(t *testing.T) {
	t.Parallel()
	s := newSite(t, quick, func(c *webhooks.Config) { c.Timeout = 200 * time.Millisecond })
	r := newReceiver(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	r.mu.Lock()
	r.answer = func(http.ResponseWriter, got) { <-release }
	r.mu.Unlock()
	hook, _ := s.add(events.Webhook{URL: r.URL})
	sequence := s.move("a", "x")
	if d := s.delivery(hook, sequence, events.DeliveryDead); d.Status != 0 || !strings.Contains(d.Error, "did not answer within") {
		t.Errorf("delivery %+v", d)
	}
}

func TestANodeWithAnotherKeySignsNothing(t *testing.T) {
	t.Parallel()
	s, r := newSite(t), newReceiver(t)
	hook, _ := s.add(events.Webhook{URL: r.URL})
	s.stop()
	s.keys = webhooks.NewKeys(filepath.Join(t.TempDir(), "webhook.key"))
	s.start()
	if _, err := s.node.Secret(hook); !events.IsCode(err, events.CodeNotFound) || !strings.Contains(err.Error(), "webhook.key") {
		t.Errorf("the secret of another key: %v", err)
	}
	other := newReceiver(t)
	s.add(events.Webhook{URL: other.URL})
	s.move("a", "x")
	other.next(t)
	select {
	case <-r.requests:
		t.Error("an event came with another's signature")
	default:
	}
}

func TestTheKeyIsKeptForItsOwnerOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "webhook.key")
	first, err := webhooks.NewKeys(path).ID()
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	again := webhooks.NewKeys(path)
	if id, err := again.ID(); err != nil || id != first {
		t.Errorf("the key read again is %s (%v), not %s", id, err, first)
	}
	a, errA := again.Secret(events.Webhook{ID: "a", KeyID: first})
	b, errB := again.Secret(events.Webhook{ID: "b", KeyID: first})
	if errA != nil || errB != nil || a == b {
		t.Errorf("secrets %s, %s (%v, %v) of two webhooks", a, b, errA, errB)
	}
	if err := os.WriteFile(path, []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := webhooks.NewKeys(path).ID(); err == nil {
		t.Errorf("a broken key file gives %s", id)
	}
}

func TestAReceiversCertificateIsChecked(t *testing.T) {
	t.Parallel()
	r := &receiver{requests: make(chan got, 10), answer: func(http.ResponseWriter, got) {}}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // the handshake that we refuse
	r.StartTLS()
	t.Cleanup(r.Close)
	strict := newSite(t, quick)
	hook, _ := strict.add(events.Webhook{URL: r.URL})
	sequence := strict.move("a", "x")
	if d := strict.delivery(hook, sequence, events.DeliveryDead); !strings.Contains(d.Error, "certificate") {
		t.Errorf("delivery to a receiver of unknown certificate: %+v", d)
	}
	trusting := newSite(t, quick, func(c *webhooks.Config) {
		c.Roots = x509.NewCertPool()
		c.Roots.AddCert(r.Certificate())
	})
	_, secret := trusting.add(events.Webhook{URL: r.URL})
	trusting.move("a", "x")
	verify(t, secret, r.next(t))
}

// Nothing keeps whoever has access to the NATS server from removing a consumer. Then events come again rather than never.
func TestAWebhookWhoseConsumerWasRemovedMissesNothing(t *testing.T) {
	t.Parallel()
	s, r := newSite(t), newReceiver(t)
	hook, _ := s.add(events.Webhook{URL: r.URL})
	first := s.move("a", "x")
	r.next(t)
	if err := s.log.RemoveConsumer(t.Context(), "webhook-"+hook.ID); err != nil {
		t.Fatal(err)
	}
	second := s.move("a", "y")
	if a, b := r.next(t), r.next(t); a.sequence != first || b.sequence != second {
		t.Errorf("events %d, %d came, want %d, %d", a.sequence, b.sequence, first, second)
	}
}
