package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/handlers/operations"
)

const pathBackups = "/api/backups"

// kindBackup is the operation's.
const kindBackup = "backup"

type backupInput struct {
	Body struct {
		Place       string `json:"place" minLength:"1" maxLength:"4096" doc:"Absolute path of a folder on the server's machine, or s3://BUCKET/PREFIX" example:"/srv/backup"`
		S3Endpoint  string `json:"s3_endpoint,omitempty" maxLength:"2048" format:"uri" doc:"Of an S3 server that isn't Amazon's; without it what the server's environment says"`
		WithSecrets bool   `json:"with_secrets,omitempty" doc:"Copy the server's keys too: who has the backup can then sign as the server does"`
	}
}

// backups registers POST /api/backups: 202 with the operation, 401, 403, 409 one is being made, 422, 503. Its result is a [backup.Result].
func (s *server) backups() {
	if s.Backups == nil {
		return
	}
	operate(s, events.RoleAdmin, huma.Operation{
		OperationID: "make-backup", Method: http.MethodPost, Path: pathBackups, DefaultStatus: http.StatusAccepted, Summary: "Make a backup",
		Description: "Copies the events up to now, and the files that they name, to a folder of the server's machine or to S3, and only what isn't there yet. The answer is an operation to follow.",
		Errors:      []int{http.StatusConflict},
	}, func(ctx context.Context, in *backupInput) (*operationOutput, error) {
		if err := s.Backups.CheckPlace(in.Body.Place); err != nil {
			return nil, err
		}
		req := backup.Request{Place: in.Body.Place, S3Endpoint: in.Body.S3Endpoint, WithSecrets: in.Body.WithSecrets}
		return s.begin(ctx, kindBackup, in.Body, func(ctx context.Context, report func(operations.Progress)) (any, error) {
			return backup.Make(ctx, *s.Backups, req, report)
		})
	})
}
