package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
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
		Errors: []int{http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity},
	}, func(ctx context.Context, in *garbageInput) (*operationOutput, error) {
		request := garbage.Request{DryRun: in.Body.DryRun}
		for _, t := range []struct {
			field, text string
			to          *time.Duration
		}{{"grace", in.Body.Grace, &request.Grace}, {"keep_withdrawn", in.Body.KeepWithdrawn, &request.KeepWithdrawn}} {
			if t.text == "" {
				continue
			}
			d, err := time.ParseDuration(t.text)
			if err != nil || d <= 0 {
				return nil, invalid(t.field, t.text, errors.New("a time is a number and its unit, such as 90m or 168h"))
			}
			*t.to = d
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

// withdrawn is the refusal of what belongs to a withdrawn version, for those who might see it; nil for what is there. Whether its bytes
// are collected the log knows, and where that doesn't answer nothing is said of it.
func (s *server) withdrawn(ctx context.Context, image, version string, w *events.Withdrawal) error {
	if w == nil {
		return nil
	}
	text := fmt.Sprintf("version %s of image %s is withdrawn: %s", version, image, w.Reason)
	current, err := s.Events.Version(ctx, image, version)
	if now := current.State.Withdrawal; err == nil && now != nil && !now.CollectedAt.IsZero() {
		text += "; its bytes have been collected since " + now.CollectedAt.UTC().Format(time.RFC3339)
	}
	return &events.Error{Code: events.CodeWithdrawn, Text: text}
}

// goneBlob is the refusal of a digest under which nothing is to be had: to who may read all images it says so where the bytes were collected.
func (s *server) goneBlob(ctx context.Context, digest events.Digest, gone error) error {
	if !access.From(ctx).MayServer(events.RoleReader) {
		return gone
	}
	current, err := s.Events.Blob(ctx, digest)
	if err != nil || current.State.State != events.BlobIsCollected {
		return gone
	}
	return problem.New(problem.CodeGone, fmt.Sprintf("the bytes of %s have been collected at %s: no version named them any more", digest, current.Event.Time.UTC().Format(time.RFC3339)))
}
