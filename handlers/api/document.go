package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/docs"
	"github.com/imgsrv/imgsrv/internal/tusname"
)

// Tags of the OpenAPI document.
const (
	tagImages   = "Images"
	tagPublish  = "Publishing"
	tagDownload = "Downloads"
	tagStreams  = "Incus and LXD"
	tagPages    = "Pages"
	tagOperate  = "Operation"
	tagAccess   = "Access"
	tagEvents   = "Events"
)

// describeAPI fills in what stands above all operations.
func describeAPI(doc *huma.OpenAPI) {
	doc.Info.Description = "Publishes versioned disk images and serves them over HTTP and as a simplestreams remote for Incus and LXD.\n\n" +
		"To publish: open an upload session (`POST /api/images`), upload each file with tus 1.0, and follow the session until it is `published`. " +
		"All files of a version appear together or not at all.\n\n" +
		"Every error is a problem document (RFC 9457). Every write answers with `Imgsrv-Sequence`; a read that sends it back as `Imgsrv-Min-Sequence` sees that write."
	doc.Info.License = &huma.License{Name: "MIT OR Apache-2.0", Identifier: "MIT OR Apache-2.0"}
	doc.Tags = []*huma.Tag{
		{Name: tagImages, Description: "What is published, and the aliases that name it"},
		{Name: tagDownload, Description: "The bytes, by name or by digest, whole or in ranges"},
		{Name: tagPublish, Description: "Upload sessions and the jobs that publish them"},
		{Name: tagStreams, Description: "The simplestreams remote"},
		{Name: tagPages, Description: "The plain directory view, for people and for programs that know folders"},
		{Name: tagEvents, Description: "Following what happens, and what happened"},
		{Name: tagOperate, Description: "Probes, projections, webhooks and mirrors"},
		{Name: tagAccess, Description: "Who may do what: principals, their roles and tokens"},
	}
	doc.Components.SecuritySchemes = map[string]*huma.SecurityScheme{securityBearer: {
		Type: "http", Scheme: "bearer", Description: "A token of a principal (`POST /api/tokens`); the first one is an admin's, which the first start prints and keeps in `admin.token` in its data folder. It may also be the password of basic authentication.",
	}}
}

// asyncAPIMediaType is that of AsyncAPI documents in YAML (AsyncAPI 3.0.0, "Media types").
const asyncAPIMediaType = "application/vnd.aai.asyncapi+yaml;version=3.0.0"

// document serves the OpenAPI document at /openapi.yaml and /openapi.json, each made once, when the first asks: it costs more than all else of a start; and the
// AsyncAPI document of the events.
func (s *server) document(router chi.Router) {
	doc := s.api.OpenAPI()
	for _, op := range slices.Concat(handMade(), handMadeEvents(), s.handMadeProvenance(), s.handMadePages(), s.handMadeOperations()) {
		doc.AddOperation(op)
	}
	router.Get("/openapi.yaml", s.serveDocument("application/openapi+yaml", doc.YAML))
	router.Get("/openapi.json", s.serveDocument("application/openapi+json", func() ([]byte, error) { return json.Marshal(doc) }))
	router.Get("/asyncapi.yaml", s.serveDocument(asyncAPIMediaType, func() ([]byte, error) { return docs.AsyncAPI, nil }))
}

func (s *server) serveDocument(mediaType string, write func() ([]byte, error)) http.HandlerFunc {
	once := sync.OnceValues(write)
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := once()
		if err != nil {
			s.refuse(w, r, fmt.Errorf("write %s: %w", r.URL.Path, err))
			return
		}
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Cache-Control", "no-cache")
		_, _ = w.Write(body) // a client that went away needs no answer
	}
}

// handMade describes the routes that aren't huma's: the bytes, tus and simplestreams.
func handMade() []*huma.Operation {
	anybody := []map[string][]string{{}, {securityBearer: {}}}
	writer := []map[string][]string{{securityBearer: {}}}
	var ops []*huma.Operation
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		verb := map[string]string{http.MethodGet: "download", http.MethodHead: "look-at"}[method]
		summary := map[string]string{http.MethodGet: "Download", http.MethodHead: "Look at"}[method]
		ops = append(ops,
			&huma.Operation{OperationID: verb + "-format", Method: method, Path: pathFormat, Tags: []string{tagDownload}, Security: anybody,
				Summary:     summary + " a file by name",
				Description: "The version may be named by an alias; the answer is then to be revalidated, while that of a version never changes.",
				Parameters: append([]*huma.Param{pathParameter("image", "debian-bookworm"), pathParameter("version", "12.5.0"),
					pathParameter("variant", "amd64.virtual-machine.default"), pathParameter("format", "disk.qcow2")}, bytesParameters()...),
				Responses: bytesResponses(method)},
			&huma.Operation{OperationID: verb + "-attachment", Method: method, Path: pathAttached, Tags: []string{tagDownload}, Security: anybody,
				Summary:     summary + " an attachment by name",
				Description: "A file of the version as a whole, such as an SBOM, a signature or release notes. The version may be named by an alias, as for other files.",
				Parameters: append([]*huma.Param{pathParameter("image", "debian-bookworm"), pathParameter("version", "12.5.0"),
					pathParameter("name", "sbom.spdx.json")}, bytesParameters()...),
				Responses: bytesResponses(method)},
			&huma.Operation{OperationID: verb + "-blob", Method: method, Path: pathBlob, Tags: []string{tagDownload}, Security: anybody,
				Summary:     summary + " a file by digest",
				Description: "Any file of a published version, attachments too.",
				Parameters: append([]*huma.Param{pathParameter("prefix", "9f"),
					pathParameter("hex", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08")}, bytesParameters()...),
				Responses: bytesResponses(method)})
	}
	tusHeader := headerParameter("Tus-Resumable", "Version of the protocol", "1.0.0", true)
	upload := pathParameter("upload", "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b.0")
	ops = append(ops,
		&huma.Operation{OperationID: "tus-create", Method: http.MethodPost, Path: tusname.BasePath, Tags: []string{tagPublish}, Security: writer,
			Summary:     "Create a tus upload",
			Description: "tus 1.0 with the extensions creation, creation-with-upload, termination and expiration. Upload-Length is the declared size, Upload-Metadata the value that the session gave for the file.",
			Parameters: []*huma.Param{tusHeader, headerParameter("Upload-Length", "Length of the file in bytes", "196608", true),
				headerParameter("Upload-Metadata", "As the session's `tus.metadata` says", "session MDE5…,variant YW1k…,format ZGlz…", true)},
			Responses: responses("201", "Created; Location is the upload", 400, 401, 403, 404, 409, 413, 429, 503, 507)},
		&huma.Operation{OperationID: "tus-offset", Method: http.MethodHead, Path: tusname.BasePath + "{upload}", Tags: []string{tagPublish}, Security: writer,
			Summary: "Ask how far a tus upload has come", Parameters: []*huma.Param{upload, tusHeader},
			Responses: responses("200", "Upload-Offset says how many bytes are safe", 401, 403, 404, 410, 429, 503)},
		&huma.Operation{OperationID: "tus-append", Method: http.MethodPatch, Path: tusname.BasePath + "{upload}", Tags: []string{tagPublish}, Security: writer,
			Summary:     "Append to a tus upload",
			Description: "With Content-Type application/offset+octet-stream. What arrived before a broken connection is kept. The answer to the last bytes of the last file comes once the session has been handed over.",
			Parameters:  []*huma.Param{upload, tusHeader, headerParameter("Upload-Offset", "Where the bytes belong", "0", true)},
			RequestBody: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{"application/offset+octet-stream": binary()}},
			Responses:   responses("204", "Appended; Upload-Offset says how many bytes are safe", 400, 401, 403, 404, 408, 409, 410, 413, 415, 423, 429, 503, 507)},
		&huma.Operation{OperationID: "tus-terminate", Method: http.MethodDelete, Path: tusname.BasePath + "{upload}", Tags: []string{tagPublish}, Security: writer,
			Summary: "Drop the bytes of a tus upload", Parameters: []*huma.Param{upload, tusHeader},
			Responses: responses("204", "Dropped; the file may be uploaded anew", 401, 403, 404, 409, 410, 423, 429, 503)},
	)
	least, most := 1.0, 1000.0
	for _, name := range []string{"index.json", "images.json"} {
		ops = append(ops, &huma.Operation{OperationID: "streams-" + name[:len(name)-len(".json")], Method: http.MethodGet, Path: "/streams/v1/" + name,
			Tags: []string{tagStreams}, Security: []map[string][]string{{}}, Summary: "Simplestreams " + name,
			Description: "For `incus remote add NAME https://HOST --protocol simplestreams`. Only public images.",
			Parameters:  []*huma.Param{minSequenceParameter(), headerParameter("If-None-Match", "ETag of an earlier answer", "", false)},
			Responses: with(responses("200", "The document", 400, 429, 503), "304",
				&huma.Response{Description: "Not changed since the ETag in If-None-Match"})})
	}
	page := responses("200", "The document", 400, 404, 429, 503)
	page["200"].Headers = map[string]*huma.Param{"Link": {Description: "The next page, rel=next (RFC 8288)", Schema: &huma.Schema{Type: huma.TypeString}}}
	return append(ops, &huma.Operation{OperationID: "streams-image", Method: http.MethodGet, Path: "/streams/v1/images/{image}.json",
		Tags: []string{tagStreams}, Security: []map[string][]string{{}}, Summary: "Simplestreams products of one image",
		Description: "The newest versions first, in pages, each of them a whole document. No index leads here: clients that follow indexes have all products from images.json.",
		Parameters: []*huma.Param{pathParameter("image", "debian-bookworm"),
			{Name: "limit", In: "query", Description: "Versions on a page", Schema: &huma.Schema{Type: huma.TypeInteger, Minimum: &least, Maximum: &most, Default: 100}},
			{Name: "after", In: "query", Description: "The version that the page before ended with: Link has it", Schema: &huma.Schema{Type: huma.TypeString}},
			minSequenceParameter(), headerParameter("If-None-Match", "ETag of an earlier answer", "", false)},
		Responses: with(page, "304", &huma.Response{Description: "Not changed since the ETag in If-None-Match"})})
}

func pathParameter(name, example string) *huma.Param {
	return &huma.Param{Name: name, In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}, Example: example}
}

func headerParameter(name, description, example string, required bool) *huma.Param {
	p := &huma.Param{Name: name, In: "header", Required: required, Description: description, Schema: &huma.Schema{Type: huma.TypeString}}
	if example != "" {
		p.Example = example
	}
	return p
}

func minSequenceParameter() *huma.Param {
	return &huma.Param{Name: headerMinSequence, In: "header", Schema: &huma.Schema{Type: huma.TypeInteger, Format: "uint64"},
		Description: "Imgsrv-Sequence of a write that the answer must know; waits for it, or answers 503 with Retry-After"}
}

func bytesParameters() []*huma.Param {
	return []*huma.Param{headerParameter("Range", "Parts of the file (RFC 9110)", "bytes=0-1023", false),
		headerParameter("If-Range", "ETag that the Range belongs to; if it isn't the file's any more, the whole file comes", "", false),
		headerParameter("If-None-Match", "ETag of a file that the client has", "", false), minSequenceParameter()}
}

func bytesResponses(method string) map[string]*huma.Response {
	out := responses("200", "The file", 400, 401, 404, 412, 416, 429, 503)
	text := func(description string) *huma.Param {
		return &huma.Param{Description: description, Schema: &huma.Schema{Type: huma.TypeString}}
	}
	headers := map[string]*huma.Param{
		"ETag": text(`The digest: "sha256:<64 hex>"`), "Repr-Digest": text("The digest in base64 (RFC 9530)"), "Accept-Ranges": text("bytes"),
		"Content-Disposition": text("The name to save it under"), "Cache-Control": text("immutable for a version or digest, no-cache for an alias"),
	}
	out["200"].Headers = headers
	part := &huma.Response{Description: "The parts that Range asks for", Headers: headers}
	if method == http.MethodGet {
		out["200"].Content = map[string]*huma.MediaType{"application/octet-stream": binary()}
		part.Content = map[string]*huma.MediaType{"application/octet-stream": binary(), "multipart/byteranges": binary()}
	}
	return with(with(out, "206", part), "304", &huma.Response{Description: "The client has it"})
}

func binary() *huma.MediaType {
	return &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}}
}

func responses(status, description string, problems ...int) map[string]*huma.Response {
	out := map[string]*huma.Response{status: {Description: description}}
	for _, code := range problems {
		out[fmt.Sprint(code)] = &huma.Response{Description: http.StatusText(code), Content: map[string]*huma.MediaType{
			"application/problem+json": {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}}}}
	}
	return out
}

func with(out map[string]*huma.Response, status string, response *huma.Response) map[string]*huma.Response {
	out[status] = response
	return out
}
