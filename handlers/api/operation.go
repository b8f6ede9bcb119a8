package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/operations"
)

const (
	pathOperations      = "/api/operations"
	pathOperation       = pathOperations + "/{id}"
	pathOperationEvents = pathOperation + "/events"
	pathOperationCancel = pathOperation + "/cancel"

	// operationPace is how often a follower is told at most: works may report each blob.
	operationPace = 200 * time.Millisecond
)

type operationInput struct {
	ID string `path:"id" doc:"As the answer that began it said"`
}

type operationsOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Operations []operations.Operation `json:"operations" nullable:"false"`
	}
}

type operationOutput struct {
	CacheControl string `header:"Cache-Control"`
	Location     string `header:"Location" doc:"Where the operation is shown"`
	Body         operations.Operation
}

// operations registers GET /api/operations: those that run or ran on this node, the latest first; GET …/{id}: 200, 404;
// GET …/{id}/events: see followOperation; POST …/{id}/cancel: 200. All 401, 403, 503.
func (s *server) operations(router chi.Router) {
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "list-operations", Method: http.MethodGet, Path: pathOperations, Summary: "List the long operations",
		Description: "Those that this node carries out, and the last ones that have ended since it started.",
	}, func(context.Context, *struct{}) (*operationsOutput, error) {
		out := &operationsOutput{CacheControl: "no-store"}
		out.Body.Operations = s.Operations.List()
		return out, nil
	})
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "get-operation", Method: http.MethodGet, Path: pathOperation, Summary: "How far an operation is",
	}, func(_ context.Context, in *operationInput) (*operationOutput, error) {
		o, _, ok := s.Operations.Get(in.ID)
		if !ok {
			return nil, noOperation(in.ID)
		}
		return &operationOutput{CacheControl: "no-store", Body: o}, nil
	})
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "cancel-operation", Method: http.MethodPost, Path: pathOperationCancel, DefaultStatus: http.StatusOK, Summary: "Cancel an operation",
		Description: "What it has done stays done. It may take a moment to end; of one that has ended nothing changes.",
	}, func(_ context.Context, in *operationInput) (*operationOutput, error) {
		o, ok := s.Operations.Cancel(in.ID)
		if !ok {
			return nil, noOperation(in.ID)
		}
		return &operationOutput{CacheControl: "no-store", Body: o}, nil
	})
	router.With(requireServerRole(s.Guard, s.Log, events.RoleOperator)).Get(pathOperationEvents, s.followOperation)
}

// handMadeOperations describes the route that isn't huma's.
func (s *server) handMadeOperations() []*huma.Operation {
	if s.Operations == nil {
		return nil
	}
	return []*huma.Operation{{OperationID: "follow-operation", Method: http.MethodGet, Path: pathOperationEvents, Tags: []string{tagOperate},
		Security: []map[string][]string{{securityBearer: {}}}, Summary: "Follow an operation",
		Description: "Server-sent events: `progress` whenever it has come further, and `end` once, then the stream ends. The data of both is the operation. Takes the role operator on the whole server.",
		Parameters:  []*huma.Param{pathParameter("id", "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b")},
		Responses: with(responses("200", "The events", 401, 403, 404, 429, 503), "200", &huma.Response{Description: "The events",
			Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString}}}})}}
}

func noOperation(id string) error {
	return missing("there is no operation %q: a server forgets them when it stops, and knows those of its own node only", id)
}

// begin starts an operation of a kind for whoever asks.
func (s *server) begin(ctx context.Context, kind string, input any, work operations.Work) (*operationOutput, error) {
	o, err := s.Operations.Start(kind, access.From(ctx).Name, input, work)
	if err != nil {
		return nil, err
	}
	return &operationOutput{CacheControl: "no-store", Location: base(ctx) + operations.Path(o.ID), Body: o}, nil
}

// followOperation answers with the operation as server-sent events: one at once, one whenever it has come further, and the last, named
// end, when it has ended. Statuses: 200, 401, 403, 404.
func (s *server) followOperation(w http.ResponseWriter, r *http.Request) {
	id := chi.URLParam(r, "id")
	o, changed, ok := s.Operations.Get(id)
	if !ok {
		s.refuse(w, r, noOperation(id))
		return
	}
	out := s.beginEvents(w)
	if r.Method == http.MethodHead {
		return
	}
	who := access.From(r.Context())
	defer out.end()
	heartbeat := time.NewTicker(s.EventHeartbeat)
	defer heartbeat.Stop()
	for {
		name := "progress"
		if o.State != operations.Running {
			name = "end"
		}
		data, err := json.Marshal(o)
		if err != nil {
			s.Log.ErrorContext(r.Context(), "operation not shown", "id", id, "error", err)
			return
		}
		if !who.Alive() || !out.send(fmt.Appendf(nil, "event: %s\ndata: %s\n\n", name, data)) || name == "end" {
			return
		}
		for waiting := true; waiting; {
			select {
			case <-changed:
				waiting = false
			case <-heartbeat.C:
				if !who.Alive() || !out.comment("alive") {
					return
				}
			case <-r.Context().Done():
				return
			}
		}
		select { // what comes meanwhile is told with the next
		case <-time.After(operationPace):
		case <-r.Context().Done():
			return
		}
		if o, changed, ok = s.Operations.Get(id); !ok {
			return
		}
	}
}
