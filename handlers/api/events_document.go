package api

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// handMadeEvents describes the routes of the events that aren't huma's.
func handMadeEvents() []*huma.Operation {
	anybody := []map[string][]string{{}, {securityBearer: {}}}
	writer := []map[string][]string{{securityBearer: {}}}
	query := func(name, description, example string) *huma.Param {
		p := &huma.Param{Name: name, In: "query", Description: description, Schema: &huma.Schema{Type: huma.TypeString}}
		if example != "" {
			p.Example = example
		}
		return p
	}
	content := func(mediaType string) map[string]*huma.MediaType {
		return map[string]*huma.MediaType{mediaType: {Schema: &huma.Schema{Type: huma.TypeString}}}
	}
	stream, lines := responses("200", "The events, for as long as the client listens", 400, 401, 429, 503), responses("200", "One event a line", 401, 403, 429, 503)
	stream["200"].Content, lines["200"].Content = content("text/event-stream"), content(mediaTypeLines)
	return []*huma.Operation{
		{OperationID: "follow-events", Method: http.MethodGet, Path: pathEvents, Tags: []string{tagEvents}, Security: anybody,
			Summary: "Follow the events (server-sent events)",
			Description: "Each event has its sequence as `id`, its type as `event`, and one line of JSON as `data`: sequence, id, type, time, subject, actor, correlation_id, causation_id, data. " +
				"Comments keep the connection alive. A client that is too slow is cut, and goes on with Last-Event-ID: there are never gaps. " +
				"Without a token only events that the catalog shows too: of versions, images and aliases that are public.",
			Parameters: []*huma.Param{headerParameter("Last-Event-ID", "Sequence to go on behind; 0: from the first event; absent: only new ones", "0", false),
				query("after", "Like Last-Event-ID, for clients that can't send it", ""),
				query("image", "Only about these images; several with commas, or repeated", "debian-bookworm"),
				query("type", "Only these types, or types with this beginning and *; several with commas, or repeated", "imgsrv.version.*")},
			Responses: stream},
		{OperationID: "export-events", Method: http.MethodGet, Path: pathExport, Tags: []string{tagEvents}, Security: writer,
			Summary: "Export the whole history", Description: "All events up to now as lines of JSON; Imgsrv-Sequence is the last one's.", Responses: lines},
		{OperationID: "import-events", Method: http.MethodPost, Path: pathImport, Tags: []string{tagEvents}, Security: writer,
			Summary: "Import a history into an empty stream",
			Description: "Takes the lines of an export: same order, sequences, ids and times. When it breaks in the middle, the stream has the beginning and takes nothing else; the same request goes on. " +
				"The bytes of the images don't come along.",
			RequestBody: &huma.RequestBody{Required: true, Content: content(mediaTypeLines)},
			Responses:   responses("200", "All of it is in the stream", 400, 401, 403, 409, 422, 429, 503)},
	}
}
