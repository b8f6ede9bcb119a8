package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/catalog"
)

const (
	maxBodyBytes    = 1 << 20 // of a JSON body
	bodyReadTimeout = 30 * time.Second
	maxValueBytes   = 200 // of a refused value that a problem repeats
)

// securityBearer names the security scheme in the OpenAPI document.
const securityBearer = "token"

// humaErrors guards the two package variables in which huma keeps the constructor of its errors; there is no
// other way to make its validation answer with our problem documents.
var humaErrors sync.Once

func newHuma(router chi.Router, version string) huma.API {
	humaErrors.Do(func() {
		huma.NewError = newHumaError
		huma.NewErrorWithContext = func(ctx huma.Context, status int, text string, errs ...error) huma.StatusError {
			details := newHumaError(status, text, errs...)
			for name, values := range details.(*problem.Details).GetHeaders() {
				for _, value := range values {
					ctx.SetHeader(name, value)
				}
			}
			return details
		}
	})
	config := huma.DefaultConfig("imgsrv", version)
	// Pages from other hosts, schemas at paths of their own, $schema in every answer: none of it is wanted. The
	// document itself is served by (*server).document, since huma makes it without a lock on first use.
	config.CreateHooks, config.DocsPath, config.SchemasPath, config.OpenAPIPath = nil, "", "", ""
	config.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", nameSchema)
	config.Transformers = append(config.Transformers, keepPrivate)
	asJSON := huma.Format{Marshal: writeJSON, Unmarshal: huma.DefaultJSONFormat.Unmarshal}
	config.Formats = map[string]huma.Format{"application/json": asJSON, "json": asJSON}
	describeAPI(config.OpenAPI)
	return humachi.New(router, config)
}

// writeJSON is huma's own way, but for what is JSON already.
func writeJSON(w io.Writer, body any) error {
	if text, ok := body.(interface{ encoded() []byte }); ok {
		_, err := w.Write(text.encoded())
		return err
	}
	return huma.DefaultJSONFormat.Marshal(w, body)
}

// keepPrivate lets no cache on the way keep what somebody with credentials is answered, where the handler doesn't say what may be
// kept. huma calls it before it writes the header.
func keepPrivate(ctx huma.Context, _ string, body any) (any, error) {
	if access.From(ctx.Context()).Name != "" {
		if _, w := humachi.Unwrap(ctx); w.Header().Get("Cache-Control") == "" {
			w.Header().Set("Cache-Control", "private, no-cache")
		}
	}
	return body, nil
}

func nameSchema(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[problem.Details]():
		return "Problem"
	case reflect.TypeFor[problem.Field]():
		return "BrokenRule"
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// newHumaError is the problem of what huma itself refuses, before a handler is called.
func newHumaError(status int, text string, errs ...error) huma.StatusError {
	if status == http.StatusInternalServerError {
		// Before a handler huma gives this for one reason only: the body broke off.
		status = http.StatusBadRequest
	}
	details := problem.OfStatus(status, text)
	for _, err := range errs[:min(len(errs), events.MaxFieldErrors)] {
		var detailer huma.ErrorDetailer
		if !errors.As(err, &detailer) {
			continue
		}
		detail := detailer.ErrorDetail()
		field := &problem.Field{Location: shorten(strings.TrimPrefix(detail.Location, "body.")), Message: shorten(detail.Message)}
		switch value := detail.Value.(type) {
		case map[string]any, []any: // may be the whole body, again for each broken rule
		default:
			field.Value = value
			if shown := fmt.Sprint(value); len(shown) > maxValueBytes {
				field.Value = strings.ToValidUTF8(shown[:maxValueBytes], "") + "…"
			}
		}
		details.Errors = append(details.Errors, field)
	}
	if len(details.Errors) == 1 {
		details.Detail = details.Errors[0].Location + ": " + details.Errors[0].Message
	} else if len(details.Errors) > 1 {
		details.Detail = fmt.Sprintf("the request breaks %d rules", len(errs))
	}
	if status == http.StatusUnsupportedMediaType {
		details.Detail = "the body is sent as JSON, with the header Content-Type: application/json"
	}
	details.Detail = shorten(details.Detail)
	return details
}

// shorten cuts what a request may have made long.
func shorten(text string) string {
	if len(text) <= 2*maxValueBytes {
		return text
	}
	return strings.ToValidUTF8(text[:maxValueBytes], "") + "…"
}

// lift makes a huma middleware of one that changes nothing but the context, or answers itself.
func lift(middleware func(http.Handler) http.Handler) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humachi.Unwrap(ctx)
		before := ctx.Context()
		if r.Context() != before { // what earlier middlewares put there
			r = r.WithContext(before)
		}
		middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if after := r.Context(); after != before {
				ctx = huma.WithContext(ctx, after)
			}
			next(ctx)
		})).ServeHTTP(w, r)
	}
}

// read registers an operation that everybody may call, though not see all of; it waits for the projections
// where the request asks for a sequence.
func read[I, O any](s *server, op huma.Operation, needed []*projections.Runner, handler func(context.Context, *I) (*O, error)) {
	op.Method = http.MethodGet
	op.Middlewares = huma.Middlewares{lift(Authenticate(s.Guard, s.Log))}
	op.Security = []map[string][]string{{}, {securityBearer: {}}} // with or without
	op.Errors = append(op.Errors, http.StatusUnauthorized, http.StatusTooManyRequests, http.StatusServiceUnavailable)
	if needed != nil {
		wait := lift(MinSequence(s.Events, s.MinSequenceWait, s.Log, needed...))
		op.Middlewares = append(op.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
			if ctx.Header(headerMinSequence) == "" {
				next(ctx)
				return
			}
			wait(ctx, next)
		})
		op.Errors = append(op.Errors, http.StatusBadRequest)
		op.Parameters = append(op.Parameters, minSequenceParameter())
	}
	register(s, op, handler)
}

// write registers an operation that needs a role. The role is looked at before anything else: where the path names
// an image, on that image; where it names none, on any, and the handler asks for the right one with
// [access.Need].
func write[I, O any](s *server, role events.Role, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	op.Middlewares = huma.Middlewares{lift(requireRole(s.Guard, s.Log, role))}
	op.Description = strings.TrimSpace(op.Description + " Takes the role " + string(role) + " of the image.")
	needCredentials(&op)
	register(s, op, handler)
}

// operate registers an operation that takes a role on the whole server, reads too.
func operate[I, O any](s *server, role events.Role, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	op.Tags = []string{tagOperate}
	if role == events.RoleAdmin {
		op.Tags = []string{tagAccess}
	}
	op.Middlewares = huma.Middlewares{lift(requireServerRole(s.Guard, s.Log, role))}
	op.Description = strings.TrimSpace(op.Description + " Takes the role " + string(role) + " on the whole server.")
	op.Errors = append(op.Errors, http.StatusNotFound)
	needCredentials(&op)
	register(s, op, handler)
}

func needCredentials(op *huma.Operation) {
	op.Security = []map[string][]string{{securityBearer: {}}}
	op.Errors = append(op.Errors, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests, http.StatusServiceUnavailable)
}

// register makes problems of a handler's errors, and logs what is our fault. What can be wrong with any body needn't be in op.Errors.
func register[I, O any](s *server, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	op.MaxBodyBytes = maxBodyBytes
	op.BodyReadTimeout = bodyReadTimeout
	if _, ok := reflect.TypeFor[I]().FieldByName("Body"); ok {
		op.Errors = append(op.Errors, http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity)
	}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := handler(ctx, in)
		if err == nil {
			return out, nil
		}
		details := problem.From(translate(err))
		problem.Log(ctx, s.Log.With("request_id", requestID(ctx)), details, err)
		if strings.HasPrefix(details.StatusURL, "/") {
			details.StatusURL = base(ctx) + details.StatusURL
		}
		return nil, details
	})
}

// refuse is register's way with errors for handlers that aren't huma's.
func (s *server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	problem.Write(w, r, s.Log.With("request_id", requestID(r.Context())), translate(err))
}

// translate names what the stores' errors are to a client.
func translate(err error) error {
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return events.Refuse(events.CodeNotFound, "%s", "there is no such thing, or it isn't published yet")
	case errors.Is(err, catalog.ErrBadCursor):
		return problem.New(problem.CodeBadRequest, "after is not what next of an earlier page said")
	case errors.Is(err, catalog.ErrUnavailable):
		return problem.New(problem.CodeUnavailable, "the database doesn't answer; uploads and publications go on, so try again")
	case blob.IsFull(err):
		return problem.New(problem.CodeStorageFull, "the storage has no space left")
	}
	return err
}
