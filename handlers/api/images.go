package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/catalog"
)

type pageInput struct {
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Entries on a page"`
	After string `query:"after" doc:"next of the page before"`
	AtInput
}

type imagesOutput struct {
	Link string `header:"Link" doc:"The next page, rel=next (RFC 8288)"`
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
		if in.At != "" {
			return s.pastImage(ctx, in)
		}
		image, err := s.visibleImage(ctx, in.Image)
		if err != nil {
			return nil, err
		}
		return &imageOutput{Body: imageSummaryOf(ctx, image)}, nil
	})
}

func (s *server) listImages(ctx context.Context, in *pageInput) (*imagesOutput, error) {
	if in.At != "" {
		return s.pastImages(ctx, in)
	}
	images, next, err := s.Catalog.Images(ctx, catalog.ImageFilter{Readable: readable(ctx), After: in.After, Limit: in.Limit})
	if err != nil {
		return nil, err
	}
	out := &imagesOutput{Link: nextLink(ctx, pathImages, next, in.Limit), Body: imagesPage{Images: []imageSummary{}, Next: next}}
	for _, image := range images {
		out.Body.Images = append(out.Body.Images, imageSummaryOf(ctx, image))
	}
	return out, nil
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

// nextLink is the Link header to the next page (RFC 8288); "" on the last one. more are further parameters,
// name and value in turn; empty ones are left out.
func nextLink(ctx context.Context, path, next string, limit int, more ...string) string {
	if next == "" {
		return ""
	}
	query := url.Values{"after": {next}, "limit": {strconv.Itoa(limit)}}
	for i := 0; i+1 < len(more); i += 2 {
		if more[i+1] != "" {
			query.Set(more[i], more[i+1])
		}
	}
	return fmt.Sprintf("<%s%s?%s>; rel=\"next\"", base(ctx), path, query.Encode())
}
