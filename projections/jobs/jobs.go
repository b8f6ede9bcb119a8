// Package jobs derives the tables of upload sessions and publication jobs from events. It exists for
// store/catalog to read. It must not know positions, locks or transactions, which are the runner's, nor
// who asks for the rows.
package jobs

import (
	"context"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/migrations"
)

// Name of the projection and of its schema. Renaming it replays the whole log into a new schema.
const Name = "jobs"

// Projector is the projector of sessions and jobs.
type Projector struct{}

// New makes the projector.
func New() Projector { return Projector{} }

// Name is [Name].
func (Projector) Name() string { return Name }

// Migrations are the tables of sessions and jobs.
func (Projector) Migrations() fs.FS { return migrations.Jobs() }

// Apply implements projections.Projector. Each fact carries its whole session or job, so only the last one
// of each in a batch makes a row.
func (Projector) Apply(ctx context.Context, tx pgx.Tx, batch []events.Event) error {
	c := fold(batch)
	return c.write(ctx, tx)
}

// fold is the rows that a batch leaves behind.
func fold(batch []events.Event) changes {
	c := changes{uploads: map[string]upload{}, jobs: map[string]job{}}
	for _, event := range batch {
		switch fact := event.Fact.(type) {
		case events.UploadFact:
			u := fact.After()
			c.uploads[u.ID] = upload{Upload: u, updatedAt: event.Time, sequence: event.Sequence}
		case events.JobFact:
			j := fact.After()
			c.jobs[j.ID] = job{Job: j, updatedAt: event.Time, sequence: event.Sequence}
		}
	}
	return c
}
