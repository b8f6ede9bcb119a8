package oidc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// restartPause is between attempts to reach a log that doesn't answer.
const restartPause = time.Second

// Rules are the trust rules that there are, kept in memory by following their facts: no database is asked.
type Rules struct {
	log    *jetstream.Log
	logger *slog.Logger

	mu     sync.Mutex
	rules  map[string]rule // by subject; those that were removed too
	living []events.Trust  // replaced as a whole, never changed
	at     events.Sequence // what was seen
	moved  chan struct{}   // closed when at moves
}

type rule struct {
	events.Trust
	sequence events.Sequence
}

// NewRules makes them empty. Load fills them, Run keeps them up to date.
func NewRules(log *jetstream.Log, logger *slog.Logger) *Rules {
	return &Rules{log: log, logger: logger, rules: map[string]rule{}, moved: make(chan struct{})}
}

// Living gives the rules that there are, the oldest first. Nobody may change them.
func (r *Rules) Living() []events.Trust {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.living
}

// Load reads the rules of now. It is to be done before anybody is let in.
func (r *Rules) Load(ctx context.Context) error {
	head, err := r.log.Head(ctx)
	if err != nil {
		return fmt.Errorf("read the trust rules: %w", err)
	}
	latest, err := r.log.Latest(ctx, events.SubjectOfKind(events.KindTrust))
	if err != nil {
		return fmt.Errorf("read the trust rules: %w", err)
	}
	for _, e := range latest {
		r.apply(e)
	}
	r.reach(head)
	return nil
}

// Run follows the facts until ctx ends. While the log is away, the rules stay as they are.
func (r *Rules) Run(ctx context.Context) error {
	for {
		err := r.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var unreadable *jetstream.Undecodable
		if errors.As(err, &unreadable) {
			// It may take trust away; to go on with the rule as it was would be the wrong side to err on.
			r.logger.ErrorContext(ctx, "a trust rule can't be read and counts no more: is this release older than another node's?", "sequence", unreadable.Event.Sequence, "error", err)
			r.apply(unreadable.Event)
			continue
		}
		r.logger.WarnContext(ctx, "interrupted, goes on in a moment", "part", "trust rules", "error", err)
		timer := time.NewTimer(restartPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

func (r *Rules) follow(ctx context.Context) error {
	r.mu.Lock()
	after := r.at
	r.mu.Unlock()
	tail, err := r.log.Tail(ctx, after, events.SubjectOfKind(events.KindTrust))
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
			r.apply(e)
		}
	}
}

// apply takes a fact, which may come twice. One without content ends its rule.
func (r *Rules) apply(e events.Event) {
	next := rule{sequence: e.Sequence, Trust: events.Trust{Removed: true}}
	if f, ok := e.Fact.(events.TrustFact); ok {
		next.Trust = f.TrustState()
	}
	r.mu.Lock()
	if e.Sequence > r.rules[e.Subject].sequence {
		r.rules[e.Subject] = next
		var living []events.Trust
		for _, known := range r.rules {
			if !known.Removed {
				living = append(living, known.Trust)
			}
		}
		slices.SortFunc(living, func(a, b events.Trust) int { return strings.Compare(a.ID, b.ID) }) // UUIDv7: by age
		r.living = living
	}
	r.mu.Unlock()
	r.reach(e.Sequence)
}

func (r *Rules) reach(sequence events.Sequence) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sequence > r.at {
		r.at = sequence
		close(r.moved)
		r.moved = make(chan struct{})
	}
}

// WaitFor returns when the facts of trust rules up to one's sequence have been seen here.
func (r *Rules) WaitFor(ctx context.Context, sequence events.Sequence) error {
	for {
		r.mu.Lock()
		at, moved := r.at, r.moved
		r.mu.Unlock()
		if at >= sequence {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for trust rule %d: %w", sequence, ctx.Err())
		}
	}
}
