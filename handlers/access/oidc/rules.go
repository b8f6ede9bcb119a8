package oidc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// Rules are the trust rules that there are, kept in memory by following their facts: no database is asked.
type Rules struct {
	follower *jetstream.Follower
	logger   *slog.Logger

	mu     sync.RWMutex
	rules  map[string]events.Trust // by subject
	living []events.Trust          // replaced as a whole, never changed
}

// NewRules makes them empty. CatchUp fills them, Run keeps them up to date.
func NewRules(log *jetstream.Log, logger *slog.Logger) *Rules {
	r := &Rules{logger: logger, rules: map[string]events.Trust{}}
	r.follower = log.Follow(r.apply, events.SubjectOfKind(events.KindTrust))
	return r
}

// Living gives the rules that there are, the oldest first. Nobody may change them.
func (r *Rules) Living() []events.Trust {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.living
}

// Has says whether there is a rule.
func (r *Rules) Has(id string) bool {
	return slices.ContainsFunc(r.Living(), func(t events.Trust) bool { return t.ID == id })
}

// CatchUp reads the rules of now. It is to be done before anybody is let in.
func (r *Rules) CatchUp(ctx context.Context) error {
	if err := r.follower.CatchUp(ctx); err != nil {
		return fmt.Errorf("read the trust rules: %w", err)
	}
	return nil
}

// Run follows what happens until ctx ends. While the log is away, the rules stay as they are.
func (r *Rules) Run(ctx context.Context) error { return r.follower.Run(ctx) }

// Wait returns once the fact of that sequence counts on this node.
func (r *Rules) Wait(ctx context.Context, sequence events.Sequence) error {
	return r.follower.Wait(ctx, sequence)
}

func (r *Rules) apply(e events.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := e.Fact.(events.TrustFact)
	if ok && !f.After().Removed {
		r.rules[e.Subject] = f.After()
	} else {
		delete(r.rules, e.Subject)
	}
	if !ok {
		// It may take trust away; to go on with the rule as it was would be the wrong side to err on.
		r.logger.Error("a trust rule can't be read: a newer release wrote it; it counts no more here", "sequence", e.Sequence, "subject", e.Subject)
	}
	r.living = nil
	for _, t := range r.rules {
		r.living = append(r.living, t)
	}
	slices.SortFunc(r.living, func(a, b events.Trust) int { return strings.Compare(a.ID, b.ID) }) // UUIDv7: by age
}
