package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

// Reader is how far a durable consumer has come: what it takes to let it go on in a copy of the stream.
type Reader struct {
	Name     string          `json:"name"`
	Subjects []string        `json:"subjects"` // filter; empty: all
	Handled  events.Sequence `json:"handled"`  // every event up to it that the consumer wants is acknowledged
}

// Readers lists the durable consumers, by name.
func (l *Log) Readers(ctx context.Context) ([]Reader, error) {
	readers := []Reader{}
	consumers := l.stream.ListConsumers(ctx)
	for info := range consumers.Info() {
		if info.Config.Durable == "" || info.Config.AckPolicy != natsjs.AckExplicitPolicy {
			continue
		}
		subjects := info.Config.FilterSubjects
		if info.Config.FilterSubject != "" {
			subjects = []string{info.Config.FilterSubject}
		}
		readers = append(readers, Reader{Name: info.Config.Durable, Subjects: subjects, Handled: events.Sequence(info.AckFloor.Stream)})
	}
	if err := consumers.Err(); err != nil {
		return nil, fmt.Errorf("list the consumers: %w", unavailable(err))
	}
	slices.SortFunc(readers, func(a, b Reader) int { return strings.Compare(a.Name, b.Name) })
	return readers, nil
}

// Resume makes a durable consumer that goes on after what a reader of another stream had handled. Whose it is gives it the rest of
// its configuration when it comes ([Log.Consume], [Subscribers]). One of that name that is there is left as it is.
func (l *Log) Resume(ctx context.Context, r Reader) error {
	cfg := Consumer{Name: r.Name, Subjects: r.Subjects, From: r.Handled + 1}.config()
	if _, err := makeConsumer(ctx, l.js.CreateConsumer, cfg); err != nil && !errors.Is(err, natsjs.ErrConsumerExists) {
		return fmt.Errorf("let consumer %s go on after event %d: %w", r.Name, r.Handled, unavailable(err))
	}
	return nil
}

// Importing says that an import was begun and isn't finished: the stream holds no whole history.
func (l *Log) Importing() bool { return l.importing.Load() }
