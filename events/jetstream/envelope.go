package jetstream

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/imgsrv/imgsrv/events"
)

// Header names: CloudEvents 1.0, NATS protocol binding in binary mode; correlation, causation and actor
// are extension attributes. traceparent is that of W3C trace context.
const (
	headerSpecVersion = "ce-specversion"
	headerID          = "ce-id"
	headerSource      = "ce-source"
	headerType        = "ce-type"
	headerTime        = "ce-time"
	headerSubject     = "ce-subject"
	headerActor       = "ce-actor"
	headerCorrelation = "ce-correlationid"
	headerCausation   = "ce-causationid"
	headerContentType = "content-type"
	headerTraceParent = "traceparent"
)

func encode(meta events.Meta, fact events.Fact) (*nats.Msg, error) {
	data, err := json.Marshal(fact)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", fact.Type(), err)
	}
	entity := fact.Entity()
	msg := nats.NewMsg(entity.Subject())
	msg.Data = data
	h := msg.Header
	h[headerSpecVersion] = []string{"1.0"}
	h[headerID] = []string{meta.ID}
	h[headerSource] = []string{meta.Source}
	h[headerType] = []string{string(fact.Type())}
	h[headerTime] = []string{meta.Time.UTC().Format(time.RFC3339Nano)}
	h[headerSubject] = []string{entity.ID}
	h[headerContentType] = []string{"application/json"}
	for name, value := range map[string]string{
		headerActor: meta.Actor, headerCorrelation: meta.Correlation, headerCausation: meta.Causation, headerTraceParent: meta.TraceParent,
	} {
		if value != "" {
			h[name] = []string{value}
		}
	}
	return msg, nil
}

// decode reads a stored message. On an error the event still says what can be said: sequence, subject,
// type, bytes.
func decode(h nats.Header, data []byte, subject string, sequence uint64) (events.Event, error) {
	event := events.Event{
		Meta: events.Meta{ID: first(h, headerID), Source: first(h, headerSource), Actor: first(h, headerActor),
			Correlation: first(h, headerCorrelation), Causation: first(h, headerCausation), TraceParent: first(h, headerTraceParent)},
		Sequence: events.Sequence(sequence), Subject: subject, Type: events.Type(first(h, headerType)), Data: data,
	}
	at, err := time.Parse(time.RFC3339Nano, first(h, headerTime))
	if err != nil {
		return event, fmt.Errorf("event %d: time: %w", sequence, err)
	}
	event.Time = at.UTC()
	if event.Fact, err = events.Decode(event.Type, data); err != nil {
		return event, fmt.Errorf("event %d: %w", sequence, err)
	}
	return event, nil
}

// first reads a header as it was written: NATS keeps the case of names, and so does this map.
func first(h nats.Header, name string) string {
	if values := h[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}
