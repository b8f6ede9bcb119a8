package tus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
	tusslog "golang.org/x/exp/slog"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/tusname"
	"github.com/imgsrv/imgsrv/store/blob"
)

// Config is what the handler is made of.
type Config struct {
	Log            *jetstream.Log
	Store          *blob.Store
	Guard          *access.Guard
	MaxUploadBytes int64           // of one file; 0: no cap
	Idle           time.Duration   // a session without activity for so long expires; 0: 24 hours
	Stall          time.Duration   // a request of whose body no byte arrives for so long ends, resumably; 0: DefaultStall
	Uploads        *limits.Uploads // optional
	Intake         *limits.Intake  // optional; asked for room before an upload is created
	Logger         *slog.Logger
	Clock          func() time.Time // nil: time.Now
}

// DefaultIdle is how long an upload may rest before its session expires.
const DefaultIdle = 24 * time.Hour

// DefaultStall is how long a request may bring no byte. However slowly they come, as long as they come it goes on:
// what many slow requests can hold is bounded by their number.
const DefaultStall = time.Minute

// Handler serves [tusname.BasePath], where it is to be mounted.
type Handler struct {
	log     *jetstream.Log
	store   *blob.Store
	guard   *access.Guard
	images  imageOf
	idle    time.Duration
	stall   time.Duration
	uploads *limits.Uploads
	intake  *limits.Intake
	logger  *slog.Logger
	now     func() time.Time
	tusd    http.Handler
}

// New makes the handler.
func New(cfg Config) (*Handler, error) {
	h := &Handler{log: cfg.Log, store: cfg.Store, guard: cfg.Guard, idle: cfg.Idle, stall: cfg.Stall, uploads: cfg.Uploads, intake: cfg.Intake, logger: cfg.Logger, now: cfg.Clock}
	if h.idle == 0 {
		h.idle = DefaultIdle
	}
	if h.stall == 0 {
		h.stall = DefaultStall
	}
	if h.now == nil {
		h.now = time.Now
	}
	composer := handler.NewStoreComposer()
	composer.UseCore(dataStore{h})
	composer.UseTerminater(dataStore{h})
	composer.UseLengthDeferrer(dataStore{h})
	composer.UseLocker(newLocker())
	tusd, err := handler.NewHandler(handler.Config{
		BasePath: tusname.BasePath, StoreComposer: composer, MaxSize: cfg.MaxUploadBytes, EnableExperimentalProtocol: true,
		DisableDownload: true, DisableConcatenation: true, Cors: &handler.CorsConfig{Disable: true}, NetworkTimeout: h.stall,
		// What tusd logs per request is in the access log; what it logs as an error, answers carry.
		Logger:                     tusslog.New(tusslog.NewTextHandler(io.Discard, &tusslog.HandlerOptions{Level: tusslog.LevelError + 1})),
		PreUploadCreateCallback:    h.beforeCreate,
		PreUploadTerminateCallback: h.beforeTerminate,
		PreFinishResponseCallback:  h.beforeFinish,
	})
	if err != nil {
		return nil, fmt.Errorf("set up tusd: %w", err)
	}
	h.tusd = http.StripPrefix(tusname.BasePath, tusd)
	return h, nil
}

// ServeHTTP serves POST, HEAD, PATCH, DELETE and OPTIONS of tus 1.0 and the IETF draft. All but OPTIONS
// take the role publisher on the session's image; others' uploads are answered as if they weren't there. Errors are problem documents.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodOptions {
		principal, err := h.guard.Holder(r, events.RolePublisher)
		if err == nil {
			err = h.mayTouch(r, principal)
		}
		if err != nil {
			problem.Write(w, r, h.logger, err)
			return
		}
		r = r.WithContext(access.With(r.Context(), principal))
	}
	// Any method: tusd lets X-HTTP-Method-Override have its way.
	if r.Method == http.MethodPatch || r.ContentLength != 0 {
		done, err := h.uploads.Begin(r.Context())
		if err != nil {
			problem.Write(w, r, h.logger, err)
			return
		}
		defer done()
	}
	if r.Body != nil {
		interruptible := newBody(r, w, h.stall)
		r = r.WithContext(context.WithValue(r.Context(), bodyKey{}, interruptible))
		r.Body = interruptible
		stopWatching := context.AfterFunc(r.Context(), func() {
			if errors.Is(context.Cause(r.Context()), ErrStopping) {
				interruptible.interrupt(handler.ErrServerShutdown)
			}
		})
		defer stopWatching()
		defer interruptible.left()
	}
	answer := &answerWriter{ResponseWriter: w, request: r, expires: h.now().Add(h.idle)}
	h.tusd.ServeHTTP(answer, r)
	answer.finish(h.logger)
}

// beforeCreate finds the declared file that an upload is for, and gives the upload its ID.
func (h *Handler) beforeCreate(hook handler.HookEvent) (handler.HTTPResponse, handler.FileInfoChanges, error) {
	fail := func(err error) (handler.HTTPResponse, handler.FileInfoChanges, error) {
		return handler.HTTPResponse{}, handler.FileInfoChanges{}, h.tusError(hook.Context, err)
	}
	meta := creationMetadata(hook)
	session := meta[tusname.KeySession]
	if !events.IsID(session) || meta[tusname.KeyVariant] == "" || meta[tusname.KeyFormat] == "" {
		return fail(&events.Error{Code: events.CodeInvalid, Text: "Upload-Metadata has to be the value that POST /api/images gave for this file: it names session, variant and format",
			Fields: []events.FieldError{{Field: "header.Upload-Metadata", Text: "names session, variant and format"}}})
	}
	upload, err := h.log.Upload(hook.Context, session)
	if err != nil {
		return fail(err)
	}
	u := &upload.State
	n, ok := u.Index(meta[tusname.KeyVariant], meta[tusname.KeyFormat])
	if upload.Sequence == 0 || !ok || !access.From(hook.Context).May(events.RolePublisher, u.Image) {
		return fail(events.Refuse(events.CodeNotFound, "there is no upload session %s with a %s", session, events.FileRef{Variant: meta[tusname.KeyVariant], Format: meta[tusname.KeyFormat]}))
	}
	ref, file, _ := u.FileAt(n)
	if file.State != events.FilePending {
		return fail(events.Refuse(events.CodeFileComplete, "%s is there already", ref))
	}
	if u.State != events.SessionOpen {
		return fail(events.Refuse(events.CodeSessionClosed, "upload session %s is %s and takes no more files", u.ID, u.State))
	}
	if !hook.Upload.SizeIsDeferred && hook.Upload.Size != file.Size {
		return fail(events.Refuse(events.CodeFileMismatch, "Upload-Length is %d, declared were %d bytes for %s", hook.Upload.Size, file.Size, ref))
	}
	offset, err := h.Offset(session, n)
	if h.intake != nil {
		if err := h.intake.RoomFor(hook.Context, file.Size-offset, access.From(hook.Context).Name); err != nil {
			return fail(err)
		}
	}
	// A creation that carries bytes must not append them to what an earlier one left.
	if err == nil && offset > 0 && carriesBytes(hook.HTTPRequest.Header) {
		return fail(problem.New(problem.CodeOffsetMismatch, fmt.Sprintf("the upload exists and has %d bytes: resume it at %s", offset, tusname.Path(session, n))))
	}
	return handler.HTTPResponse{}, handler.FileInfoChanges{ID: tusname.ID(session, n), MetaData: handler.MetaData{
		tusname.KeySession: session, tusname.KeyVariant: meta[tusname.KeyVariant], tusname.KeyFormat: meta[tusname.KeyFormat]}}, nil
}

// creationMetadata is the upload's metadata; the IETF draft has no such header of its own, so there it
// may also come in the query.
func creationMetadata(hook handler.HookEvent) map[string]string {
	meta := map[string]string(hook.Upload.MetaData)
	if meta[tusname.KeySession] != "" {
		return meta
	}
	if header := hook.HTTPRequest.Header.Get("Upload-Metadata"); header != "" {
		return handler.ParseMetadataHeader(header)
	}
	found := map[string]string{}
	if u, err := url.ParseRequestURI(hook.HTTPRequest.URI); err == nil {
		for _, key := range []string{tusname.KeySession, tusname.KeyVariant, tusname.KeyFormat} {
			found[key] = u.Query().Get(key)
		}
	}
	return found
}

func carriesBytes(header http.Header) bool {
	return header.Get("Upload-Complete") != "" || header.Get("Upload-Incomplete") != "" ||
		strings.HasPrefix(header.Get("Content-Type"), "application/offset+octet-stream")
}

// beforeTerminate lets only unfinished files go: a complete one belongs to its session.
func (h *Handler) beforeTerminate(hook handler.HookEvent) (handler.HTTPResponse, error) {
	if hook.Upload.Offset == hook.Upload.Size {
		return handler.HTTPResponse{}, h.tusError(hook.Context, events.Refuse(events.CodeFileComplete, "the file is complete: delete its upload session instead"))
	}
	return handler.HTTPResponse{}, nil
}

// beforeFinish records the complete file before the last PATCH is answered.
func (h *Handler) beforeFinish(hook handler.HookEvent) (handler.HTTPResponse, error) {
	session, n, ok := parseUploadID(hook.Upload.ID)
	if !ok {
		return handler.HTTPResponse{}, handler.ErrNotFound
	}
	// The client may be gone; its bytes are here. While the event log is away this ends long before, with 503: the bytes stay,
	// and the client's next question for the offset records the file.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(hook.Context), 30*time.Second)
	defer cancel()
	if err := h.finish(ctx, session, n); err != nil {
		return handler.HTTPResponse{}, h.tusError(hook.Context, err)
	}
	return handler.HTTPResponse{}, nil
}
