package api

import (
	"context"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/handlers/scrub"
)

const (
	kindFsck = "fsck"
	fsckRate = 128 << 20 // bytes a second, unless the request says otherwise
)

type fsckInput struct {
	Body fsckRequest
}

// fsckRequest is the body of POST /api/fsck.
type fsckRequest struct {
	BytesPerSecond *int64 `json:"bytes_per_second,omitempty" minimum:"0" doc:"How fast to read; 0: as fast as the disk allows. Left out: 134217728, 128 MiB"`
	Repair         bool   `json:"repair,omitempty" doc:"Ask the servers that mirrors follow for what is damaged"`
}

// fsck registers POST /api/fsck: 202 with the operation, whose result is a scrub.FsckReport; 401, 403, 409 one runs, 503.
func (s *server) fsck() {
	s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[scrub.FsckReport](), true, "")
	operate(s, events.RoleOperator, huma.Operation{
		OperationID: "check-blobs", Method: http.MethodPost, Path: "/api/fsck", DefaultStatus: http.StatusAccepted, Summary: "Check all files in the storage",
		Description: "Reads each blob again and compares it with its digest, and looks for all that published versions name. What is damaged is put aside, and nobody is given its bytes until it is repaired. " +
			"The operation's `result` is what was found (FsckReport).",
		Errors: []int{http.StatusConflict},
	}, func(ctx context.Context, in *fsckInput) (*operationOutput, error) {
		opt := scrub.Options{BytesPerSecond: fsckRate, Repair: in.Body.Repair}
		if in.Body.BytesPerSecond != nil {
			opt.BytesPerSecond = *in.Body.BytesPerSecond
		}
		return s.begin(ctx, kindFsck, in.Body, func(ctx context.Context, report func(operations.Progress)) (any, error) {
			found, err := s.Scrub.Fsck(ctx, opt, func(done, total int64) {
				report(operations.Progress{Stage: "check", Done: done, Total: total, Unit: "bytes"})
			})
			if found == nil {
				return nil, err
			}
			return found, err
		})
	})
}
