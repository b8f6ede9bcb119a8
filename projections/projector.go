package projections

import (
	"context"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// Projector turns facts into rows of one Postgres schema. A [Runner] calls it from one goroutine at a time.
type Projector interface {
	// Name is the name of the projection and of its schema, such as "catalog". It is data: another name is
	// another schema, filled from the first event on.
	Name() string
	// Migrations are the goose SQL files that make the schema's tables, with unqualified names. They make
	// the table position too.
	Migrations() fs.FS
	// Apply changes rows for a batch of events in the stream's order. The search_path of tx is the
	// projection's schema. Facts it doesn't know are ignored. Rows depend on the events alone, never on the
	// clock or on how the stream was cut into batches. An error undoes the batch.
	Apply(ctx context.Context, tx pgx.Tx, batch []events.Event) error
}
