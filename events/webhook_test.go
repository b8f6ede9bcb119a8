package events

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func published(image string) VersionPublished {
	return VersionPublished{Version{Image: image, Version: "1", State: StatePublished}}
}

func TestAWebhookWantsWhatItsFiltersSay(t *testing.T) {
	t.Parallel()
	const version, alias = Type("imgsrv.version.published.v1"), Type("imgsrv.alias.moved.v1")
	cases := []struct {
		name          string
		types, images []string
		typ           Type
		fact          Fact
		want          bool
	}{
		{"all", nil, nil, version, published("debian"), true},
		{"all, of no image", nil, nil, "imgsrv.blob.promoted.v1", BlobPromoted{}, true},
		{"exact type", []string{string(version)}, nil, version, published("debian"), true},
		{"another type", []string{string(version)}, nil, alias, AliasMoved{}, false},
		{"one of the types", []string{string(alias), string(version)}, nil, version, published("debian"), true},
		{"prefix", []string{"imgsrv.version.*"}, nil, version, published("debian"), true},
		{"another prefix", []string{"imgsrv.ver*"}, nil, alias, AliasMoved{}, false},
		{"exact image", nil, []string{"debian"}, version, published("debian"), true},
		{"no prefix of an image", nil, []string{"debian"}, version, published("debian-sid"), false},
		{"pattern", nil, []string{"debian-*"}, version, published("debian-sid"), true},
		{"pattern with a tail", nil, []string{"d*-sid"}, version, published("debian-sid"), true},
		{"pattern whose parts overlap", nil, []string{"aba*aba"}, version, published("aba"), false},
		{"pattern in the middle", nil, []string{"*bi*s*"}, version, published("debian-sid"), true},
		{"images, and an event of none", nil, []string{"*"}, "imgsrv.blob.promoted.v1", BlobPromoted{}, false},
		{"type but not image", []string{string(version)}, []string{"ubuntu"}, version, published("debian"), false},
		{"webhooks are no news to webhooks", nil, nil, "imgsrv.webhook.added.v1", WebhookAdded{}, false},
		{"nor are deliveries", []string{"imgsrv.*"}, nil, "imgsrv.delivery.dead_lettered.v1", DeliveryDeadLettered{}, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := (Webhook{Types: c.types, Images: c.images}).Wants(c.typ, c.fact); got != c.want {
				t.Errorf("wants: %v, want %v", got, c.want)
			}
		})
	}
}

// Were a wanted type stored outside of the webhook's subjects, its events would never come.
func TestTheSubjectsOfAWebhookHoldAllThatItWants(t *testing.T) {
	t.Parallel()
	kinds := map[string]bool{}
	for _, typ := range Types() {
		kinds[KindOf(typ)] = true
		fact, err := Decode(typ, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if fact.Entity().Kind != KindOf(typ) {
			t.Errorf("%s is about a %s: Subjects takes the kind from the type", typ, fact.Entity().Kind)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		typ := string(rapid.SampledFrom(Types()).Draw(t, "type"))
		filter := typ
		if rapid.Bool().Draw(t, "prefix") {
			filter = typ[:rapid.IntRange(0, len(typ)).Draw(t, "length")] + "*"
		}
		w := Webhook{Types: []string{filter}}
		for _, subject := range w.Subjects() {
			if subject == SubjectAll || subject == SubjectOfKind(KindOf(Type(typ))) {
				return
			}
		}
		t.Errorf("%s is not under %v, the subjects of %s", typ, w.Subjects(), filter)
	})
	want := []string{"imgsrv.events.version.>", "imgsrv.events.alias.>"}
	w := Webhook{Types: []string{"imgsrv.version.published.v1", "imgsrv.version.re*", "imgsrv.alias.*"}}
	if diff := cmp.Diff(want, w.Subjects()); diff != "" {
		t.Errorf("subjects (-want +got):\n%s", diff)
	}
}

func TestAWebhookOfBadFormIsRefused(t *testing.T) {
	t.Parallel()
	good := Webhook{ID: "w", URL: "https://hooks.example.org/x?y=z", Types: []string{"imgsrv.version.published.v1", "imgsrv.alias.*", "*"}, Images: []string{"debian", "*", "d*-sid", "*-daily"}}
	changes, err := AddWebhook(good, Current[Webhook]{})
	if err != nil || len(changes) != 1 || changes[0].Expect != 0 {
		t.Fatalf("changes %v, error %v", changes, err)
	}
	cases := map[string]struct {
		field  string
		change func(*Webhook)
	}{
		"no URL":           {"url", func(w *Webhook) { w.URL = "" }},
		"no scheme":        {"url", func(w *Webhook) { w.URL = "hooks.example.org" }},
		"another scheme":   {"url", func(w *Webhook) { w.URL = "file:///etc/passwd" }},
		"no host":          {"url", func(w *Webhook) { w.URL = "https:///x" }},
		"a password":       {"url", func(w *Webhook) { w.URL = "https://me:secret@hooks.example.org" }},
		"a fragment":       {"url", func(w *Webhook) { w.URL = "https://hooks.example.org/#x" }},
		"a long URL":       {"url", func(w *Webhook) { w.URL = "https://hooks.example.org/" + strings.Repeat("x", MaxWebhookURLBytes) }},
		"an unknown type":  {"types[0]", func(w *Webhook) { w.Types = []string{"imgsrv.version.publishd.v1"} }},
		"a star within":    {"types[0]", func(w *Webhook) { w.Types = []string{"imgsrv.*.published.v1"} }},
		"another's prefix": {"types[0]", func(w *Webhook) { w.Types = []string{"com.example.*"} }},
		"deliveries":       {"types[1]", func(w *Webhook) { w.Types = []string{"*", "imgsrv.delivery.*"} }},
		"an upper image":   {"images[0]", func(w *Webhook) { w.Images = []string{"Debian"} }},
		"an empty image":   {"images[0]", func(w *Webhook) { w.Images = []string{""} }},
		"many types":       {"types", func(w *Webhook) { w.Types = make([]string, MaxWebhookFilters+1); fill(w.Types, "*") }},
		"many images":      {"images", func(w *Webhook) { w.Images = make([]string, MaxWebhookFilters+1); fill(w.Images, "*") }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := good
			c.change(&bad)
			_, err := AddWebhook(bad, Current[Webhook]{})
			var refusal *Error
			if !errors.As(err, &refusal) || refusal.Code != CodeInvalid || len(refusal.Fields) != 1 || refusal.Fields[0].Field != c.field {
				t.Errorf("error %+v, want one of field %s", err, c.field)
			}
		})
	}
}

func fill(list []string, with string) {
	for i := range list {
		list[i] = with
	}
}

func TestARemovedWebhookIsGone(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	current := Current[Webhook]{State: Webhook{ID: "w", URL: "https://x.example", Lifetime: Lifetime{AddedBy: "admin"}}, Sequence: 3}
	changes, err := RemoveWebhook(current, "w", "admin", now)
	if err != nil {
		t.Fatal(err)
	}
	want := []Change{{Fact: WebhookRemoved{Webhook{ID: "w", URL: "https://x.example", Lifetime: Lifetime{AddedBy: "admin", Removed: true, RemovedBy: "admin", RemovedAt: now}}}, Expect: 3}}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	gone := Current[Webhook]{State: Fold(current.State, changes[0].Fact), Sequence: 4}
	for name, c := range map[string]Current[Webhook]{"removed": gone, "never added": {}} {
		if _, err := RemoveWebhook(c, "w", "admin", now); !IsCode(err, CodeNotFound) {
			t.Errorf("%s: removing gives %v", name, err)
		}
		if _, err := RequestDelivery(c, "w", Current[Delivery]{}, Event{}, "admin", now); !IsCode(err, CodeNotFound) {
			t.Errorf("%s: redelivering gives %v", name, err)
		}
	}
}

// A delivery's story, fact by fact.
func TestADeliveryGoesItsWay(t *testing.T) {
	t.Parallel()
	at := func(minute int) time.Time { return time.Date(2026, 11, 24, 10, minute, 0, 0, time.UTC) }
	event := Event{Meta: Meta{ID: "e"}, Sequence: 7, Type: "imgsrv.version.published.v1"}
	hook := Current[Webhook]{State: Webhook{ID: "w", Lifetime: Lifetime{AddedBy: "admin"}}, Sequence: 1}
	var current Current[Delivery]
	step := func(changes []Change, want Delivery, wantType Type) {
		t.Helper()
		if len(changes) != 1 || changes[0].Expect != current.Sequence {
			t.Fatalf("changes %+v", changes)
		}
		current = Current[Delivery]{State: Fold(current.State, changes[0].Fact), Sequence: current.Sequence + 10}
		if changes[0].Fact.Type() != wantType {
			t.Errorf("type %s, want %s", changes[0].Fact.Type(), wantType)
		}
		if diff := cmp.Diff(want, current.State); diff != "" {
			t.Errorf("%s (-want +got):\n%s", wantType, diff)
		}
	}
	if changes := CompleteDelivery(current, "w", event, DeliveryAttempt{At: at(0), Status: 200}); len(changes) != 0 {
		t.Errorf("a delivery without failures leaves %v", changes)
	}
	want := Delivery{Webhook: "w", Sequence: 7, EventID: "e", EventType: event.Type, State: DeliveryRetrying, Attempts: 1, FirstAttempt: at(0), LastAttempt: at(0), RetryAt: at(5), Status: 500, Error: "no"}
	step(FailDelivery(current, "w", event, DeliveryAttempt{At: at(0), Status: 500, Error: "no"}, at(5)), want, "imgsrv.delivery.attempt_failed.v1")
	if !current.State.InTurn() || current.State.GivenUp() {
		t.Error("a delivery that is retried is in turn")
	}

	changes, err := RequestDelivery(hook, "w", current, event, "admin", at(1))
	if err != nil {
		t.Fatal(err)
	}
	want.RetryAt, want.RequestedBy, want.RequestedAt = at(1), "admin", at(1)
	step(changes, want, "imgsrv.delivery.requested.v1")
	if !current.State.InTurn() {
		t.Error("a request put the delivery out of its order")
	}

	want.State, want.Attempts, want.LastAttempt, want.RetryAt, want.Status, want.Error = DeliveryDead, 2, at(2), time.Time{}, 0, "refused"
	step(FailDelivery(current, "w", event, DeliveryAttempt{At: at(2), Error: "refused"}, time.Time{}), want, "imgsrv.delivery.dead_lettered.v1")
	if current.State.InTurn() || !current.State.GivenUp() {
		t.Error("a dead letter is given up")
	}

	if changes, err = RequestDelivery(hook, "w", current, event, "eve", at(3)); err != nil {
		t.Fatal(err)
	}
	want.State, want.RequestedBy, want.RequestedAt = DeliveryRedelivery, "eve", at(3)
	step(changes, want, "imgsrv.delivery.requested.v1")
	if current.State.InTurn() || !current.State.GivenUp() {
		t.Error("a dead letter leaves the list before it is delivered")
	}
	if changes, err := RequestDelivery(hook, "w", current, event, "eve", at(3)); err != nil || len(changes) != 0 {
		t.Errorf("the same request again: %v, %v", changes, err)
	}

	want.State, want.Attempts, want.LastAttempt, want.Status, want.Error = DeliveryIsDelivered, 3, at(4), 200, ""
	step(EndRedelivery(current, "w", event, DeliveryAttempt{At: at(4), Status: 200}), want, "imgsrv.delivery.redelivered.v1")
	if current.State.InTurn() || current.State.GivenUp() {
		t.Error("a delivered dead letter is not done")
	}

	own := Event{Sequence: 9, Type: "imgsrv.delivery.requested.v1"}
	if _, err := RequestDelivery(hook, "w", Current[Delivery]{}, own, "admin", at(5)); !IsCode(err, CodeInvalid) {
		t.Errorf("an event about deliveries may be delivered: %v", err)
	}
}
