package events

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Bounds of a subscriber.
const (
	MaxSubscriberImages  = 100  // each is three filters of a consumer
	MaxSubscriberPending = 1000 // events that are out and not acknowledged
)

// Subscriber is somebody outside who reads events over NATS, with a key of their own and by a durable consumer
// of the subscriber's name. The key's secret half is with them alone.
type Subscriber struct {
	Name       string   `json:"name"`
	PublicKey  string   `json:"public_key"`  // nkey of a NATS user: U and 55 characters
	Images     []string `json:"images"`      // exact names, since NATS knows no patterns inside of a token; none: all
	From       Sequence `json:"from"`        // the first event it gets; 0 and 1: the stream's first
	MaxPending int      `json:"max_pending"` // events that may be out at once; 1 keeps their order
	Lifetime
}

// The facts of a subscriber.
type (
	// SubscriberAdded lets it in.
	SubscriberAdded struct{ Subscriber }
	// SubscriberRemoved shuts it out. Its name may be given again, with another key.
	SubscriberRemoved struct{ Subscriber }
)

// SubscriberFact is any fact of a subscriber.
type SubscriberFact = FactOf[Subscriber]

// After is the subscriber after the fact.
func (s Subscriber) After() Subscriber { return s }

// Entity names the subscriber.
func (s Subscriber) Entity() Entity { return SubscriberEntity(s.Name) }

// Type names the fact's type.
func (SubscriberAdded) Type() Type { return "imgsrv.subscriber.added.v1" }

// Type names the fact's type.
func (SubscriberRemoved) Type() Type { return "imgsrv.subscriber.removed.v1" }

// Subjects are those of the events that the subscriber may read: about versions with what is derived from
// them, images and aliases, and about nothing else, since names of people and targets of webhooks are none of its business.
func (s Subscriber) Subjects() []string {
	var subjects []string
	for _, kind := range []string{KindVersion, KindImage, KindAlias, KindDerived} {
		subjects = append(subjects, SubjectsAbout(kind, s.Images...)...)
	}
	return subjects
}

var (
	subscriberPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`)
	userKeyPattern    = regexp.MustCompile(`^U[A-Z2-7]{55}$`)
)

// CheckSubscriberName is as [CheckImageName]. The name is also that of a durable consumer, so that those of the
// server's own consumers are taken.
func CheckSubscriberName(s string) error {
	if !subscriberPattern.MatchString(s) {
		return fmt.Errorf("a subscriber's name has 1 to 63 lower-case letters, digits, '_' or '-', beginning with a letter or digit")
	}
	if s == "intake" || s == "publication" || s == "derive" || s == "retention" || strings.HasPrefix(s, "webhook-") || strings.HasPrefix(s, "imgsrv") {
		return fmt.Errorf("%s is a name of the server's own", s)
	}
	return nil
}

// AddSubscriber decides to let somebody in. A name whose subscriber was removed may be given again.
func AddSubscriber(s Subscriber, current Current[Subscriber]) ([]Change, error) {
	var c checker
	if err := CheckSubscriberName(s.Name); err != nil {
		c.fail("name", s.Name, err.Error())
	}
	if !userKeyPattern.MatchString(s.PublicKey) {
		c.fail("public_key", s.PublicKey, "the public key of a NATS user begins with U and has 56 characters")
	}
	if len(s.Images) > MaxSubscriberImages {
		c.fail("images", "", fmt.Sprintf("a subscriber names at most %d images; without images it may read all", MaxSubscriberImages))
	}
	for i, image := range s.Images {
		if err := CheckImageName(image); err != nil {
			c.fail(fmt.Sprintf("images[%d]", i), image, err.Error()+"; a subscriber names images exactly")
		} else if slices.Contains(s.Images[:i], image) {
			c.fail(fmt.Sprintf("images[%d]", i), image, "the image is named twice")
		}
	}
	if s.MaxPending < 1 || s.MaxPending > MaxSubscriberPending {
		c.fail("max_pending", fmt.Sprint(s.MaxPending), fmt.Sprintf("from 1 to %d", MaxSubscriberPending))
	}
	if err := c.refusal(); err != nil {
		return nil, err
	}
	if current.State.Living() {
		return nil, Refuse(CodeSubscriberExists, "there is a subscriber %s: remove it first, or choose another name", s.Name)
	}
	return []Change{{Fact: SubscriberAdded{s}, Expect: current.Sequence}}, nil
}

// RemoveSubscriber decides to shut somebody out.
func RemoveSubscriber(current Current[Subscriber], name, by string, at time.Time) ([]Change, error) {
	if !current.State.Living() {
		return nil, Refuse(CodeNotFound, "there is no subscriber %s", name)
	}
	next := current.State
	next.end(by, at)
	return []Change{{Fact: SubscriberRemoved{next}, Expect: current.Sequence}}, nil
}
