package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/catalog"
	"github.com/imgsrv/imgsrv/store/postgres"
)

const (
	pathProjections = "/api/projections"
	pathProjection  = pathProjections + "/{name}"
	pathRebuild     = pathProjection + "/rebuild"
	pathVerify      = pathProjection + "/verify"
	pathReplay      = pathProjection + "/replay"
	pathSkip        = pathProjection + "/skip"
)

type projectionInput struct {
	Name string `path:"name" example:"catalog"`
}

type projectionsOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Projections []projectionReport `json:"projections" nullable:"false"`
	}
}

// projectionReport is how a projection is doing.
type projectionReport struct {
	Name          string         `json:"name" example:"catalog"`
	Position      uint64         `json:"position" doc:"Sequence of the last event applied"`
	Head          uint64         `json:"head" doc:"Sequence of the last event there is"`
	LagEvents     uint64         `json:"lag_events"`
	LagSeconds    float64        `json:"lag_seconds" doc:"Age of the oldest event that isn't applied"`
	Active        bool           `json:"active" doc:"This node applies the events"`
	ActiveNode    string         `json:"active_node,omitempty" doc:"Host and process id of the node that does" example:"images-1/4711"`
	Tables        []tableRows    `json:"tables" nullable:"false"`
	Error         string         `json:"error,omitempty" doc:"What holds it up now"`
	ErrorSequence uint64         `json:"error_sequence,omitempty" doc:"Event that can't be applied"`
	ErrorType     string         `json:"error_type,omitempty" doc:"Type of that event"`
	ErrorSince    *time.Time     `json:"error_since,omitempty"`
	Remedy        string         `json:"remedy,omitempty" doc:"What can be done about it"`
	Skipped       []skippedEvent `json:"skipped,omitempty" doc:"Events that an operator told it to leave out"`
	Trouble       string         `json:"trouble,omitempty" doc:"What kept some of this from being found out"`
}

type tableRows struct {
	Table     string `json:"table" example:"versions"`
	Rows      int64  `json:"rows"`
	Estimated bool   `json:"estimated,omitempty"`
}

type skippedEvent struct {
	Sequence uint64    `json:"sequence"`
	Type     string    `json:"type"`
	Reason   string    `json:"reason"`
	By       string    `json:"by"`
	At       time.Time `json:"at"`
}

type rebuildOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         rebuildProgress
}

type rebuildProgress struct {
	Projection      string     `json:"projection"`
	State           string     `json:"state" enum:"idle,filling,swapping,done,stopped,failed" doc:"As this node knows it: another node's rebuild isn't shown"`
	Applied         uint64     `json:"applied" doc:"Last event in the new tables"`
	Total           uint64     `json:"total" doc:"The last event there is"`
	EventsPerSecond float64    `json:"events_per_second"`
	ETASeconds      float64    `json:"eta_seconds"`
	ResumedFrom     uint64     `json:"resumed_from,omitempty" doc:"Where an earlier one had been stopped"`
	StartedAt       *time.Time `json:"started_at,omitempty"`
	EndedAt         *time.Time `json:"ended_at,omitempty"`
	Error           string     `json:"error,omitempty"`
	ErrorSequence   uint64     `json:"error_sequence,omitempty" doc:"Event that can't be applied"`
}

type verifyInput struct {
	Name  string `path:"name" example:"catalog"`
	Limit int    `query:"limit" minimum:"1" maximum:"10000" default:"100" doc:"Most differences in the answer"`
}

type verifyOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         verification
}

type verification struct {
	Projection  string          `json:"projection"`
	Position    uint64          `json:"position" doc:"Event up to which both were compared"`
	Rows        int64           `json:"rows" doc:"Rows compared"`
	Total       int64           `json:"total" doc:"Rows that differ"`
	Differences []rowDifference `json:"differences" nullable:"false"`
	TookSeconds float64         `json:"took_seconds"`
}

type rowDifference struct {
	Table   string          `json:"table"`
	Key     json.RawMessage `json:"key"`
	Live    json.RawMessage `json:"live,omitempty" doc:"The row that is there; absent for none"`
	Derived json.RawMessage `json:"derived,omitempty" doc:"The row that the events make; absent for none"`
}

type replayInput struct {
	Name string `path:"name" example:"catalog"`
	From uint64 `query:"from" minimum:"1" required:"true"`
	To   uint64 `query:"to" minimum:"1" required:"true"`
}

// replayedEvent is one line of a replay; the last line of one that broke off has only an error.
type replayedEvent struct {
	Sequence uint64      `json:"sequence,omitempty"`
	Type     string      `json:"type,omitempty"`
	Subject  string      `json:"subject,omitempty"`
	Time     *time.Time  `json:"time,omitempty"`
	Skipped  bool        `json:"skipped,omitempty"`
	Changes  []rowChange `json:"changes,omitempty"`
	Error    string      `json:"error,omitempty"`
}

type rowChange struct {
	Op    string          `json:"op" enum:"insert,update,delete"`
	Table string          `json:"table"`
	Row   json.RawMessage `json:"row"`
}

type skipInput struct {
	Name string `path:"name" example:"catalog"`
	Body struct {
		Sequence uint64 `json:"sequence" minimum:"1" doc:"The event that the projection stands at"`
		Reason   string `json:"reason" minLength:"1" maxLength:"2000" doc:"Why; it is kept in the log, with who said so"`
	}
}

type skipOutput struct {
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event that records the decision"`
}

// projectionRoutes registers the operators' routes: GET /api/projections; POST, GET and DELETE …/{name}/rebuild: begin (202, 409 when
// one runs), follow, stop; POST …/verify: 200 also when rows differ, 409 during a rebuild; GET …/replay: JSON lines; POST …/skip:
// 204, 409 unless the projection stands at that event. All 401, 403, 404, 503.
func (s *server) projectionRoutes() {
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "list-projections", Method: http.MethodGet, Path: pathProjections, Summary: "How the projections are doing",
	}, s.listProjections)
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "rebuild-projection", Method: http.MethodPost, Path: pathRebuild, DefaultStatus: http.StatusAccepted, Summary: "Derive a projection's tables anew",
		Description: "Beside the live tables, whose place the new ones take once they have caught up. Goes on where an earlier one was stopped.",
		Errors:      []int{http.StatusNotFound, http.StatusConflict},
	}, func(ctx context.Context, in *projectionInput) (*rebuildOutput, error) {
		p, err := s.projection(in.Name)
		if err == nil {
			err = busy(p.Start(ctx))
		}
		if err != nil {
			return nil, err
		}
		return progressOf(p), nil
	})
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "follow-rebuild", Method: http.MethodGet, Path: pathRebuild, Summary: "How far a rebuild is", Errors: []int{http.StatusNotFound},
	}, func(_ context.Context, in *projectionInput) (*rebuildOutput, error) {
		p, err := s.projection(in.Name)
		if err != nil {
			return nil, err
		}
		return progressOf(p), nil
	})
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "stop-rebuild", Method: http.MethodDelete, Path: pathRebuild, DefaultStatus: http.StatusOK, Summary: "Stop a rebuild that this node does",
		Description: "What is done stays, and the next rebuild goes on there. The live tables stay as they are.",
		Errors:      []int{http.StatusNotFound},
	}, func(_ context.Context, in *projectionInput) (*rebuildOutput, error) {
		p, err := s.projection(in.Name)
		if err != nil {
			return nil, err
		}
		p.Stop()
		return progressOf(p), nil
	})
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "verify-projection", Method: http.MethodPost, Path: pathVerify, DefaultStatus: http.StatusOK, Summary: "Compare a projection with its events",
		Description: "Derives the tables again, up to the position of the live ones, and compares all rows. The answer comes at the end.",
		Errors:      []int{http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity},
	}, s.verifyProjection)
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "replay-projection", Method: http.MethodGet, Path: pathReplay, Summary: "What events do to a projection's tables",
		Description: "Changes nothing. One JSON object a line for each event: the rows that applying it inserts, updates or deletes. A line with an `error` is the last one.",
		Errors:      []int{http.StatusNotFound, http.StatusConflict, http.StatusUnprocessableEntity},
		Responses:   map[string]*huma.Response{"200": {Description: "JSON lines", Content: map[string]*huma.MediaType{"application/jsonl": {Schema: &huma.Schema{Type: huma.TypeString}}}}},
	}, s.replayProjection)
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "skip-event", Method: http.MethodPost, Path: pathSkip, DefaultStatus: http.StatusNoContent, Summary: "Let a projection leave an event out",
		Description: "For good, in rebuilds too. Only the event that the projection stands at, because it can't be applied. An event records it.",
		Errors:      []int{http.StatusNotFound, http.StatusConflict, http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType},
	}, func(ctx context.Context, in *skipInput) (*skipOutput, error) {
		p, err := s.projection(in.Name)
		if err != nil {
			return nil, err
		}
		sequence, err := p.Skip(ctx, events.Sequence(in.Body.Sequence), in.Body.Reason, access.From(ctx).Name)
		if err != nil {
			return nil, err
		}
		return &skipOutput{Sequence: uint64(sequence)}, nil
	})
}

func (s *server) projection(name string) (*projections.Operator, error) {
	for _, p := range s.Operators {
		if p.Name() == name {
			return p, nil
		}
	}
	return nil, missing("there is no projection %q: imgsrv projections lists them", name)
}

// busy names what the one-at-a-time rule of projections, and a database that is away, are to a client.
func busy(err error) error {
	switch {
	case errors.Is(err, projections.ErrRebuilding):
		return problem.New(problem.CodeRebuilding, projections.ErrRebuilding.Error()+": wait for its end, or stop it")
	case postgres.IsUnavailable(err):
		return fmt.Errorf("%w: %w", catalog.ErrUnavailable, err)
	}
	return err
}

func (s *server) listProjections(ctx context.Context, _ *struct{}) (*projectionsOutput, error) {
	out := &projectionsOutput{CacheControl: "no-store"}
	out.Body.Projections = []projectionReport{}
	for _, p := range s.Operators {
		out.Body.Projections = append(out.Body.Projections, reportOf(p.Report(ctx)))
	}
	return out, nil
}

func reportOf(r projections.Report) projectionReport {
	out := projectionReport{Name: r.Name, Position: uint64(r.Position), Head: uint64(r.Head), LagEvents: r.LagEvents, LagSeconds: r.LagSeconds,
		Active: r.Active, ActiveNode: r.ActiveNode, Tables: []tableRows{}, Error: r.Error, ErrorSequence: uint64(r.ErrorSequence),
		ErrorType: string(r.ErrorType), ErrorSince: timeOrNone(r.ErrorSince), Remedy: r.Remedy(), Trouble: r.Trouble}
	for _, t := range r.Tables {
		out.Tables = append(out.Tables, tableRows(t))
	}
	for _, e := range r.Skipped {
		out.Skipped = append(out.Skipped, skippedEvent{Sequence: uint64(e.Sequence), Type: string(e.EventType), Reason: e.Reason, By: e.By, At: e.At.UTC()})
	}
	return out
}

func progressOf(p *projections.Operator) *rebuildOutput {
	progress := p.Progress()
	out := &rebuildOutput{CacheControl: "no-store", Body: rebuildProgress{Projection: p.Name(), State: string(progress.State), Applied: uint64(progress.Applied),
		Total: uint64(progress.Total), EventsPerSecond: progress.PerSecond, ETASeconds: progress.Left.Seconds(), ResumedFrom: uint64(progress.ResumedFrom),
		StartedAt: timeOrNone(progress.StartedAt), EndedAt: timeOrNone(progress.EndedAt)}}
	if progress.Err != nil {
		out.Body.Error = progress.Err.Error()
		var event *projections.EventError
		if errors.As(progress.Err, &event) {
			out.Body.ErrorSequence = uint64(event.Sequence)
		}
	}
	return out
}

func (s *server) verifyProjection(ctx context.Context, in *verifyInput) (*verifyOutput, error) {
	p, err := s.projection(in.Name)
	if err != nil {
		return nil, err
	}
	found, err := p.Verify(ctx, in.Limit, nil)
	if err != nil {
		return nil, busy(err)
	}
	out := &verifyOutput{CacheControl: "no-store", Body: verification{Projection: p.Name(), Position: uint64(found.Position), Rows: found.Rows,
		Total: found.Total, Differences: []rowDifference{}, TookSeconds: found.Took.Seconds()}}
	for _, d := range found.Differences {
		out.Body.Differences = append(out.Body.Differences, rowDifference{Table: d.Table, Key: json.RawMessage(d.Key), Live: json.RawMessage(d.Live), Derived: json.RawMessage(d.Derived)})
	}
	return out, nil
}

func (s *server) replayProjection(_ context.Context, in *replayInput) (*huma.StreamResponse, error) {
	p, err := s.projection(in.Name)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(ctx huma.Context) {
		started := false
		begin := func() {
			if !started {
				ctx.SetHeader("Content-Type", "application/jsonl")
				ctx.SetHeader("Cache-Control", "no-store")
			}
			started = true
		}
		encode := json.NewEncoder(ctx.BodyWriter())
		encode.SetEscapeHTML(false)
		err := p.Replay(ctx.Context(), events.Sequence(in.From), events.Sequence(in.To), func(e projections.Replayed) error {
			begin()
			return encode.Encode(lineOf(e))
		})
		var event *projections.EventError
		switch {
		case err == nil:
			begin()
		case errors.As(err, &event) && started: // its line is out
		case started:
			s.Log.WarnContext(ctx.Context(), "replay broke off", "projection", p.Name(), "error", err)
			_ = encode.Encode(replayedEvent{Error: problem.From(err).Error()}) // to a client that is still there
		default:
			details := problem.From(translate(busy(err)))
			problem.Log(ctx.Context(), s.Log, details, err)
			for name, values := range details.GetHeaders() {
				ctx.SetHeader(name, values[0])
			}
			ctx.SetHeader("Content-Type", problem.ContentType)
			ctx.SetStatus(details.Status)
			_ = encode.Encode(details)
		}
	}}, nil
}

func lineOf(e projections.Replayed) replayedEvent {
	out := replayedEvent{Sequence: uint64(e.Sequence), Type: string(e.Type), Subject: e.Subject, Time: timeOrNone(e.Time), Skipped: e.Skipped, Error: e.Error}
	for _, c := range e.Changes {
		out.Changes = append(out.Changes, rowChange{Op: c.Op, Table: c.Table, Row: json.RawMessage(c.Row)})
	}
	return out
}
