package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
)

// A long log is made by appending the events of publications that never were: as the rules decide one, with other names in it each
// time. There are no bytes to them.

// What the templates call them: no other text of theirs has these names in it. A subject has them as they are.
const (
	madeImage   = "bench-image"
	madeVersion = "bench-version"
)

// firstMade is when the first publication was; each is a minute after the one before.
var firstMade = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// panics stands for a test, of which the templates need nothing.
type panics struct{}

func (panics) Helper()                           {}
func (panics) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

// template is the events of a publication, as text with holes.
type template struct {
	events  []madeEvent
	upload  string   // its id
	digests []string // in hex
	minutes []string // that its times begin with, in order
}

type madeEvent struct{ subject, kind, at, data string }

var (
	hexDigest = regexp.MustCompile(`[0-9a-f]{64}`)
	inMinute  = regexp.MustCompile(`20\d\d-\d\d-\d\dT\d\d:\d\d:`)
)

// templates are those of an image's first publication and of a later one.
func templates() [2]template {
	later := eventstest.New()
	before := eventstest.Session(madeImage, "before", "latest")
	before.Variants[0].Variant.Architecture = "arm64" // so that they share no metadata
	later.Publish(panics{}, before)
	return [2]template{newTemplate(eventstest.New()), newTemplate(later)}
}

func newTemplate(h *eventstest.History) template {
	from := len(h.Events)
	t := template{upload: h.Publish(panics{}, eventstest.Session(madeImage, madeVersion, "latest"))}
	for _, e := range h.Events[from:] {
		made := madeEvent{e.Subject, string(e.Type), e.Time.Format(time.RFC3339Nano), string(e.Data)}
		t.events = append(t.events, made)
		text := made.subject + made.at + made.data
		t.digests = append(t.digests, hexDigest.FindAllString(text, -1)...)
		t.minutes = append(t.minutes, inMinute.FindAllString(text, -1)...)
	}
	slices.Sort(t.digests)
	slices.Sort(t.minutes)
	t.digests, t.minutes = slices.Compact(t.digests), slices.Compact(t.minutes)
	return t
}

// as writes a publication's events with names of its own, and gives each to add.
func (t *template) as(n int, image, version string, add func(madeEvent) error) error {
	at := firstMade.Add(time.Duration(n) * time.Minute)
	seed := sha256.Sum256(fmt.Appendf(nil, "made %d", n))
	var id uuid.UUID
	for i, shift := 0, 40; i < 6; i, shift = i+1, shift-8 {
		id[i] = byte(at.UnixMilli() >> shift)
	}
	copy(id[6:], seed[:])
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	swap := []string{madeImage, image, madeVersion, version, t.upload, id.String(), events.JobIDFor(t.upload), events.JobIDFor(id.String())}
	for i, minute := range t.minutes {
		swap = append(swap, minute, at.Add(time.Duration(i)*time.Minute).Format("2006-01-02T15:04:"))
	}
	for i, d := range t.digests {
		sum := sha256.Sum256(fmt.Appendf(nil, "made %d %d", n, i))
		swap = append(swap, d, hex.EncodeToString(sum[:]))
	}
	r := strings.NewReplacer(swap...)
	for _, e := range t.events {
		if err := add(madeEvent{r.Replace(e.subject), e.kind, r.Replace(e.at), r.Replace(e.data)}); err != nil {
			return err
		}
	}
	return nil
}

// message is an event in its envelope (events/jetstream, envelope.go).
func (e madeEvent) message(id string) *nats.Msg {
	msg := nats.NewMsg(e.subject)
	msg.Data = []byte(e.data)
	for name, value := range map[string]string{"ce-specversion": "1.0", "ce-id": id, "ce-source": "imgsrv://bench", "ce-type": e.kind,
		"ce-time": e.at, "ce-actor": "bench", "content-type": "application/json"} {
		msg.Header[name] = []string{value}
	}
	return msg
}

// fill appends the publications of n versions, so many to an image, named v00000 and so on, to a log in a folder that no server has
// open. It gives the number of events.
func (b *bench) fill(ctx context.Context, folder string, n, perImage int) (int, error) {
	return b.appendTo(ctx, folder, func(add func(madeEvent) error) error {
		kinds := templates()
		for i := range n {
			kind := 0
			if i%perImage > 0 {
				kind = 1
			}
			err := kinds[kind].as(i, madeName(i/perImage), fmt.Sprintf("v%06d", i%perImage), add)
			if err := errors.Join(err, ctx.Err()); err != nil {
				return err
			}
		}
		return nil
	})
}

// move appends n moves of aliases of the versions that fill has made, so many to an image: of some to the next of them, again and again.
func (b *bench) move(ctx context.Context, folder string, n, versions, perImage int) error {
	_, err := b.appendTo(ctx, folder, func(add func(madeEvent) error) error {
		for i := range n {
			at := i % versions
			fact := aliasMoved(madeName(at/perImage), fmt.Sprint("moved-", i%10), fmt.Sprintf("v%06d", at%perImage))
			data, err := json.Marshal(fact)
			if err == nil {
				err = add(madeEvent{fact.Entity().Subject(), string(fact.Type()), firstMade.Add(time.Duration(i) * time.Second).Format(time.RFC3339Nano), string(data)})
			}
			if err := errors.Join(err, ctx.Err()); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// appendTo appends what give adds to a log in a folder that no server has open, and counts it.
func (b *bench) appendTo(ctx context.Context, folder string, give func(add func(madeEvent) error) error) (count int, err error) {
	_, nc, stop, err := b.openLog(ctx, folder, false)
	if err != nil {
		return 0, err
	}
	defer stop()
	js, err := natsjs.New(nc, natsjs.WithPublishAsyncMaxPending(4000))
	if err != nil {
		return 0, err
	}
	err = give(func(e madeEvent) error {
		count++
		_, err := js.PublishMsgAsync(e.message(fmt.Sprintf("%s-%d", e.kind, count)), natsjs.WithStallWait(time.Minute))
		return err
	})
	if err != nil {
		return count, err
	}
	select {
	case <-js.PublishAsyncComplete():
		return count, nil
	case <-time.After(time.Minute):
		return count, errors.New("the log doesn't acknowledge")
	}
}

func madeName(i int) string { return fmt.Sprintf("made-%05d", i) }

// eventsPerVersion is how many events a version makes, about.
func eventsPerVersion() int { return len(templates()[1].events) }

// check finds what the holes left: facts that can't be read, or that still have a template's names.
func (t *template) check() error {
	return t.as(7, "an-image", "a-version", func(e madeEvent) error {
		fact, err := events.Decode(events.Type(e.kind), json.RawMessage(e.data))
		if err != nil {
			return err
		}
		if got := fact.Entity().Subject(); got != e.subject {
			return fmt.Errorf("%s is about %s and goes to %s", e.kind, got, e.subject)
		}
		if strings.Contains(e.data+e.subject, "bench-") {
			return fmt.Errorf("%s still has a template's name: %s %s", e.kind, e.subject, e.data)
		}
		return nil
	})
}
