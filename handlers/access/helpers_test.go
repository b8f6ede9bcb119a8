package access_test

import (
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
)

// newerEvent is an event of a type that this release doesn't know.
func newerEvent(subject, eventType string) *nats.Msg {
	msg := nats.NewMsg(subject)
	msg.Header["ce-specversion"] = []string{"1.0"}
	msg.Header["ce-id"] = []string{uuid.NewString()}
	msg.Header["ce-type"] = []string{eventType}
	msg.Header["ce-time"] = []string{time.Now().UTC().Format(time.RFC3339Nano)}
	msg.Data = []byte(`{}`)
	return msg
}
