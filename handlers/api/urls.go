package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/provenance"
)

// Paths of the API.
const (
	pathImages     = "/api/images"
	pathImage      = pathImages + "/{image}"
	pathVersions   = pathImage + "/versions"
	pathVersion    = pathVersions + "/{version}"
	pathFormat     = pathVersion + "/variants/{variant}/formats/{format}"
	pathDerive     = pathVersion + "/variants/{variant}/derive"
	pathAttached   = pathVersion + "/attachments/{name}"
	pathChecksums  = pathVersion + "/" + provenance.ChecksumsName
	pathSignature  = pathVersion + "/" + provenance.SignatureName
	pathWithdraw   = pathVersion + "/withdraw"
	pathRestore    = pathVersion + "/restore"
	pathPolicy     = pathImage + "/policy"
	pathVisibility = pathImage + "/visibility"
	pathSigningKey = "/api/signing-key"
	pathAlias      = pathImage + "/aliases/{alias}"
	pathUpload     = "/api/uploads/{id}"
	pathJobs       = "/api/jobs"
	pathJob        = pathJobs + "/{id}"
	pathRetry      = pathJob + "/retry"
	pathCancel     = pathJob + "/cancel"
	pathBlob       = "/cas/sha256/{prefix}/{hex}"
	pathHistory    = pathImage + "/history"
	pathEvents     = "/api/events"
	pathEvent      = pathEvents + "/{sequence}"
	pathExport     = pathEvents + "/export"
	pathImport     = pathEvents + "/import"
	pathHealth     = "/healthz"
	pathReady      = "/readyz"
)

func uploadURL(ctx context.Context, id string) string { return base(ctx) + "/api/uploads/" + id }

func jobURL(ctx context.Context, id string) string { return base(ctx) + pathJobs + "/" + id }

func imageURL(ctx context.Context, image string) string {
	return base(ctx) + pathImages + "/" + url.PathEscape(image)
}

func versionURL(ctx context.Context, image, version string) string {
	return imageURL(ctx, image) + "/versions/" + url.PathEscape(version)
}

func formatURL(ctx context.Context, image, version, variant, format string) string {
	return versionURL(ctx, image, version) + "/variants/" + url.PathEscape(variant) + "/formats/" + url.PathEscape(format)
}

func attachmentURL(ctx context.Context, image, version, name string) string {
	return versionURL(ctx, image, version) + "/attachments/" + url.PathEscape(name)
}

func blobURL(ctx context.Context, digest events.Digest) string {
	return base(ctx) + "/cas/sha256/" + digest.Hex()[:2] + "/" + digest.Hex()
}

// param is a part of the path, unescaped: chi matches the escaped path where that differs.
func param(r *http.Request, name string) string {
	value := chi.URLParam(r, name)
	if r.URL.RawPath != "" {
		if plain, err := url.PathUnescape(value); err == nil {
			return plain
		}
	}
	return value
}
