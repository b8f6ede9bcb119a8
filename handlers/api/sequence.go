package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/projections"
)

// Headers of reading one's own writes: a write answers with its sequence, a read may send it back.
const (
	headerSequence    = "Imgsrv-Sequence"
	headerMinSequence = "Imgsrv-Min-Sequence"
)

// MinSequence makes a read with Imgsrv-Min-Sequence wait until the projections that it needs have applied
// that sequence: at most so long, then it is a 503 (not-yet) with Retry-After. What is no sequence is a 400,
// and so is one that the stream has not reached: no answer of this server can have named it, and it would
// never come.
func MinSequence(stream *jetstream.Log, wait time.Duration, log *slog.Logger, needed ...*projections.Runner) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if value := r.Header.Get(headerMinSequence); value != "" {
				if err := waitForSequence(r.Context(), stream, wait, value, needed); err != nil {
					problem.Write(w, r, log, err)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	}
}

// headWait bounds the question for the stream's head, so that most of a read's wait is for the projections.
const headWait = 500 * time.Millisecond

func waitForSequence(ctx context.Context, stream *jetstream.Log, wait time.Duration, value string, needed []*projections.Runner) error {
	number, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return problem.New(problem.CodeBadRequest, headerMinSequence+" is a number: what "+headerSequence+" of a write's answer said")
	}
	sequence := events.Sequence(number)
	if !slices.ContainsFunc(needed, func(p *projections.Runner) bool { return p.Position() < sequence }) {
		return nil // the usual case, also while the event log is away
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	// While the event log is away nobody knows its head; the projections may be far enough all the same.
	asking, stop := context.WithTimeout(ctx, headWait)
	head, err := stream.Head(asking)
	stop()
	if err == nil && sequence > head {
		return problem.New(problem.CodeBadRequest, fmt.Sprintf("%s is %d, and the last event is %d: the sequence is of another server", headerMinSequence, sequence, head))
	}
	for _, projection := range needed {
		if err := projection.WaitFor(ctx, sequence); err != nil {
			if errors.Is(err, context.Canceled) {
				return err
			}
			return problem.New(problem.CodeNotYet, fmt.Sprintf("event %d is not visible yet: try again, or leave %s out to read what is there", sequence, headerMinSequence))
		}
	}
	return nil
}

// waitVisible waits, within a bound, until a publication can be queried; after the bound the answer says what
// is true in the log. The batch of a publication goes on after the job's own fact with the image's
// description and the aliases: wait for these too, as far as the stream goes.
func (s *server) waitVisible(ctx context.Context, job events.Current[events.Job], aliases int) {
	ctx, cancel := context.WithTimeout(ctx, s.VisibleWait)
	defer cancel()
	last := job.Sequence + 1 + events.Sequence(aliases)
	if head, err := s.Events.Head(ctx); err == nil {
		last = min(last, head)
	} else {
		last = job.Sequence
	}
	for _, projection := range []*projections.Runner{s.CatalogProjection, s.StreamsProjection} {
		if err := projection.WaitFor(ctx, last); err != nil {
			return
		}
	}
}
