package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
)

type moveAliasInput struct {
	Image string `path:"image" example:"debian-bookworm"`
	Alias string `path:"alias" example:"stable"`
	Body  struct {
		Version string `json:"version" doc:"A published version of the image" example:"12.5.0"`
	}
}

type removeAliasInput struct {
	Image string `path:"image" example:"debian-bookworm"`
	Alias string `path:"alias" example:"stable"`
}

type aliasStatus struct {
	Image      string `json:"image" example:"debian-bookworm"`
	Alias      string `json:"alias" example:"stable"`
	Version    string `json:"version" example:"12.5.0"`
	VersionURL string `json:"version_url" format:"uri"`
}

// aliases registers PUT /api/images/{image}/aliases/{alias}: 200 with the alias and Imgsrv-Sequence, 400, 401,
// 403, 404 no such image or published version, 409 the name is another thing's, 413, 415, 422, 503; and
// DELETE: 204 with Imgsrv-Sequence, 401, 403, 404, 503.
func (s *server) aliases() {
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "move-alias", Method: http.MethodPut, Path: pathAlias, Tags: []string{tagImages}, Summary: "Point an alias at a version",
		Description: "Makes the alias or moves it, forward or back. Moving it to where it points changes nothing.",
		Errors:      []int{http.StatusNotFound, http.StatusConflict},
	}, s.moveAlias)
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "remove-alias", Method: http.MethodDelete, Path: pathAlias, DefaultStatus: http.StatusNoContent, Tags: []string{tagImages},
		Summary: "Remove an alias", Description: "The version that it names stays.",
		Errors: []int{http.StatusNotFound},
	}, s.removeAlias)
}

func (s *server) moveAlias(ctx context.Context, in *moveAliasInput) (*entityOutput[aliasStatus], error) {
	to := in.Body.Version
	if err := events.CheckImageName(in.Image); err != nil {
		return nil, missing("there is no image %q", in.Image)
	}
	if err := events.CheckAliasName(in.Alias); err != nil {
		return nil, invalid("alias", in.Alias, err)
	}
	if err := events.CheckVersionName(to); err != nil {
		return nil, invalid("version", to, err)
	}
	after, err := change(ctx, s, in.Alias, s.aliasOf(in.Image), func(ctx context.Context, current events.Current[events.Alias]) ([]events.Change, error) {
		if current.State.Version == to {
			return nil, nil
		}
		target, err := s.Events.Version(ctx, in.Image, to)
		if err != nil {
			return nil, err
		}
		image, err := s.Events.Image(ctx, in.Image)
		if err != nil {
			return nil, err
		}
		namesake, err := s.Events.Version(ctx, in.Image, in.Alias)
		if err != nil {
			return nil, err
		}
		return events.MoveAlias(in.Image, in.Alias, to, target, image, namesake, isArchitecture(in.Alias), current)
	})
	if err != nil {
		return nil, err
	}
	return entityAnswer(after, aliasStatus{Image: in.Image, Alias: in.Alias, Version: to, VersionURL: versionURL(ctx, in.Image, to)}), nil
}

func (s *server) removeAlias(ctx context.Context, in *removeAliasInput) (*removedOutput, error) {
	if events.CheckImageName(in.Image) != nil || events.CheckAliasName(in.Alias) != nil {
		return nil, missing("image %q has no alias %q", in.Image, in.Alias)
	}
	return removedAnswer(change(ctx, s, in.Alias, s.aliasOf(in.Image), func(_ context.Context, current events.Current[events.Alias]) ([]events.Change, error) {
		return events.RemoveAlias(current, in.Image, in.Alias)
	}))
}

// aliasOf reads aliases of an image.
func (s *server) aliasOf(image string) func(context.Context, string) (events.Current[events.Alias], error) {
	return func(ctx context.Context, alias string) (events.Current[events.Alias], error) {
		return s.Events.Alias(ctx, image, alias)
	}
}
