// Package problem turns refusals and failures into problem details (RFC 9457): one table says which
// code has which status. It knows the codes of package events and nothing of routes.
package problem

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// TypeBase begins each problem's type URI; the page of that name in the docs describes it.
const TypeBase = "https://imgsrv.github.io/imgsrv/problems/"

// HeaderCode has the problem's code too, for who asks by HEAD and gets no document.
const HeaderCode = "Imgsrv-Problem"

// ContentType of a problem document.
const ContentType = "application/problem+json"

// The codes of problems that no rule of package events gives.
const (
	CodeBadRequest     events.Code = "bad-request"
	CodeUnauthorized   events.Code = "unauthorized"
	CodeForbidden      events.Code = "forbidden"
	CodeTooLarge       events.Code = "too-large"
	CodeGone           events.Code = "gone"
	CodeUnavailable    events.Code = "unavailable"
	CodeOverloaded     events.Code = "overloaded"
	CodeNotYet         events.Code = "not-yet" // a read asked for a sequence that isn't projected yet
	CodeStorageFull    events.Code = "storage-full"
	CodeMethod         events.Code = "method-not-allowed"
	CodeUnsupported    events.Code = "unsupported-media-type"
	CodeOffsetMismatch events.Code = "offset-mismatch"
	CodeLocked         events.Code = "locked"
	CodeRange          events.Code = "range-not-satisfiable"
	CodePrecondition   events.Code = "precondition-failed"
	CodeTimeout        events.Code = "request-timeout"
	CodeRebuilding     events.Code = "rebuild-running"
	CodeNotEmpty       events.Code = "not-empty"
	CodeInternal       events.Code = "internal-error"
	CodeBlobDamaged    events.Code = "blob-damaged" // the bytes are lost; none of them is sent

	CodeOperationRunning events.Code = "operation-running"

	CodeTooManyRequests events.Code = "too-many-requests"
	CodeTooManyUploads  events.Code = "too-many-uploads"
	CodeTooManySessions events.Code = "too-many-sessions"
	CodeQuota           events.Code = "quota-exhausted"
)

type entry struct {
	status int
	title  string
}

// table is the only place where a code meets a status. What is not in it is 500.
var table = map[events.Code]entry{
	events.CodeInvalid:           {http.StatusUnprocessableEntity, "The request breaks a rule"},
	events.CodeNotFound:          {http.StatusNotFound, "Not found"},
	events.CodeFormatExists:      {http.StatusConflict, "The format exists"},
	events.CodeVersionExists:     {http.StatusConflict, "The version exists"},
	events.CodeVersionInProgress: {http.StatusConflict, "The version is being published"},
	events.CodeIdempotencyReuse:  {http.StatusUnprocessableEntity, "The idempotency key was used for another request"},
	events.CodeVisibility:        {http.StatusConflict, "The image has another visibility"},
	events.CodeAliasClash:        {http.StatusConflict, "The name is taken"},
	events.CodeSessionClosed:     {http.StatusConflict, "The upload session is closed"},
	events.CodeFileMismatch:      {http.StatusUnprocessableEntity, "The file is not the declared one"},
	events.CodeFileComplete:      {http.StatusConflict, "The file is complete"},
	events.CodePublishing:        {http.StatusConflict, "The publication has begun"},
	events.CodeJobNotFailed:      {http.StatusConflict, "The job has not failed"},
	events.CodeJobEnded:          {http.StatusConflict, "The job has ended"},
	events.CodeJobRefused:        {http.StatusConflict, "The content was refused"},
	events.CodeStepOutOfOrder:    {http.StatusConflict, "The job has moved on"},
	events.CodeSkippedAlready:    {http.StatusConflict, "The event is skipped already"},
	events.CodeAliasInUse:        {http.StatusConflict, "Aliases name the version"},
	events.CodeWithdrawn:         {http.StatusGone, "The version is withdrawn"},
	events.CodeCollected:         {http.StatusConflict, "The bytes have been collected"},
	events.CodeSubscriberExists:  {http.StatusConflict, "The subscriber exists"},
	events.CodeMirrorExists:      {http.StatusConflict, "The mirror exists"},
	events.CodePrincipalExists:   {http.StatusConflict, "The principal exists"},
	events.CodeBuiltIn:           {http.StatusConflict, "It is built in"},
	events.CodeNotStuck:          {http.StatusConflict, "The projection does not stand at that event"},
	CodeRebuilding:               {http.StatusConflict, "The projection is being rebuilt or compared"},
	CodeBadRequest:               {http.StatusBadRequest, "The request can't be read"},
	CodeUnauthorized:             {http.StatusUnauthorized, "A token is needed"},
	CodeForbidden:                {http.StatusForbidden, "The token doesn't allow this"},
	CodeTooLarge:                 {http.StatusRequestEntityTooLarge, "Too large"},
	CodeGone:                     {http.StatusGone, "Gone"},
	CodeUnavailable:              {http.StatusServiceUnavailable, "For now unavailable"},
	CodeOverloaded:               {http.StatusServiceUnavailable, "Too much to do"},
	CodeNotYet:                   {http.StatusServiceUnavailable, "Not visible yet"},
	CodeStorageFull:              {http.StatusInsufficientStorage, "The storage is full"},
	CodeMethod:                   {http.StatusMethodNotAllowed, "Method not allowed"},
	CodeUnsupported:              {http.StatusUnsupportedMediaType, "Unsupported media type"},
	CodeOffsetMismatch:           {http.StatusConflict, "The offset is not the upload's"},
	CodeLocked:                   {http.StatusLocked, "The upload is in use"},
	CodeRange:                    {http.StatusRequestedRangeNotSatisfiable, "The range is outside of the file"},
	CodePrecondition:             {http.StatusPreconditionFailed, "The precondition does not hold"},
	CodeTimeout:                  {http.StatusRequestTimeout, "The request took too long"},
	CodeOperationRunning:         {http.StatusConflict, "An operation of this kind runs"},
	CodeNotEmpty:                 {http.StatusConflict, "The stream has another history"},
	CodeTooManyRequests:          {http.StatusTooManyRequests, "Too many requests"},
	CodeTooManyUploads:           {http.StatusTooManyRequests, "Too many uploads at once"},
	CodeTooManySessions:          {http.StatusTooManyRequests, "Too many open upload sessions"},
	CodeQuota:                    {http.StatusTooManyRequests, "The bytes of this day are used up"},
	CodeBlobDamaged:              {http.StatusInternalServerError, "The file is damaged"},
	CodeInternal:                 {http.StatusInternalServerError, "Internal error"},
}

// Details is a problem document. It is an error, and satisfies huma's StatusError.
type Details struct {
	Type      string   `json:"type" format:"uri" doc:"Identifies the kind of problem; a page of the documentation"`
	Title     string   `json:"title" doc:"The kind of problem, for people"`
	Status    int      `json:"status" doc:"HTTP status code"`
	Detail    string   `json:"detail,omitempty" doc:"What is wrong with this request, and the remedy"`
	Code      string   `json:"code" doc:"The kind of problem, for programs: the last part of type"`
	Errors    []*Field `json:"errors,omitempty" doc:"The broken rules, for an invalid request"`
	StatusURL string   `json:"status_url,omitempty" doc:"The upload session, or the operation, that stands in the way"`

	retryAfter time.Duration
}

// Field is one broken rule.
type Field struct {
	Location string `json:"location" doc:"Where in the request"`
	Message  string `json:"message" doc:"The rule"`
	Value    any    `json:"value,omitempty"`
}

// Error is the problem for people.
func (d *Details) Error() string {
	if d.Detail == "" {
		return d.Title
	}
	return d.Detail
}

// GetStatus is for huma.
func (d *Details) GetStatus() int { return d.Status }

// ContentType is for huma.
func (d *Details) ContentType(string) string { return ContentType }

// GetHeaders is for huma.
func (d *Details) GetHeaders() http.Header {
	h := http.Header{"Cache-Control": {"no-store"}, HeaderCode: {d.Code}}
	if d.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(d.retryAfter.Seconds())))
	}
	if d.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", `Bearer realm="imgsrv"`)
	}
	return h
}

// New makes a problem of a code.
func New(code events.Code, detail string) *Details {
	e, ok := table[code]
	if !ok {
		e = table[CodeInternal]
	}
	d := &Details{Type: TypeBase + string(code), Title: e.title, Status: e.status, Detail: detail, Code: string(code)}
	if e.status == http.StatusServiceUnavailable {
		d.retryAfter = time.Second
	}
	return d
}

// After says when it is worth to try again; it changes the problem, and returns it. Seconds are rounded up.
func (d *Details) After(wait time.Duration) *Details {
	d.retryAfter = max(time.Second, (wait + time.Second - 1).Truncate(time.Second))
	return d
}

// OfStatus makes a problem of a status that a library chose. Several codes may share a status; the one meant
// here is the general one.
func OfStatus(status int, detail string) *Details {
	general := map[int]events.Code{
		http.StatusBadRequest: CodeBadRequest, http.StatusUnauthorized: CodeUnauthorized, http.StatusForbidden: CodeForbidden,
		http.StatusNotFound: events.CodeNotFound, http.StatusMethodNotAllowed: CodeMethod, http.StatusRequestTimeout: CodeTimeout,
		http.StatusPreconditionFailed: CodePrecondition, http.StatusRequestEntityTooLarge: CodeTooLarge,
		http.StatusUnsupportedMediaType: CodeUnsupported, http.StatusRequestedRangeNotSatisfiable: CodeRange,
		http.StatusUnprocessableEntity: events.CodeInvalid, http.StatusServiceUnavailable: CodeUnavailable,
		http.StatusTooManyRequests: CodeTooManyRequests,
	}
	code, ok := general[status]
	switch {
	case ok:
	case status >= http.StatusBadRequest && status < http.StatusInternalServerError:
		code = CodeBadRequest
	default:
		code = CodeInternal
	}
	return New(code, detail)
}

// From makes a problem of any error. What no table knows is an internal error: its text stays in the log.
func From(err error) *Details {
	var details *Details
	if errors.As(err, &details) {
		return details
	}
	var refusal *events.Error
	if errors.As(err, &refusal) {
		details = New(refusal.Code, bounded(refusal.Text))
		for _, f := range refusal.Fields {
			field := &Field{Location: f.Field, Message: bounded(f.Text)}
			if f.Value != "" {
				field.Value = bounded(f.Value)
			}
			details.Errors = append(details.Errors, field)
		}
		if refusal.Upload != "" {
			details.StatusURL = "/api/uploads/" + refusal.Upload
		}
		return details
	}
	switch {
	case errors.Is(err, jetstream.ErrImporting):
		return New(CodeUnavailable, jetstream.ErrImporting.Error())
	case errors.Is(err, jetstream.ErrUnavailable), errors.Is(err, jetstream.ErrConflict):
		return New(CodeUnavailable, "the event log is busy or doesn't answer: try again")
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return New(CodeUnavailable, "the request was not finished in time: try again")
	}
	return New(CodeInternal, "imgsrv failed to do this; its log says why")
}

// bounded cuts a text that repeats what the request said, however long that was.
func bounded(text string) string {
	const most = 2048 // bytes
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// Write answers a request with the problem of err, and logs what is our fault.
func Write(w http.ResponseWriter, r *http.Request, log *slog.Logger, err error) {
	details := From(err)
	Log(r.Context(), log, details, err)
	h := w.Header()
	for name, values := range details.GetHeaders() {
		h[name] = values
	}
	h.Set("Content-Type", ContentType)
	for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Disposition", "ETag", "Repr-Digest", "Last-Modified"} {
		h.Del(name)
	}
	w.WriteHeader(details.Status)
	if r.Method != http.MethodHead {
		if err := json.NewEncoder(w).Encode(details); err != nil {
			log.DebugContext(r.Context(), "problem not sent", "error", err)
		}
	}
}

// Log logs an error once if it is the server's fault, not the client's.
func Log(ctx context.Context, log *slog.Logger, details *Details, err error) {
	switch {
	case details.Code == string(CodeBlobDamaged): // an error was logged when it was found; each request is no news
		log.WarnContext(ctx, "a damaged file was asked for", "error", err)
	case details.Status == http.StatusInternalServerError:
		log.ErrorContext(ctx, "request failed", "error", err)
	case details.Status > http.StatusInternalServerError:
		log.WarnContext(ctx, "request put off", "code", details.Code, "error", err)
	}
}
