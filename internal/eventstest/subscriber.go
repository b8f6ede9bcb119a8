package eventstest

import (
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
)

// Subscriber is like [History.Upload].
func (h *History) Subscriber(name string) events.Current[events.Subscriber] {
	return current[events.Subscriber](h, events.SubscriberEntity(name))
}

// subscriber lets somebody in, or shuts them out.
func (h *History) subscriber(t *rapid.T) error {
	name := rapid.SampledFrom([]string{"mirror", "ci"}).Draw(t, "subscriber")
	if rapid.Bool().Draw(t, "add") {
		s := events.Subscriber{Name: name, PublicKey: "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", MaxPending: 1, Lifetime: events.Lifetime{AddedBy: "test", AddedAt: h.now}}
		return h.decide(t)(events.AddSubscriber(s, h.Subscriber(name)))
	}
	return h.decide(t)(events.RemoveSubscriber(h.Subscriber(name), name, "test", h.now))
}
