package api

import (
	"bytes"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/provenance"
	"github.com/imgsrv/imgsrv/store/catalog"
)

const mediaTypeText = "text/plain; charset=utf-8"

// provenance are the routes that say where a version's files come from; those of signatures only with a key.
func (s *server) provenance() map[string]func(http.ResponseWriter, *http.Request) error {
	routes := map[string]func(http.ResponseWriter, *http.Request) error{pathChecksums: s.serveChecksums}
	if s.SigningKey != nil {
		routes[pathSignature], routes[pathSigningKey] = s.serveSignature, s.serveSigningKey
	}
	return routes
}

// checksums lists all files of a version that there are now, by the names that they are downloaded under.
func checksums(row catalog.VersionRow) []byte {
	var files []provenance.File
	for _, f := range namedFiles(row) {
		files = append(files, provenance.File{Name: f.name, SHA256: f.digest.Hex()})
	}
	return provenance.Checksums(files)
}

// serveChecksums is GET and HEAD /api/images/{image}/versions/{version or alias}/SHA256SUMS: 200, 206, 304, 401, 404, 410, 412,
// 416, 503; to be revalidated, since further formats and deltas are made later.
func (s *server) serveChecksums(w http.ResponseWriter, r *http.Request) error {
	row, err := s.askedVersion(r)
	if err != nil {
		return err
	}
	s.sendText(w, r, mediaTypeText, checksums(row), cacheOf(row.Visibility, true))
	return nil
}

// serveSignature is GET and HEAD …/SHA256SUMS.minisig: as serveChecksums; another key of the server means another signature.
func (s *server) serveSignature(w http.ResponseWriter, r *http.Request) error {
	row, err := s.askedVersion(r)
	if err != nil {
		return err
	}
	s.sendText(w, r, mediaTypeText, s.signatureOf(row, param(r, "version")), cacheOf(row.Visibility, true))
	return nil
}

// signatureOf is the signature over a version's checksums, asked for by the version's name or an alias.
func (s *server) signatureOf(row catalog.VersionRow, asked string) []byte {
	statement := provenance.Statement{Image: row.Manifest.Image, Version: row.Manifest.Version, PublishedAt: row.Manifest.PublishedAt}
	if row.ResolvedBy == catalog.ByAlias {
		statement.Alias = asked
	}
	return s.SigningKey.Sign(checksums(row), statement)
}

// serveSigningKey is GET and HEAD /api/signing-key: 200, 304, 401.
func (s *server) serveSigningKey(w http.ResponseWriter, r *http.Request) error {
	s.sendText(w, r, mediaTypeText, s.SigningKey.Public().File(), cacheRevalidate)
	return nil
}

// askedVersion is the version that the path names, if the caller may see it.
func (s *server) askedVersion(r *http.Request) (catalog.VersionRow, error) {
	row, _, err := s.versionAt(r.Context(), param(r, "image"), param(r, "version"), "")
	return row, err
}

// sendText answers with a short text.
func (s *server) sendText(w http.ResponseWriter, r *http.Request, mediaType string, text []byte, cache string) {
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("ETag", etagOf(text))
	h.Set("Cache-Control", cache)
	problem.ServeContent(w, r, s.Log, time.Time{}, bytes.NewReader(text))
}

// handMadeProvenance describes the routes for the OpenAPI document.
func (s *server) handMadeProvenance() []*huma.Operation {
	anybody := []map[string][]string{{}, {securityBearer: {}}}
	text := func(description string, problems ...int) map[string]*huma.Response {
		out := responses("200", description, problems...)
		out["200"].Content = map[string]*huma.MediaType{"text/plain": {Schema: &huma.Schema{Type: huma.TypeString}}}
		return with(out, "304", &huma.Response{Description: "Not changed since the ETag in If-None-Match"})
	}
	ofVersion := []*huma.Param{pathParameter("image", "debian-bookworm"), pathParameter("version", "12.5.0"),
		headerParameter("If-None-Match", "ETag of an earlier answer", "", false), minSequenceParameter()}
	ops := []*huma.Operation{{OperationID: "get-checksums", Method: http.MethodGet, Path: pathChecksums, Tags: []string{tagDownload}, Security: anybody,
		Summary:     "Checksums of a version's files",
		Description: "As `sha256sum -c` reads them, with the names that downloads are saved under (Content-Disposition). The version may be named by an alias.",
		Parameters:  ofVersion, Responses: text("The checksums", 400, 401, 404, 410, 503)}}
	if s.SignedStreams {
		ops = append(ops, signedStreams()...)
	}
	if s.SigningKey == nil {
		return ops
	}
	return append(ops,
		&huma.Operation{OperationID: "get-signature", Method: http.MethodGet, Path: pathSignature, Tags: []string{tagDownload}, Security: anybody,
			Summary:     "Signature over the checksums of a version's files",
			Description: "In minisign's form, by the server's key. The trusted comment names image, version, alias if one was asked for, and the time of publication.",
			Parameters:  ofVersion, Responses: text("The signature", 400, 401, 404, 410, 503)},
		&huma.Operation{OperationID: "get-signing-key", Method: http.MethodGet, Path: pathSigningKey, Tags: []string{tagDownload}, Security: anybody,
			Summary:     "The public key of the signatures",
			Description: "As a .pub file of minisign. Pin it once, from where you trust it: a key from the same server as the files proves nothing about them.",
			Parameters:  []*huma.Param{headerParameter("If-None-Match", "ETag of an earlier answer", "", false)},
			Responses:   text("The key", 401)})
}

// signedStreams describes the clear-signed documents of handlers/streams.
func signedStreams() []*huma.Operation {
	var ops []*huma.Operation
	for _, d := range []struct{ id, name, mediaType, summary string }{
		{"index", "index.sjson", "text/plain", "Simplestreams index, clear-signed"},
		{"images", "images.sjson", "text/plain", "Simplestreams images, clear-signed"},
		{"key", "signing-key.asc", "application/pgp-keys", "The public key of the clear-signed documents"},
	} {
		out := responses("200", "The document", 400, 503)
		out["200"].Content = map[string]*huma.MediaType{d.mediaType: {Schema: &huma.Schema{Type: huma.TypeString}}}
		ops = append(ops, &huma.Operation{OperationID: "streams-signed-" + d.id, Method: http.MethodGet, Path: "/streams/v1/" + d.name,
			Tags: []string{tagStreams}, Security: []map[string][]string{{}}, Summary: d.summary,
			Description: "For clients that check documents by OpenPGP; Incus and LXD don't.",
			Parameters:  []*huma.Param{minSequenceParameter(), headerParameter("If-None-Match", "ETag of an earlier answer", "", false)},
			Responses:   with(out, "304", &huma.Response{Description: "Not changed since the ETag in If-None-Match"})})
	}
	return ops
}
