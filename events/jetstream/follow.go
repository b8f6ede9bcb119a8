package jetstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/pause"
)

// Follower hands the events of some subjects, in order and each once, to a function that keeps a state of them
// in memory: for states that are small and have to be known whatever happens to PostgreSQL.
type Follower struct {
	log      *Log
	subjects []string
	apply    func(context.Context, events.Event)
	latest   bool   // CatchUp reads the last event of each entity alone
	caughtUp bool   // of the goroutine that catches up and runs
	ready    func() // optional

	mu      sync.Mutex
	applied events.Sequence
	moved   chan struct{} // closed, and made anew, at each event
}

const (
	followBatch = 1000
	followPause = time.Second // between attempts while the log is away
)

// Follow makes a follower. An event that this release can't decode comes to apply with a nil Fact: it is up to
// apply to do the safe thing. Its context is that of CatchUp or Run.
func (l *Log) Follow(apply func(context.Context, events.Event), subjects ...string) *Follower {
	return &Follower{log: l, subjects: subjects, apply: apply, moved: make(chan struct{})}
}

// FollowLatest is Follow for who does something about the last event of each entity, and nothing about those before: of what happened
// until it has caught up only these come.
func (l *Log) FollowLatest(apply func(context.Context, events.Event), subjects ...string) *Follower {
	f := l.Follow(apply, subjects...)
	f.latest = true
	return f
}

// WhenCaughtUp names what is to be called once all that had happened is applied. It comes before CatchUp.
func (f *Follower) WhenCaughtUp(ready func()) { f.ready = ready }

// SkipTo leaves out what happened up to a sequence. It comes before CatchUp.
func (f *Follower) SkipTo(sequence events.Sequence) { f.reach(sequence) }

// CatchUp applies all that has happened, and returns. It comes before Run, which does so otherwise.
func (f *Follower) CatchUp(ctx context.Context) error {
	head, err := f.log.Head(ctx)
	if err != nil {
		return err
	}
	each := func(msg natsjs.Msg, meta *natsjs.MsgMetadata) error {
		event, err := decode(msg.Headers(), msg.Data(), msg.Subject(), meta.Sequence.Stream)
		if err != nil {
			event.Fact = nil
		}
		f.advance(ctx, event)
		return nil
	}
	if f.latest {
		err = f.log.scanLatest(ctx, f.subjects, func(msg natsjs.Msg, meta *natsjs.MsgMetadata, _ int) error { return each(msg, meta) })
	} else {
		err = f.log.scanAfter(ctx, f.Applied(), head, f.subjects, each)
	}
	if err != nil {
		return err
	}
	f.reach(head)
	f.caughtUp = true
	if f.ready != nil {
		f.ready()
	}
	return nil
}

// Run goes on with what happens, until ctx ends. While the log is away the state stays as it is.
func (f *Follower) Run(ctx context.Context) error {
	for {
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		f.log.log.Warn("events that are kept in memory can't be followed; trying again", "subjects", f.subjects, "error", err)
		if pause.For(ctx, followPause) != nil {
			return nil
		}
	}
}

// follow is one reading of the stream.
func (f *Follower) follow(ctx context.Context) error {
	if !f.caughtUp {
		if err := f.CatchUp(ctx); err != nil {
			return err
		}
	}
	tail, err := f.log.TailBuffered(ctx, f.Applied(), followBatch, f.subjects...)
	if err != nil {
		return err
	}
	defer func() { tail.Close() }()
	for {
		batch, err := tail.Next(ctx, followBatch)
		var unreadable *Undecodable
		if errors.As(err, &unreadable) {
			unreadable.Event.Fact = nil
			f.advance(ctx, unreadable.Event)
			tail.Close()
			if tail, err = f.log.TailBuffered(ctx, f.Applied(), followBatch, f.subjects...); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, event := range batch {
			f.advance(ctx, event)
		}
	}
}

func (f *Follower) advance(ctx context.Context, event events.Event) {
	if event.Sequence <= f.Applied() {
		return
	}
	f.apply(ctx, event)
	f.reach(event.Sequence)
}

func (f *Follower) reach(sequence events.Sequence) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.applied = max(f.applied, sequence)
	close(f.moved)
	f.moved = make(chan struct{})
}

// Applied is the sequence up to which every event of the follower's subjects was applied.
func (f *Follower) Applied() events.Sequence {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied
}

// Wait returns once an event of the follower's subjects, known by its sequence, is applied.
func (f *Follower) Wait(ctx context.Context, sequence events.Sequence) error {
	for {
		f.mu.Lock()
		applied, moved := f.applied, f.moved
		f.mu.Unlock()
		if applied >= sequence {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for event %d to be applied: %w", sequence, ctx.Err())
		}
	}
}
