package events

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of a webhook's form.
const (
	MaxWebhookURLBytes = 2048
	MaxWebhookFilters  = 50 // types, and images
)

// Webhook is somebody else's HTTP endpoint that gets the events it asks for. Its secret is no part of it:
// events are for many eyes.
type Webhook struct {
	ID     string   `json:"id"` // UUIDv7
	URL    string   `json:"url"`
	Types  []string `json:"types"`  // exact, or a prefix that ends with '*'; none: all
	Images []string `json:"images"` // names, in which '*' stands for any characters; none: all, and events about no image
	From   Sequence `json:"from"`   // the first event it gets; 0: the one after the webhook's own
	KeyID  string   `json:"key_id"` // names the server key that its secret is derived from
	Lifetime
}

// The facts of a webhook.
type (
	// WebhookAdded begins it.
	WebhookAdded struct{ Webhook }
	// WebhookRemoved ends it, for good.
	WebhookRemoved struct{ Webhook }
)

// WebhookFact is any fact of a webhook.
type WebhookFact = FactOf[Webhook]

// After is the webhook after the fact.
func (w Webhook) After() Webhook { return w }

// Entity names the webhook.
func (w Webhook) Entity() Entity { return WebhookEntity(w.ID) }

// Type names the fact's type.
func (WebhookAdded) Type() Type { return "imgsrv.webhook.added.v1" }

// Type names the fact's type.
func (WebhookRemoved) Type() Type { return "imgsrv.webhook.removed.v1" }

// AddWebhook decides to add a webhook. Whether its URL leads to where imgsrv may send is not for a rule to say.
func AddWebhook(w Webhook, current Current[Webhook]) ([]Change, error) {
	var c checker
	if u, ok := c.url("url", w.URL, MaxWebhookURLBytes, "a webhook's URL is https://HOST[:PORT]/PATH"); ok && u.User != nil {
		c.fail("url", "", "a webhook's URL has no user and no password: events are for many eyes, and the signature says who sends")
	} else if ok && u.Fragment != "" {
		c.fail("url", "", "a webhook's URL has no fragment")
	}
	if len(w.Types) > MaxWebhookFilters {
		c.fail("types", "", fmt.Sprintf("a webhook names at most %d types", MaxWebhookFilters))
	}
	for i, t := range w.Types {
		if err := checkTypeFilter(t); err != nil {
			c.fail(fmt.Sprintf("types[%d]", i), t, err.Error())
		}
	}
	if len(w.Images) > MaxWebhookFilters {
		c.fail("images", "", fmt.Sprintf("a webhook names at most %d images", MaxWebhookFilters))
	}
	for i, image := range w.Images {
		if err := CheckImagePattern(image); err != nil {
			c.fail(fmt.Sprintf("images[%d]", i), image, err.Error())
		}
	}
	if err := c.refusal(); err != nil {
		return nil, err
	}
	return []Change{{Fact: WebhookAdded{w}, Expect: current.Sequence}}, nil
}

func checkTypeFilter(filter string) error {
	prefix, isPrefix := strings.CutSuffix(filter, "*")
	switch {
	case strings.Contains(prefix, "*"):
		return fmt.Errorf("a type filter has one * at most, at its end")
	case isUndelivered(KindOf(Type(filter))):
		return fmt.Errorf("events about webhooks, deliveries and access are not delivered to webhooks")
	case isPrefix && (strings.HasPrefix(prefix, "imgsrv.") || strings.HasPrefix("imgsrv.", prefix)):
		return nil
	case isPrefix || !slices.Contains(Types(), Type(filter)):
		return fmt.Errorf("a type filter is a type such as imgsrv.version.published.v1, or a beginning of it with * at its end")
	}
	return nil
}

// isUndelivered: what a delivery leads to must not lead to a delivery, or one failure would breed the next.
// Who may do what is for administrators only.
func isUndelivered(kind string) bool {
	return kind == KindWebhook || kind == KindDelivery || IsAboutAccess(kind)
}

// Wants says whether the webhook asks for an event.
func (w Webhook) Wants(t Type, fact Fact) bool {
	if isUndelivered(KindOf(t)) {
		return false
	}
	if len(w.Types) > 0 && !slices.ContainsFunc(w.Types, func(filter string) bool { return MatchStars(filter, string(t)) }) {
		return false
	}
	if len(w.Images) == 0 {
		return true
	}
	image := ImageOf(fact)
	return image != "" && slices.ContainsFunc(w.Images, func(filter string) bool { return MatchStars(filter, image) })
}

// Subjects are those under which all that the webhook may want is stored, and no more than can be said with
// whole kinds of entities.
func (w Webhook) Subjects() []string {
	var subjects []string
	for _, filter := range w.Types {
		kind := KindOf(Type(filter)) // "" where a prefix ends before the kind does
		if kind == "" || strings.Contains(kind, "*") {
			return []string{SubjectAll}
		}
		if s := SubjectOfKind(kind); !slices.Contains(subjects, s) {
			subjects = append(subjects, s)
		}
	}
	if len(subjects) == 0 {
		return []string{SubjectAll}
	}
	return subjects
}

// RemoveWebhook decides to end a webhook.
func RemoveWebhook(current Current[Webhook], id, by string, at time.Time) ([]Change, error) {
	if err := needWebhook(current, id); err != nil {
		return nil, err
	}
	next := current.State
	next.end(by, at)
	return []Change{{Fact: WebhookRemoved{next}, Expect: current.Sequence}}, nil
}

func needWebhook(current Current[Webhook], id string) error {
	if !current.State.Living() {
		return Refuse(CodeNotFound, "there is no webhook %s", id)
	}
	return nil
}
