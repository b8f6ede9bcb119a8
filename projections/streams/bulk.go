package streams

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// Kinds implements projections.Bulk.
func (*Projector) Kinds() []string {
	return []string{events.KindVersion, events.KindImage, events.KindAlias, events.KindDerived}
}

// LastOnly implements projections.Bulk: a version's key depends on the versions before it, a row's change on what it was.
func (*Projector) LastOnly() bool { return false }

// Load implements projections.Bulk. A row's value depends on the one before it, and PostgreSQL decides that, so the statements
// are those of Apply, sent without waiting for each, and without those that a later one of the batch makes idle.
func (*Projector) Load(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	return change(ctx, tx, condense(batch))
}

// condense leaves out moves of an alias that have no bearing on the row it ends with: all but the last two to different versions, of
// which the first makes sure that the second counts as a change.
func condense(batch []events.Event) []events.Event {
	type name struct{ image, alias string }
	moves := map[name][]int{} // places in batch, each to another version than the one before
	target := func(i int) string {
		switch fact := batch[i].Fact.(type) {
		case events.AliasMoved:
			return fact.Version
		case events.AliasRemoved:
			return fact.Version
		}
		return ""
	}
	idle := make([]bool, len(batch))
	for i, e := range batch {
		var moved name
		switch fact := e.Fact.(type) {
		case events.AliasMoved:
			moved = name{fact.Image, fact.Alias.Alias}
		case events.AliasRemoved:
			moved = name{fact.Image, fact.Alias.Alias}
		default:
			continue
		}
		before := moves[moved]
		switch {
		case len(before) > 0 && target(before[len(before)-1]) == target(i):
			idle[i] = true
		case len(before) == 2:
			idle[before[0]] = true
			moves[moved] = []int{before[1], i}
		default:
			moves[moved] = append(before, i)
		}
	}
	out := make([]events.Event, 0, len(batch))
	for i, e := range batch {
		if !idle[i] {
			out = append(out, e)
		}
	}
	return out
}
