package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

const (
	pathGarbage = "/api/gc"
	kindGarbage = "gc"
)

type garbageInput struct {
	Body garbageRequest `required:"false"`
}

// garbageRequest says what to collect.
type garbageRequest struct {
	DryRun        bool   `json:"dry_run,omitempty" doc:"Only say what would go"`
	Grace         string `json:"grace,omitempty" doc:"How long bytes stay after the last need of them, at least 1h. Left out: as the server is set" example:"1h"`
	KeepWithdrawn string `json:"keep_withdrawn,omitempty" doc:"How long withdrawn versions can be restored, at least grace. Left out: as the server is set" example:"168h"`
}

// garbage registers POST /api/gc: 202 with the operation and Location, 400, 401, 403, 409 one runs, 413, 415, 422 a time is too short, 503.
func (s *server) garbage() {
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "collect-garbage", Method: http.MethodPost, Path: pathGarbage, DefaultStatus: http.StatusAccepted, Summary: "Collect garbage",
		Description: "Removes what nothing needs any more: blobs that no published version, no version that can be restored, no derived file, no session and no job names; " +
			"abandoned uploads; what ended jobs left. The operation's result says what went.",
		Errors: []int{http.StatusConflict},
	}, func(ctx context.Context, in *garbageInput) (*operationOutput, error) {
		request := garbage.Request{DryRun: in.Body.DryRun}
		var err error
		if request.Grace, err = durationOf("grace", in.Body.Grace); err != nil {
			return nil, err
		}
		if request.KeepWithdrawn, err = durationOf("keep_withdrawn", in.Body.KeepWithdrawn); err != nil {
			return nil, err
		}
		if err := s.Garbage.Check(request); err != nil {
			return nil, err
		}
		return s.begin(ctx, kindGarbage, in.Body, func(ctx context.Context, report func(operations.Progress)) (any, error) {
			result, err := s.Garbage.Collect(ctx, request, report)
			if errors.Is(err, garbage.ErrRunning) {
				err = problem.New(problem.CodeOperationRunning, err.Error()+": try again later")
			}
			return result, err
		})
	})
}
