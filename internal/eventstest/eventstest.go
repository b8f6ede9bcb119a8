// Package eventstest makes histories: facts as the rules of package events decide them, numbered and dated as
// a log would. Only tests and benchmarks import it; it knows neither the log's storage nor what is derived from it.
package eventstest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
)

// TB is what a history needs of a test; both *testing.T and *rapid.T have it.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
}

// History is a stream in memory, with the current state of each entity. The zero value isn't ready: see [New].
type History struct {
	// Events is the stream, from sequence 1.
	Events []events.Event
	// Batches are the same facts as they were appended. On an empty log the same appends give the same sequences.
	Batches [][]events.Change

	now   time.Time
	last  map[events.Entity]events.Event
	ids   []string // of upload sessions, in order
	hooks []string // ids of webhooks, in order
	count int
}

// New makes an empty history that begins on 1 January 2026.
func New() *History {
	return &History{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), last: map[events.Entity]events.Event{}}
}

// Now is the history's clock. Each append moves it by a second.
func (h *History) Now() time.Time { return h.now }

// Head is the sequence of the last event.
func (h *History) Head() events.Sequence { return events.Sequence(len(h.Events)) }

// Uploads are the ids of all upload sessions, oldest first.
func (h *History) Uploads() []string { return h.ids }

// Append adds the changes of one decision as a log would: all or, where an expectation isn't met, a failed
// test. The facts go through their encoding.
func (h *History) Append(tb TB, changes ...events.Change) []events.Event {
	tb.Helper()
	if len(changes) == 0 {
		return nil
	}
	h.now = h.now.Add(time.Second)
	first := len(h.Events)
	for _, change := range changes {
		entity := change.Fact.Entity()
		if have := h.last[entity].Sequence; have != change.Expect {
			tb.Fatalf("append %s: %s %s is at %d, the decision was made on %d", change.Fact.Type(), entity.Kind, entity.ID, have, change.Expect)
		}
		data, err := json.Marshal(change.Fact)
		if err != nil {
			tb.Fatalf("encode %s: %v", change.Fact.Type(), err)
		}
		fact, err := events.Decode(change.Fact.Type(), data)
		if err != nil {
			tb.Fatalf("decode %s: %v", change.Fact.Type(), err)
		}
		sequence := h.Head() + 1
		event := events.Event{
			Meta:     events.Meta{ID: fmt.Sprintf("event-%d", sequence), Source: "imgsrv://test", Time: h.now, Actor: "test"},
			Sequence: sequence, Subject: entity.Subject(), Type: fact.Type(), Fact: fact, Data: data,
		}
		h.last[entity] = event
		h.Events = append(h.Events, event)
	}
	h.Batches = append(h.Batches, changes)
	return h.Events[first:]
}

// Upload is the current state of a session; Job, Version, Image, Alias and Blob are those of the others.
func (h *History) Upload(id string) events.Current[events.Upload] {
	return current[events.Upload](h, events.UploadEntity(id))
}

// Job is as [History.Upload].
func (h *History) Job(id string) events.Current[events.Job] {
	return current[events.Job](h, events.JobEntity(id))
}

// Version is as [History.Upload].
func (h *History) Version(image, version string) events.Current[events.Version] {
	return current[events.Version](h, events.VersionEntity(image, version))
}

// Image is as [History.Upload].
func (h *History) Image(image string) events.Current[events.Image] {
	return current[events.Image](h, events.ImageEntity(image))
}

// Alias is as [History.Upload].
func (h *History) Alias(image, alias string) events.Current[events.Alias] {
	return current[events.Alias](h, events.AliasEntity(image, alias))
}

// Blob is as [History.Upload].
func (h *History) Blob(digest events.Digest) events.Current[events.Blob] {
	return current[events.Blob](h, events.BlobEntity(digest))
}

func current[S any](h *History, entity events.Entity) events.Current[S] {
	var out events.Current[S]
	if event, ok := h.last[entity]; ok {
		out.State, out.Sequence, out.Event = events.Fold(out.State, event.Fact), event.Sequence, event
	}
	return out
}

// Digest is the digest of some content; in histories, where there are no bytes, of a name that stands for it.
func Digest[B ~string | ~[]byte](content ...B) events.Digest {
	sum := sha256.New()
	for _, part := range content {
		_, _ = sum.Write([]byte(part)) // a hash never fails
	}
	return events.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))
}

// newID makes the next UUIDv7: of the history's time, and the same in each run.
func (h *History) newID() string {
	h.count++
	var id uuid.UUID
	millis := h.now.UnixMilli()
	for i := range 6 {
		id[i] = byte(millis >> (8 * (5 - i)))
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "upload %d", h.count))
	copy(id[6:], sum[:])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}
