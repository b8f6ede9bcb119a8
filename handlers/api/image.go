package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/catalog"
)

type imagesInput struct {
	PageInput
	AtInput
}

type imagesOutput struct {
	PageHeader
	AtHeader
	Body imagesPage
}

type imagesPage struct {
	Images []imageSummary `json:"images" nullable:"false"`
	Next   string         `json:"next,omitempty" doc:"after of the next page; absent on the last one"`
}

type imageInput struct {
	Image string `path:"image" example:"debian-bookworm"`
	AtInput
}

type imageOutput struct {
	AtHeader
	Body imageSummary
}

// imageSummary is an image with what it offers.
type imageSummary struct {
	Name          string            `json:"name" example:"debian-bookworm"`
	OS            string            `json:"os,omitempty" example:"debian"`
	Release       string            `json:"release,omitempty" example:"bookworm"`
	Description   string            `json:"description,omitempty"`
	Visibility    string            `json:"visibility" enum:"public,private"`
	LatestVersion string            `json:"latest_version" doc:"The version published last, whatever aliases say" example:"12.5.0"`
	PublishedAt   time.Time         `json:"published_at" doc:"When latest_version was published"`
	VersionCount  int               `json:"version_count"`
	Aliases       map[string]string `json:"aliases" doc:"The version that each alias names" example:"{\"latest\":\"12.5.0\"}"`
	URL           string            `json:"url" format:"uri"`
	VersionsURL   string            `json:"versions_url" format:"uri"`
}

// images registers GET /api/images: 200 a page, by name, 400 a wrong cursor, 401, 422, 503; and
// GET /api/images/{image}: 200, 401, 404 none, none that is published, or a private one, 503.
func (s *server) images() {
	read(s, huma.Operation{
		OperationID: "list-images", Path: pathImages, Tags: []string{tagImages}, Summary: "List images by name",
		Description: "Only images with a published version; private ones only with a token that may see them. With `at`, which needs a token, as it was then.",
		Errors:      []int{http.StatusBadRequest, http.StatusUnprocessableEntity},
	}, []*projections.Runner{s.CatalogProjection}, s.listImages)
	read(s, huma.Operation{
		OperationID: "get-image", Path: pathImage, Tags: []string{tagImages}, Summary: "Get an image",
		Errors: []int{http.StatusBadRequest, http.StatusNotFound},
	}, []*projections.Runner{s.CatalogProjection}, func(ctx context.Context, in *imageInput) (*imageOutput, error) {
		image, asOf, err := s.imageAt(ctx, in.Image, in.At)
		if err != nil {
			return nil, err
		}
		return &imageOutput{AtHeader: asOf, Body: imageSummaryOf(ctx, image)}, nil
	})
}

func (s *server) listImages(ctx context.Context, in *imagesInput) (*imagesOutput, error) {
	images, next, asOf, err := s.imagesAt(ctx, in)
	if err != nil {
		return nil, err
	}
	// The next page is of the same moment, also where that was given as a time.
	out := &imagesOutput{PageHeader: in.next(ctx, pathImages, next, "at", asOf.AtSequence), AtHeader: asOf, Body: imagesPage{Images: []imageSummary{}, Next: next}}
	for _, image := range images {
		out.Body.Images = append(out.Body.Images, imageSummaryOf(ctx, image))
	}
	return out, nil
}

func (s *server) imagesAt(ctx context.Context, in *imagesInput) (images []catalog.Image, next string, asOf AtHeader, err error) {
	if in.At != "" {
		return s.pastImages(ctx, in)
	}
	images, next, err = s.Catalog.Images(ctx, catalog.ImageFilter{Readable: readable(ctx), After: in.After, Limit: in.Limit})
	return images, next, asOf, err
}

func (s *server) imageAt(ctx context.Context, name, at string) (image catalog.Image, asOf AtHeader, err error) {
	if at != "" {
		return s.pastImage(ctx, name, at)
	}
	image, err = s.visibleImage(ctx, name)
	return image, asOf, err
}

// readable are the private images that the caller may read.
func readable(ctx context.Context) catalog.Readable {
	return catalog.ReadableBy(access.From(ctx).Readable())
}

// visibleImage reads an image that the caller may see.
func (s *server) visibleImage(ctx context.Context, name string) (catalog.Image, error) {
	gone := missing("there is no image %q", name)
	if events.CheckImageName(name) != nil {
		return catalog.Image{}, gone
	}
	image, err := s.Catalog.Image(ctx, name)
	if err != nil {
		return image, notFoundAs(err, gone)
	}
	if !maySee(ctx, image.Name, image.Visibility) {
		return image, gone
	}
	return image, nil
}

func imageSummaryOf(ctx context.Context, i catalog.Image) imageSummary {
	url := imageURL(ctx, i.Name)
	aliases := make(map[string]string, len(i.Aliases))
	for _, alias := range i.Aliases {
		aliases[alias.Name] = alias.Version
	}
	return imageSummary{Name: i.Name, OS: i.OS, Release: i.Release, Description: i.Description, Visibility: string(i.Visibility),
		LatestVersion: i.Latest, PublishedAt: i.LatestAt, VersionCount: i.Versions, Aliases: aliases, URL: url, VersionsURL: url + "/versions"}
}
