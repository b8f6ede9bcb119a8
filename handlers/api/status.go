package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/store/catalog"
)

const pathStatus = "/api/status"

// shownExamples of what was given up are named; the rest is counted.
const shownExamples = 5

type statusOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         serverStatus
}

// serverStatus is what an operator looks at first.
type serverStatus struct {
	Readiness readiness  `json:"readiness"`
	Jobs      []jobCount `json:"jobs" nullable:"false" doc:"Publication jobs by state; a state without jobs is left out"`
	GivenUp   []givenUp  `json:"given_up" nullable:"false" doc:"What nobody tries again by itself, or what goes on failing; empty when all is well"`
}

type jobCount struct {
	State          string    `json:"state" enum:"queued,running,succeeded,failed,cancelled"`
	Jobs           int64     `json:"jobs"`
	OldestQueuedAt time.Time `json:"oldest_queued_at" doc:"When the first of them was queued"`
}

// givenUp is one kind of what failed.
type givenUp struct {
	What     string   `json:"what" enum:"jobs,formats,deliveries,mirrors,events,projections,blobs"`
	Count    int64    `json:"count"`
	Look     string   `json:"look" doc:"The command that shows them" example:"imgsrv jobs --state failed"`
	Examples []string `json:"examples,omitempty" doc:"The last few of them"`
	Error    string   `json:"error,omitempty" doc:"Why it is not known how many there are"`
}

// status registers GET /api/status: 200, 401, 403, 503.
func (s *server) status() {
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "get-status", Method: http.MethodGet, Path: pathStatus, Summary: "How the server is doing, and all that was given up",
		Description: "What a part that is away would know is left out, and `error` says so. Events that consumers can't handle are those of this node.",
	}, func(ctx context.Context, _ *struct{}) (*statusOutput, error) {
		out := &statusOutput{CacheControl: "no-store", Body: serverStatus{Readiness: s.readiness(ctx), Jobs: []jobCount{}, GivenUp: []givenUp{}}}
		failed := s.failedJobs(ctx, &out.Body)
		for _, g := range []givenUp{failed, s.givenUpFormats(ctx), s.deadDeliveries(ctx), s.failingMirrors(ctx), s.stuckEvents(), stuckProjections(out.Body.Readiness), s.damagedBlobs()} {
			if g.Count > 0 || g.Error != "" {
				out.Body.GivenUp = append(out.Body.GivenUp, g)
			}
		}
		return out, nil
	})
}

// damagedBlobs are those that nobody is given until somebody repairs them.
func (s *server) damagedBlobs() givenUp {
	g := givenUp{What: "blobs", Look: "imgsrv fsck"}
	if s.Scrub == nil {
		return g
	}
	damaged := s.Scrub.Damaged()
	g.Count = int64(len(damaged))
	for _, b := range damaged[:min(len(damaged), shownExamples)] {
		g.Examples = append(g.Examples, fmt.Sprintf("%s: %s", b.Digest, b.Damage.Reason))
	}
	return g
}

// why tells an operator in a few words why something isn't known.
func why(err error) string {
	if err == nil {
		return ""
	}
	if errors.Is(err, catalog.ErrUnavailable) {
		return catalog.ErrUnavailable.Error()
	}
	return err.Error()
}

func (s *server) failedJobs(ctx context.Context, status *serverStatus) givenUp {
	g := givenUp{What: "jobs", Look: "imgsrv jobs --state failed"}
	counts, err := s.Catalog.JobCounts(ctx)
	for _, c := range counts {
		status.Jobs = append(status.Jobs, jobCount{State: string(c.State), Jobs: c.Jobs, OldestQueuedAt: c.Oldest.UTC()})
		if c.State == events.JobStateFailed {
			g.Count = c.Jobs
		}
	}
	if err == nil && g.Count > 0 {
		var jobs []catalog.JobRow
		all := catalog.ReadableBy(access.From(ctx).Holds(events.RoleOperator))
		jobs, _, err = s.Catalog.Jobs(ctx, catalog.JobFilter{State: events.JobStateFailed, Limit: shownExamples, Shown: catalog.JobsShown{Operator: all}})
		for _, j := range jobs {
			text := fmt.Sprintf("%s: %s %s", j.Job.ID, j.Job.Image, j.Job.Version)
			if j.Job.Problem != nil {
				text += ": " + j.Job.Problem.Detail
			}
			g.Examples = append(g.Examples, shorten(text))
		}
	}
	g.Error = why(err)
	return g
}

func (s *server) givenUpFormats(ctx context.Context) givenUp {
	files, count, err := s.Catalog.DerivedGivenUp(ctx, shownExamples)
	g := givenUp{What: "formats", Count: count, Look: "imgsrv derive IMAGE/VERSION FORMAT", Error: why(err)}
	for _, f := range files {
		text := strings.Join([]string{f.Image, f.Version, f.Variant, f.Format}, " ")
		if f.Problem != nil {
			text += ": " + f.Problem.Detail
		}
		g.Examples = append(g.Examples, shorten(text))
	}
	return g
}

func (s *server) deadDeliveries(ctx context.Context) givenUp {
	g := givenUp{What: "deliveries", Look: "imgsrv webhooks dead-letters ID"}
	latest, err := s.Events.Latest(ctx, events.SubjectOfKind(events.KindWebhook), events.SubjectOfKind(events.KindDelivery))
	removed := map[string]bool{}
	for _, e := range latest {
		if f, ok := e.Fact.(events.WebhookFact); ok && f.After().Removed {
			removed[f.After().ID] = true
		}
	}
	for i := len(latest) - 1; i >= 0; i-- {
		f, ok := latest[i].Fact.(events.DeliveryFact)
		if !ok || !f.After().GivenUp() || removed[f.After().Webhook] {
			continue
		}
		d := f.After()
		if g.Count++; len(g.Examples) < shownExamples {
			g.Examples = append(g.Examples, fmt.Sprintf("event %d for webhook %s", d.Sequence, d.Webhook))
		}
	}
	g.Error = why(err)
	return g
}

func (s *server) failingMirrors(ctx context.Context) givenUp {
	g := givenUp{What: "mirrors", Look: "imgsrv mirrors"}
	if s.Mirrors == nil {
		return g
	}
	mirrors, err := s.Mirrors.List(ctx)
	for _, m := range mirrors {
		if m.Failures == 0 {
			continue
		}
		g.Count++
		if len(g.Examples) < shownExamples {
			text := fmt.Sprintf("%s: %d runs in a row", m.Name, m.Failures)
			if m.LastRun != nil && m.LastRun.Error != "" {
				text += ": " + m.LastRun.Error
			}
			g.Examples = append(g.Examples, shorten(text))
		}
	}
	g.Error = why(err)
	return g
}

func (s *server) stuckEvents() givenUp {
	g := givenUp{What: "events", Look: "imgsrv events show SEQUENCE"}
	for _, e := range s.Events.Stuck() {
		g.Count++
		if len(g.Examples) < shownExamples {
			g.Examples = append(g.Examples, shorten(fmt.Sprintf("event %d (%s) at consumer %s, %d times: %s", e.Sequence, e.Type, e.Consumer, e.Attempts, e.Error)))
		}
	}
	return g
}

func stuckProjections(r readiness) givenUp {
	g := givenUp{What: "projections", Look: "imgsrv projections"}
	for _, p := range r.Projections {
		if p.ErrorSequence != 0 {
			g.Count++
			g.Examples = append(g.Examples, shorten(fmt.Sprintf("%s at event %d (%s): %s", p.Name, p.ErrorSequence, p.ErrorType, p.Error)))
		}
	}
	return g
}
