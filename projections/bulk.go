package projections

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// Bulk is a [Projector] with a faster way to fill tables that nobody reads yet. The rows must come out as those of Apply. A
// projector without it is rebuilt with Apply, from all events.
type Bulk interface {
	Projector
	// Kinds are the kinds of entities (events.KindImage) whose facts it applies; nil: of all. Others are not
	// decoded, so that one that this release can't read doesn't stop it.
	Kinds() []string
	// LastOnly says that of an entity's facts only the last has a bearing on the rows. The others are then not decoded;
	// that their type is known is still looked at.
	LastOnly() bool
	// Load is Apply for a large batch.
	Load(ctx context.Context, tx pgx.Tx, batch []events.Event) error
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

// concerns says whether facts of a subject may have a bearing on a projection.
func concerns(p Bulk, subject string) bool {
	kinds := p.Kinds()
	return len(kinds) == 0 || slices.ContainsFunc(kinds, func(kind string) bool {
		return strings.HasPrefix(subject[min(len(subject), len(events.SubjectPrefix)):], kind+".")
	})
}
