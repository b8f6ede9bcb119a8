package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
)

type withdrawInput struct {
	Image   string `path:"image" example:"debian-bookworm"`
	Version string `path:"version" doc:"Name of the version, no alias" example:"12.5.0"`
	Body    struct {
		Reason      string `json:"reason" doc:"Why; whoever asks for the version is told" example:"CVE-2026-0001"`
		MoveAlias   string `json:"move_alias,omitempty" doc:"The version that aliases of this one are to name from then on" example:"12.4.0"`
		RemoveAlias bool   `json:"remove_alias,omitempty" doc:"Remove the aliases of this one"`
	}
}

type restoreInput struct {
	Image   string `path:"image" example:"debian-bookworm"`
	Version string `path:"version" doc:"Name of the version" example:"12.5.0"`
}

type versionStateOutput struct {
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event; send it as Imgsrv-Min-Sequence to read your own write"`
	Body     versionState
}

// versionState says where a version stands.
type versionState struct {
	Image       string     `json:"image" example:"debian-bookworm"`
	Version     string     `json:"version" example:"12.5.0"`
	State       string     `json:"state" enum:"published,withdrawn"`
	Reason      string     `json:"reason,omitempty" doc:"Of the withdrawal"`
	WithdrawnBy string     `json:"withdrawn_by,omitempty" doc:"A principal, or imgsrv for the image's retention"`
	WithdrawnAt *time.Time `json:"withdrawn_at,omitempty"`
	CollectedAt *time.Time `json:"collected_at,omitempty" doc:"Since when the version can't be restored: its bytes are collected"`
	VersionURL  string     `json:"version_url" format:"uri"`
}

// withdrawals registers POST /api/images/{image}/versions/{version}/withdraw: 200 with the version's state and
// Imgsrv-Sequence, 400, 401, 403, 404 no such published version, 409 aliases name it, 413, 415, 422, 503; and
// POST …/restore: 200, 401, 403, 404, 409 its bytes are collected, 503.
func (s *server) withdrawals() {
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "withdraw-version", Method: http.MethodPost, Path: pathWithdraw, DefaultStatus: http.StatusOK, Tags: []string{tagImages}, Summary: "Withdraw a version",
		Description: "Takes the version out of lists and streams; its URLs answer 410 with the reason. Aliases that name it move or end in the same moment, or the withdrawal is refused. " +
			"Its name stays taken. To withdraw it again changes nothing.",
		Errors: []int{http.StatusBadRequest, http.StatusNotFound, http.StatusConflict, http.StatusRequestEntityTooLarge,
			http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity},
	}, s.withdraw)
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "restore-version", Method: http.MethodPost, Path: pathRestore, DefaultStatus: http.StatusOK, Tags: []string{tagImages}, Summary: "Undo a withdrawal",
		Description: "The version is in lists and streams as before; aliases stay where they are. The image's retention leaves it alone from then on. It can be done for a time, " +
			"a week if the server isn't told otherwise; once its bytes are collected it is refused as bytes-collected.",
		Errors: []int{http.StatusNotFound, http.StatusConflict},
	}, s.restore)
}

func (s *server) withdraw(ctx context.Context, in *withdrawInput) (*versionStateOutput, error) {
	gone := missing("image %q has no published version %q", in.Image, in.Version)
	if events.CheckImageName(in.Image) != nil || events.CheckVersionName(in.Version) != nil {
		return nil, gone
	}
	if in.Body.MoveAlias != "" {
		if err := events.CheckVersionName(in.Body.MoveAlias); err != nil {
			return nil, invalid("move_alias", in.Body.MoveAlias, err)
		}
	}
	by := access.From(ctx).Name
	return s.changeVersion(ctx, in.Image, in.Version, func(ctx context.Context, version events.Current[events.Version]) ([]events.Change, error) {
		cmd := events.WithdrawVersion{Withdrawal: events.Withdrawal{Reason: in.Body.Reason, By: by, At: s.Clock().UTC()},
			Version: version, MoveTo: in.Body.MoveAlias, RemoveAliases: in.Body.RemoveAlias}
		var err error
		if cmd.MoveTo != "" {
			if cmd.Target, err = s.Events.Version(ctx, in.Image, cmd.MoveTo); err != nil {
				return nil, err
			}
		}
		// After the version: what points an alias at it from now on has a fact of it too.
		if cmd.Aliases, err = s.Events.Aliases(ctx, in.Image); err != nil {
			return nil, err
		}
		return events.Withdraw(cmd)
	})
}

func (s *server) restore(ctx context.Context, in *restoreInput) (*versionStateOutput, error) {
	if events.CheckImageName(in.Image) != nil || events.CheckVersionName(in.Version) != nil {
		return nil, missing("image %q has no withdrawn version %q", in.Image, in.Version)
	}
	by := access.From(ctx).Name
	return s.changeVersion(ctx, in.Image, in.Version, func(_ context.Context, version events.Current[events.Version]) ([]events.Change, error) {
		return events.Restore(version, by, s.Clock().UTC())
	})
}

// changeVersion decides about a version and answers with its state as it is then.
func (s *server) changeVersion(ctx context.Context, image, version string, decide func(context.Context, events.Current[events.Version]) ([]events.Change, error)) (*versionStateOutput, error) {
	var v events.Version
	var before events.Sequence
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: access.From(ctx).Name}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Events.Version(ctx, image, version)
		if err != nil {
			return nil, err
		}
		changes, err := decide(ctx, current)
		v, before = current.State, current.Sequence
		for _, change := range changes {
			if change.Fact.Entity() == events.VersionEntity(image, version) {
				v = events.Fold(v, change.Fact)
			}
		}
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	out := &versionStateOutput{Sequence: uint64(max(sequence, before)),
		Body: versionState{Image: image, Version: version, State: string(v.State), VersionURL: versionURL(ctx, image, version)}}
	if w := v.Withdrawal; w != nil {
		out.Body.Reason, out.Body.WithdrawnBy, out.Body.WithdrawnAt, out.Body.CollectedAt = w.Reason, w.By, &w.At, timeOrNone(w.CollectedAt)
	}
	return out, nil
}
