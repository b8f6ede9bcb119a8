package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
)

const (
	// Each reader of the past, and each follower, takes a consumer of the stream, which has 1,000.
	maxPastReads = 32

	defaultHeartbeat = 15 * time.Second
	defaultPatience  = 10 * time.Second
)

// storedEvent is an event as the API gives it.
type storedEvent struct {
	Sequence    uint64    `json:"sequence" doc:"Place in the stream, from 1" example:"42"`
	ID          string    `json:"id" doc:"CloudEvents id"`
	Source      string    `json:"source,omitempty" doc:"CloudEvents source"`
	Type        string    `json:"type" doc:"As it was stored; its version is in the name" example:"imgsrv.version.published.v1"`
	Time        time.Time `json:"time"`
	Subject     string    `json:"subject" doc:"What it is about: the id of the entity, CloudEvents subject" example:"debian-bookworm/12.5.0"`
	NATSSubject string    `json:"nats_subject,omitempty" doc:"Where it stands in the stream"`
	Actor       string    `json:"actor,omitempty" doc:"Who"`
	Correlation string    `json:"correlation_id,omitempty"`
	Causation   string    `json:"causation_id,omitempty"`
	TraceParent string    `json:"trace_parent,omitempty"`
	Data        any       `json:"data" doc:"The fact, as it was stored; a JSON Schema for each type"`
}

func eventViewOf(e events.Event) storedEvent {
	view := storedEvent{Sequence: uint64(e.Sequence), ID: e.ID, Type: string(e.Type), Time: e.Time, Actor: e.Actor,
		Correlation: e.Correlation, Causation: e.Causation, Data: e.Data}
	if e.Fact != nil {
		view.Subject = e.Fact.Entity().ID
	}
	if !json.Valid(e.Data) {
		view.Data = []byte(e.Data) // in base64
	}
	return view
}

type eventInput struct {
	Sequence uint64 `path:"sequence" minimum:"1" example:"42"`
}

type eventOutput struct{ Body storedEvent }

// events registers GET /api/events: the stream of server-sent events, see follow;
// GET /api/events/{sequence}: 200, 401, 404 none, or none that the caller may see, 422, 503;
// GET /api/events/export and POST /api/events/import: see exportEvents and importEvents.
func (s *server) events(router chi.Router) {
	if s.EventHeartbeat == 0 {
		s.EventHeartbeat = defaultHeartbeat
	}
	if s.EventPatience == 0 {
		s.EventPatience = defaultPatience
	}
	reader := Authenticate(s.Guard, s.Log)
	router.With(reader).Get(pathEvents, s.follow)
	router.With(requireServerRole(s.Guard, s.Log, events.RoleOperator)).Get(pathExport, s.exportEvents)
	// A history says who may do what.
	router.With(requireServerRole(s.Guard, s.Log, events.RoleAdmin)).Post(pathImport, s.importEvents)
	read(s, huma.Operation{
		OperationID: "get-event", Path: pathEvent, Tags: []string{tagEvents}, Summary: "Get an event",
		Description: "Without a token only events that the catalog shows too: of versions, images and aliases that are public.",
		Errors:      []int{http.StatusNotFound, http.StatusUnprocessableEntity},
	}, nil, s.getEvent)
}

func (s *server) getEvent(ctx context.Context, in *eventInput) (*eventOutput, error) {
	gone := missing("there is no event %d", in.Sequence)
	event, ok, err := s.Events.At(ctx, events.Sequence(in.Sequence))
	var unreadable *jetstream.Undecodable
	audience := newAudience(s.Events, access.From(ctx))
	switch {
	case errors.As(err, &unreadable) && audience.all: // what a newer release wrote can be looked at all the same
	case errors.As(err, &unreadable):
		return nil, gone
	case err != nil:
		return nil, err
	case !ok:
		return nil, gone
	default:
		visible, err := audience.maySee(ctx, event)
		if err != nil {
			return nil, err
		}
		if !visible {
			return nil, gone
		}
	}
	view := eventViewOf(event)
	view.Source, view.NATSSubject, view.TraceParent = event.Source, event.Subject, event.TraceParent
	return &eventOutput{Body: view}, nil
}
