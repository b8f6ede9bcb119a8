package catalog

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
)

// JobCount is how many jobs are in a state.
type JobCount struct {
	State  events.JobState
	Jobs   int64
	Oldest time.Time // when the first of them was queued
}

const jobCountsStatement = `
SELECT j.state, count(*), min(j.queued_at)
FROM jobs.jobs j
GROUP BY j.state
ORDER BY j.state`

// JobCounts counts the jobs of all images by state; a state without jobs is left out. Errors: ErrUnavailable.
func (c *Catalog) JobCounts(ctx context.Context) ([]JobCount, error) {
	counts, _, err := list(ctx, c, MaxLimit, func(row pgx.CollectableRow) (JobCount, error) {
		var n JobCount
		err := row.Scan(&n.State, &n.Jobs, &n.Oldest)
		return n, err
	}, jobCountsStatement)
	return counts, explain(err, "count jobs")
}

// Those that failed and have a time for another try are not given up.
const derivedGivenUpStatement = `
SELECT d.derived, count(*) OVER ()
FROM catalog.derived d
WHERE d.state = 'failed' AND NOT d.derived ? 'retry_at'
ORDER BY d.sequence DESC
LIMIT $1`

// DerivedGivenUp lists further formats that couldn't be made and aren't tried again by themselves, the last ones first, at most
// limit of them; count is how many there are. Errors: ErrUnavailable.
func (c *Catalog) DerivedGivenUp(ctx context.Context, limit int) (files []events.Derived, count int64, err error) {
	files, _, err = list(ctx, c, limit, func(row pgx.CollectableRow) (events.Derived, error) {
		var d events.Derived
		err := row.Scan(&d, &count)
		return d, err
	}, derivedGivenUpStatement, limit)
	return files, count, explain(err, "list what could not be made")
}
