package events

import (
	"strings"
	"testing"
)

func TestASubscribersFormIsChecked(t *testing.T) {
	t.Parallel()
	good := Subscriber{Name: "builds", PublicKey: "U" + strings.Repeat("A", 55), Images: []string{"debian"}, MaxPending: 1}
	if _, err := AddSubscriber(good, Current[Subscriber]{}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Subscriber){
		"name":        func(s *Subscriber) { s.Name = "a.b" },
		"key":         func(s *Subscriber) { s.PublicKey = "A" + s.PublicKey[1:] },
		"pattern":     func(s *Subscriber) { s.Images = []string{"debian*"} }, // NATS permissions know none
		"image twice": func(s *Subscriber) { s.Images = []string{"debian", "debian"} },
		"images":      func(s *Subscriber) { s.Images = names(MaxSubscriberImages + 1) },
		"none":        func(s *Subscriber) { s.MaxPending = 0 },
		"many":        func(s *Subscriber) { s.MaxPending = MaxSubscriberPending + 1 },
	} {
		s := good
		change(&s)
		if _, err := AddSubscriber(s, Current[Subscriber]{}); !IsCode(err, CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
