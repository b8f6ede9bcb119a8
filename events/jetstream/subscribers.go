package jetstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
)

// subscriberKey marks the durable consumer of a subscriber, in its metadata: the server made it, and a client uses it
// as it is.
const subscriberKey = "imgsrv-subscriber"

// Subscribers knows who may read events over NATS, by the facts of subscribers: it keeps a durable consumer for each
// of them and, where the server is the embedded one, lets them in. It reads no database.
type Subscribers struct {
	log    *Log
	door   *door // nil where NATS is somebody else's: who gets in there is for its configuration
	logger *slog.Logger

	// Of the goroutine that follows the facts.
	seen    map[string]events.Sequence // the last fact of each subscriber, by name
	current map[string]events.Subscriber

	mu      sync.Mutex
	heeded  events.Sequence // every fact of a subscriber up to it was heeded
	changed chan struct{}   // closed and made anew when heeded grows
}

// NewSubscribers makes the directory; Run starts it. server is the embedded one, or nil.
func NewSubscribers(log *Log, server *Server, logger *slog.Logger) *Subscribers {
	s := &Subscribers{log: log, logger: logger, seen: map[string]events.Sequence{}, current: map[string]events.Subscriber{}, changed: make(chan struct{})}
	if server != nil {
		s.door = server.door
	}
	return s
}

// Embedded says whether the server lets subscribers in by itself; if not, its configuration has to.
func (s *Subscribers) Embedded() bool { return s.door != nil }

// Run follows the facts until ctx ends, and returns nil. Where the log doesn't answer it tries again.
func (s *Subscribers) Run(ctx context.Context) error {
	for {
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		s.logger.WarnContext(ctx, "subscribers are not followed for a moment", "error", err)
		if sleep(ctx, time.Second) != nil {
			return nil
		}
	}
}

func (s *Subscribers) follow(ctx context.Context) error {
	subject := events.SubjectOfKind(events.KindSubscriber)
	head, err := s.log.Head(ctx)
	if err != nil {
		return err
	}
	latest, err := s.log.Latest(ctx, subject)
	if err != nil {
		return err
	}
	for _, e := range latest {
		s.heed(ctx, e)
	}
	s.reached(head)
	if s.door != nil {
		s.door.open()
	}
	tail, err := s.log.Tail(ctx, head, subject)
	if err != nil {
		return err
	}
	defer tail.Close()
	for {
		batch, err := tail.Next(ctx, 100)
		if err != nil {
			return err
		}
		for _, e := range batch {
			s.heed(ctx, e)
			s.reached(e.Sequence)
		}
	}
}

// heed does what follows from a fact. It may get one twice.
func (s *Subscribers) heed(ctx context.Context, e events.Event) {
	fact, ok := e.Fact.(events.SubscriberFact)
	if !ok {
		return
	}
	state := fact.After()
	if e.Sequence <= s.seen[state.Name] {
		return
	}
	s.seen[state.Name] = e.Sequence
	// A removal may have been passed over, where the name was given again meanwhile.
	if before := s.current[state.Name]; s.door != nil && before.PublicKey != "" && (state.Removed || before.PublicKey != state.PublicKey) {
		s.door.dismiss(before.PublicKey)
	}
	s.current[state.Name] = state
	if state.Removed {
		// Each node does so, since one that hadn't heard of the removal yet may just have made the consumer again.
		if err := s.log.RemoveConsumer(ctx, state.Name); err != nil {
			s.logger.WarnContext(ctx, "the consumer of a removed subscriber stays until the next start", "subscriber", state.Name, "error", err)
		}
		return
	}
	if err := s.log.ensureSubscriber(ctx, state); err != nil {
		s.logger.WarnContext(ctx, "a subscriber has no consumer until the next start", "subscriber", state.Name, "error", err)
	}
	if s.door != nil {
		if err := s.door.admit(state); err != nil {
			s.logger.ErrorContext(ctx, "a subscriber can't be let in", "subscriber", state.Name, "error", err)
		}
	}
}

func (s *Subscribers) reached(sequence events.Sequence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.heeded = max(s.heeded, sequence)
	close(s.changed)
	s.changed = make(chan struct{})
}

// Wait returns once this node does what follows from a fact, and from all before it.
func (s *Subscribers) Wait(ctx context.Context, sequence events.Sequence) error {
	for {
		s.mu.Lock()
		heeded, changed := s.heeded, s.changed
		s.mu.Unlock()
		if heeded >= sequence {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the subscribers as of event %d: %w", sequence, ctx.Err())
		}
	}
}

// ensureSubscriber makes a subscriber's durable consumer, or replaces one of its name that is another: it then
// begins where that one stood. That is how a subscriber takes over a consumer from before it was one. A changed filter
// alone would still bring what had been delivered under the old one.
func (l *Log) ensureSubscriber(ctx context.Context, s events.Subscriber) error {
	consumer := Consumer{Name: s.Name, Subjects: s.Subjects(), From: s.From, InOrder: s.MaxPending == 1}
	want := consumer.config()
	want.MaxAckPending = s.MaxPending
	want.Metadata = map[string]string{subscriberKey: s.PublicKey}
	existing, err := l.stream.Consumer(ctx, s.Name)
	switch {
	case err == nil && sameConsumer(existing.CachedInfo().Config, want):
		return nil
	case err == nil:
		from := events.Sequence(existing.CachedInfo().AckFloor.Stream + 1)
		if err := l.RemoveConsumer(ctx, s.Name); err != nil {
			return err
		}
		consumer.From = max(from, s.From)
		moved := consumer.config()
		want.DeliverPolicy, want.OptStartSeq = moved.DeliverPolicy, moved.OptStartSeq
	case !errors.Is(err, natsjs.ErrConsumerNotFound):
		return fmt.Errorf("look for consumer %s: %w", s.Name, unavailable(err))
	}
	if _, err := makeConsumer(ctx, l.js.CreateConsumer, want); err != nil && !errors.Is(err, natsjs.ErrConsumerExists) { // another node was faster
		return fmt.Errorf("make consumer %s: %w", s.Name, unavailable(err))
	}
	return nil
}

// sameConsumer compares what matters of a subscriber's consumer. Where it began is not asked: it may be one that
// was taken over.
func sameConsumer(have, want natsjs.ConsumerConfig) bool {
	subjects := have.FilterSubjects
	if have.FilterSubject != "" {
		subjects = []string{have.FilterSubject}
	}
	return have.Metadata[subscriberKey] == want.Metadata[subscriberKey] && have.DeliverSubject == "" && have.AckPolicy == want.AckPolicy &&
		have.MaxAckPending == want.MaxAckPending && have.InactiveThreshold == want.InactiveThreshold &&
		slices.Equal(slices.Sorted(slices.Values(subjects)), slices.Sorted(slices.Values(want.FilterSubjects)))
}

// Add lets somebody in: it makes a key, appends the fact, and returns once this node knows of it. PublicKey is set
// here. The credentials are shown to whoever asked, and kept nowhere.
func (s *Subscribers) Add(ctx context.Context, add events.Subscriber) (added events.Subscriber, credentials []byte, sequence events.Sequence, err error) {
	if add.Images == nil {
		add.Images = []string{}
	}
	if add.PublicKey, credentials, err = newCredentials(); err != nil {
		return add, nil, 0, fmt.Errorf("add subscriber %s: %w", add.Name, err)
	}
	if _, err := events.AddSubscriber(add, events.Current[events.Subscriber]{}); err != nil {
		return add, nil, 0, err // before its name is part of a subject
	}
	sequence, err = s.log.Decide(ctx, Cause{Actor: add.AddedBy}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.log.Subscriber(ctx, add.Name)
		if err != nil {
			return nil, err
		}
		return events.AddSubscriber(add, current)
	})
	if err != nil {
		return add, nil, 0, err
	}
	if err := s.Wait(ctx, sequence); err != nil {
		return add, nil, 0, err
	}
	return add, credentials, sequence, nil
}

// Remove shuts somebody out: when it returns, this node has cut their connections.
func (s *Subscribers) Remove(ctx context.Context, name, by string, at time.Time) (events.Sequence, error) {
	if events.CheckSubscriberName(name) != nil {
		return 0, events.Refuse(events.CodeNotFound, "there is no subscriber %q", name)
	}
	sequence, err := s.log.Decide(ctx, Cause{Actor: by}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.log.Subscriber(ctx, name)
		if err != nil {
			return nil, err
		}
		return events.RemoveSubscriber(current, name, by, at)
	})
	if err != nil {
		return 0, err
	}
	return sequence, s.Wait(ctx, sequence)
}

// SubscriberStatus is a subscriber and how far it has come.
type SubscriberStatus struct {
	events.Subscriber
	Position Position
}

// List is all subscribers that there are, by name, from the log itself.
func (s *Subscribers) List(ctx context.Context) ([]SubscriberStatus, error) {
	latest, err := s.log.Latest(ctx, events.SubjectOfKind(events.KindSubscriber))
	if err != nil {
		return nil, err
	}
	states := map[string]events.Subscriber{} // of one that got another fact while we read, the later is right
	for _, e := range latest {
		if f, ok := e.Fact.(events.SubscriberFact); ok {
			states[f.After().Name] = f.After()
		}
	}
	list := []SubscriberStatus{}
	for _, state := range states {
		if !state.Living() {
			continue
		}
		position, _, err := s.log.position(ctx, state.Name)
		if err != nil {
			return nil, err
		}
		list = append(list, SubscriberStatus{state, position})
	}
	slices.SortFunc(list, func(a, b SubscriberStatus) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// Subscriber reads a subscriber's state: see [Log.Upload]. One that was removed is Removed.
func (l *Log) Subscriber(ctx context.Context, name string) (events.Current[events.Subscriber], error) {
	return load[events.Subscriber](ctx, l, events.SubscriberEntity(name))
}
