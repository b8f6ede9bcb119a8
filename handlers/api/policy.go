package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/convert"
)

type policyInput struct {
	Image string `path:"image" example:"debian-bookworm"`
}

type setPolicyInput struct {
	Image   string `path:"image" example:"debian-bookworm"`
	IfMatch string `header:"If-Match" doc:"ETag of the policy that this one is to replace; should there be another by now, the answer is 412"`
	Body    imagePolicy
}

type policyOutput struct {
	ETag     string `header:"ETag" doc:"Of this policy; send it as If-Match to replace just this one"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event; send it as Imgsrv-Min-Sequence to read your own write"`
	Body     imagePolicy
}

// imagePolicy says what is made of an image's versions, and how long they are kept.
type imagePolicy struct {
	Formats   []policyFormat  `json:"formats" nullable:"false" required:"false" doc:"Made of each version, where its variants don't bring them"`
	Deltas    *int            `json:"deltas,omitempty" doc:"Against how many older versions deltas are made; absent: as many as the server makes by default" example:"2"`
	Retention policyRetention `json:"retention" required:"false"`
}

type policyFormat struct {
	Format   string `json:"format" example:"disk.raw.zst"`
	Required bool   `json:"required" required:"false" doc:"That it can't be made is an error; otherwise it is left out"`
}

type policyRetention struct {
	KeepLast int `json:"keep_last,omitempty" doc:"Keep the newest versions, so many; 0: no such rule" example:"5"`
	KeepDays int `json:"keep_days,omitempty" doc:"Keep versions for so many days after their publication; 0: no such rule" example:"90"`
}

type visibilityInput struct {
	Image string `path:"image" example:"debian-bookworm"`
	Body  struct {
		Visibility string `json:"visibility" enum:"public,private"`
	}
}

type visibilityOutput struct {
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event; send it as Imgsrv-Min-Sequence to read your own write"`
	Body     imageVisibility
}

type imageVisibility struct {
	Image      string `json:"image" example:"debian-bookworm"`
	Visibility string `json:"visibility" enum:"public,private"`
}

// policies registers GET /api/images/{image}/policy: 200 the policy, an empty one where none was set, 401, 403, 404,
// 503; PUT: 200 with Imgsrv-Sequence, 400, 401, 403, 404, 412 it isn't
// the policy of If-Match any more, 413, 415, 422, 503, both with ETag; and PUT
// /api/images/{image}/visibility: as that.
func (s *server) policies() {
	changes := []int{http.StatusBadRequest, http.StatusNotFound, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity}
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "get-policy", Method: http.MethodGet, Path: pathPolicy, Tags: []string{tagImages}, Summary: "Get an image's policy",
		Errors: []int{http.StatusNotFound},
	}, s.getPolicy)
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "set-policy", Method: http.MethodPut, Path: pathPolicy, Tags: []string{tagImages}, Summary: "Set an image's policy",
		Description: "In place of the one before; with `If-Match`, only of that one. Versions that the retention doesn't keep are withdrawn soon after; the newest, those that an alias names and those that were restored stay. The image must have been published to.",
		Errors:      append([]int{http.StatusPreconditionFailed}, changes...),
	}, s.setPolicy)
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "change-visibility", Method: http.MethodPut, Path: pathVisibility, Tags: []string{tagImages}, Summary: "Make an image public or private",
		Description: "With all its versions. What caches and clients hold of a public image stays with them.",
		Errors:      changes,
	}, s.changeVisibility)
}

func (s *server) getPolicy(ctx context.Context, in *policyInput) (*policyOutput, error) {
	image, err := s.knownImage(ctx, in.Image)
	if err != nil {
		return nil, err
	}
	return policyAnswer(image.State, image.Sequence)
}

func (s *server) setPolicy(ctx context.Context, in *setPolicyInput) (*policyOutput, error) {
	policy := events.Policy{Deltas: in.Body.Deltas, Retention: events.Retention(in.Body.Retention)}
	for i, f := range in.Body.Formats {
		if !convert.Known(f.Format) {
			return nil, invalid(fmt.Sprintf("formats[%d].format", i), f.Format, errUnknownFormat())
		}
		policy.Formats = append(policy.Formats, events.PolicyFormat(f))
	}
	image, sequence, err := s.changeImage(ctx, in.Image, func(image events.Current[events.Image]) ([]events.Change, error) {
		if in.IfMatch != "" {
			before, err := policyETag(image.State)
			if err != nil {
				return nil, err
			}
			if !etagMatches(in.IfMatch, before) {
				return nil, events.Refuse(problem.CodePrecondition, "the policy of image %s isn't the one that If-Match names: read it again", image.State.Name)
			}
		}
		return events.SetPolicy(image, policy)
	})
	if err != nil {
		return nil, err
	}
	return policyAnswer(image, sequence)
}

func policyAnswer(image events.Image, sequence events.Sequence) (*policyOutput, error) {
	etag, err := policyETag(image)
	if err != nil {
		return nil, err
	}
	return &policyOutput{ETag: etag, Sequence: uint64(sequence), Body: policyOf(image)}, nil
}

// policyETag tells policies apart, and nothing else of an image.
func policyETag(image events.Image) (string, error) {
	text, err := json.Marshal(policyOf(image))
	if err != nil {
		return "", fmt.Errorf("make the ETag of a policy: %w", err)
	}
	sum := sha256.Sum256(text)
	return `"` + hex.EncodeToString(sum[:16]) + `"`, nil
}

func (s *server) changeVisibility(ctx context.Context, in *visibilityInput) (*visibilityOutput, error) {
	image, sequence, err := s.changeImage(ctx, in.Image, func(image events.Current[events.Image]) ([]events.Change, error) {
		return events.ChangeVisibility(image, events.Visibility(in.Body.Visibility))
	})
	if err != nil {
		return nil, err
	}
	return &visibilityOutput{Sequence: uint64(sequence), Body: imageVisibility{Image: image.Name, Visibility: string(image.Visibility)}}, nil
}

// knownImage is an image as of the log: a policy is about what was published or is withdrawn.
func (s *server) knownImage(ctx context.Context, name string) (events.Current[events.Image], error) {
	gone := missing("there is no image %q", name)
	if events.CheckImageName(name) != nil {
		return events.Current[events.Image]{}, gone
	}
	image, err := s.Events.Image(ctx, name)
	if err == nil && image.Sequence == 0 {
		err = gone
	}
	return image, err
}

func (s *server) changeImage(ctx context.Context, name string, decide func(events.Current[events.Image]) ([]events.Change, error)) (events.Image, events.Sequence, error) {
	var image events.Image
	var before events.Sequence
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: access.From(ctx).Name}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.knownImage(ctx, name)
		if err != nil {
			return nil, err
		}
		changes, err := decide(current)
		image, before = current.State, current.Sequence
		for _, change := range changes {
			image = events.Fold(image, change.Fact)
		}
		return changes, err
	})
	return image, max(sequence, before), err
}

func policyOf(image events.Image) imagePolicy {
	out := imagePolicy{Formats: []policyFormat{}}
	if image.Policy == nil {
		return out
	}
	out.Deltas, out.Retention = image.Policy.Deltas, policyRetention(image.Policy.Retention)
	for _, f := range image.Policy.Formats {
		out.Formats = append(out.Formats, policyFormat(f))
	}
	return out
}
