package projections

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// Bulk is a [Projector] with a faster way to fill tables that nobody reads yet. The rows must come out as those of Apply. A
// projector without it is rebuilt with Apply, from all events.
type Bulk interface {
	Projector
	// Kinds are the kinds of entities (events.KindImage) whose facts it applies. Others are not even read.
	Kinds() []string
	// LastOnly says that of an entity's facts only the last has a bearing on the rows. The others are then not decoded;
	// that their type is known is still looked at.
	LastOnly() bool
	// Load is Apply for a large batch. What it derives from its own tables may wait for Finish.
	Load(ctx context.Context, tx pgx.Tx, batch []events.Event) error
	// Finish derives what Load put off. It may be called more than once.
	Finish(ctx context.Context, tx pgx.Tx) error
}

// plain makes a Bulk of any projector.
type plain struct{ Projector }

func bulkOf(p Projector) Bulk {
	if b, ok := p.(Bulk); ok {
		return b
	}
	return plain{p}
}

func (plain) Kinds() []string { return nil }

func (plain) LastOnly() bool { return false }

func (p plain) Load(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	return p.Apply(ctx, tx, batch)
}

func (plain) Finish(context.Context, pgx.Tx) error { return nil }
