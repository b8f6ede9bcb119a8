package api

import (
	"context"
	"fmt"
	"net/http"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/provenance"
)

// attachmentRequest declares a file of the version as a whole.
type attachmentRequest struct {
	Name   string `json:"name" doc:"Name of the file in the version; not SHA256SUMS or what begins so" example:"sbom.spdx.json"`
	Size   int64  `json:"size" format:"int64" doc:"Length in bytes" example:"20480"`
	SHA256 string `json:"sha256,omitempty" doc:"As for the files of a variant" example:"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
}

// attachmentDetail is an attachment of a published version.
type attachmentDetail struct {
	Name      string `json:"name" example:"sbom.spdx.json"`
	Digest    string `json:"digest" example:"sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`
	Size      int64  `json:"size" doc:"Bytes"`
	MediaType string `json:"media_type" doc:"By the end of the name" example:"application/spdx+json"`
	URL       string `json:"url" format:"uri" doc:"Download by name"`
	BlobURL   string `json:"blob_url" format:"uri" doc:"Download by digest"`
}

// newAttachments makes attachments of a request, and says what is wrong about their digests.
func newAttachments(requests []attachmentRequest) (files []events.UploadFile, broken []events.FieldError) {
	for i, a := range requests {
		file := events.UploadFile{Format: a.Name, Size: a.Size, State: events.FilePending}
		if a.SHA256 != "" {
			digest, err := events.ParseDigest(a.SHA256)
			if err != nil {
				broken = append(broken, events.FieldError{Field: fmt.Sprintf("attachments[%d].sha256", i), Value: a.SHA256,
					Text: "a sha256 has 64 lower-case hex digits"})
			}
			file.Declared = digest
		}
		files = append(files, file)
	}
	return files, broken
}

func attachmentsOf(ctx context.Context, m events.Manifest) []attachmentDetail {
	var out []attachmentDetail
	for _, a := range m.Attachments {
		out = append(out, attachmentDetail{Name: a.Name, Digest: string(a.Digest), Size: a.Size, MediaType: a.MediaType,
			URL: attachmentURL(ctx, m.Image, m.Version, a.Name), BlobURL: blobURL(ctx, a.Digest)})
	}
	return out
}

// checkSizes holds each declared file against the server's cap.
func (s *server) checkSizes(u events.Upload) error {
	for ref, f := range u.Files() {
		if s.MaxUploadBytes > 0 && f.Size > s.MaxUploadBytes {
			return problem.New(problem.CodeTooLarge, fmt.Sprintf("%s has %d bytes, and this server takes at most %d a file", ref, f.Size, s.MaxUploadBytes))
		}
	}
	return nil
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
	if !maySee(r.Context(), row.Image, row.Visibility) {
		return gone
	}
	if err := s.withdrawn(r.Context(), row.Image, row.Version, row.Withdrawn); err != nil {
		return err
	}
	return s.send(w, r, download{digest: row.Digest, size: row.Size, mediaType: row.MediaType, modified: row.PublishedAt,
		cache: cacheOf(row.Visibility, row.ByAlias), name: provenance.AttachmentName(row.Image, row.Version, row.Name)})
}
