package api

import (
	"context"
	"net/http"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/provenance"
)

// attachmentDetail is an attachment of a published version.
type attachmentDetail struct {
	Name      string `json:"name" example:"sbom.spdx.json"`
	Digest    string `json:"digest" example:"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
	Size      int64  `json:"size" doc:"Bytes"`
	MediaType string `json:"media_type" doc:"By the end of the name" example:"application/spdx+json"`
	URL       string `json:"url" format:"uri" doc:"Download by name"`
	BlobURL   string `json:"blob_url" format:"uri" doc:"Download by digest"`
}

func attachmentsOf(ctx context.Context, m events.Manifest) []attachmentDetail {
	var out []attachmentDetail
	for _, a := range m.Attachments {
		out = append(out, attachmentDetail{Name: a.Name, Digest: string(a.Digest), Size: a.Size, MediaType: a.MediaType,
			URL: attachmentURL(ctx, m.Image, m.Version, a.Name), BlobURL: blobURL(ctx, a.Digest)})
	}
	return out
}

// serveAttachment is GET and HEAD /api/images/{image}/versions/{version or alias}/attachments/{name}: as serveFormat.
func (s *server) serveAttachment(w http.ResponseWriter, r *http.Request) error {
	image, version, name := param(r, "image"), param(r, "version"), param(r, "name")
	gone := missing("image %q has no attachment %q in version %q", image, name, version)
	if events.CheckImageName(image) != nil || events.CheckVersionName(version) != nil || events.CheckAttachmentName(name) != nil {
		return gone
	}
	row, err := s.Catalog.Attachment(r.Context(), image, version, name)
	if err != nil {
		return notFoundAs(err, gone)
	}
	if err := s.mayHave(r.Context(), row.Image, row.Version, row.Visibility, row.Withdrawn); err != nil {
		return notFoundAs(err, gone)
	}
	return s.send(w, r, download{digest: row.Digest, size: row.Size, mediaType: row.MediaType, modified: row.PublishedAt,
		cache: cacheOf(row.Visibility, row.ByAlias), name: provenance.AttachmentName(row.Image, row.Version, row.Name)})
}
