package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// requestIDHeader names a request across logs. A client's own is kept if it is harmless.
const requestIDHeader = "X-Request-Id"

// scope is what all that a request leads to wants to know of it.
type scope struct {
	requestID string
	baseURL   string
	caller    *access.Principal // once that is known
}

type scopeKey struct{}

// withScope gives each request an id, in the answer's X-Request-Id and in the log, and finds out how its client calls this server.
func withScope(next http.Handler) http.Handler {
	harmless := regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.Header.Get(requestIDHeader)
		if id == "" || !harmless.MatchString(id) || access.LooksLikeToken(id) {
			id = uuid.Must(uuid.NewV7()).String()
		}
		w.Header().Set(requestIDHeader, id)
		ctx, caller := access.Record(r.Context())
		next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, scopeKey{}, &scope{id, baseURL(r), caller})))
	})
}

func scopeOf(ctx context.Context) *scope {
	if s, ok := ctx.Value(scopeKey{}).(*scope); ok {
		return s
	}
	return &scope{caller: new(access.Principal)}
}

// requestID is the id of the request of a context; "" outside of withScope.
func requestID(ctx context.Context) string { return scopeOf(ctx).requestID }

// wrap makes a writer that counts, and keeps what the connection can do: io.ReaderFrom (sendfile), Flusher,
// Hijacker and what http.ResponseController finds.
func wrap(w http.ResponseWriter, r *http.Request) middleware.WrapResponseWriter {
	if wrapped, ok := w.(middleware.WrapResponseWriter); ok {
		return wrapped
	}
	return middleware.NewWrapResponseWriter(w, r.ProtoMajor)
}

func statusOf(w middleware.WrapResponseWriter) int {
	if status := w.Status(); status != 0 {
		return status
	}
	return http.StatusOK // net/http's answer for a handler that wrote nothing
}

// route is the pattern that a request matched, which bounds the number of time series.
func route(r *http.Request) string {
	if rc := chi.RouteContext(r.Context()); rc != nil {
		if pattern := rc.RoutePattern(); pattern != "" {
			return pattern
		}
	}
	return "none"
}

// accessLog writes one line for each request: at debug level for the probes, which come every few seconds, and
// for what a limit refused, which would fill the log; at info level for all others. Headers and queries, where secrets may be, are never in it;
// of a token that stood in the path it says only that there was one.
func accessLog(log *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			started := time.Now()
			wrapped := wrap(w, r)
			ctx := r.Context()
			defer func() { // also for a request that panics its way out
				level := slog.LevelInfo
				if r.URL.Path == pathHealth || r.URL.Path == pathReady || statusOf(wrapped) == http.StatusTooManyRequests {
					level = slog.LevelDebug
				}
				if !log.Enabled(ctx, level) {
					return
				}
				record := slog.NewRecord(time.Now(), level, "request", 0) // without a place in the code, which costs as much as the rest
				record.AddAttrs(
					slog.String("method", r.Method), slog.String("route", route(r)), slog.String("path", access.ShownPath(r)),
					slog.Int("status", statusOf(wrapped)), slog.Int("bytes", wrapped.BytesWritten()),
					slog.Duration("duration", time.Since(started)), slog.String("principal", scopeOf(ctx).caller.Name),
					slog.String("remote", r.RemoteAddr), slog.String("request_id", requestID(ctx)), traceID(ctx))
				_ = log.Handler().Handle(ctx, record) // as slog does: there is nowhere to say it
			}()
			next.ServeHTTP(wrapped, r)
		})
	}
}

// measured measures each request's duration, by method, route pattern and status: the histogram
// http.server.request.duration of OpenTelemetry's semantic conventions for HTTP.
func measured(meter metric.Meter) (func(http.Handler) http.Handler, error) {
	duration, err := meter.Float64Histogram("http.server.request.duration", metric.WithUnit("s"),
		metric.WithDescription("Duration of HTTP requests, from the header to the last byte of the answer"),
		metric.WithExplicitBucketBoundaries(.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600))
	if err != nil {
		return nil, fmt.Errorf("make the meter of HTTP requests: %w", err)
	}
	type kind struct {
		method, route string
		status        int
	}
	var known sync.Map // of kind: metric.MeasurementOption; there are as few as there are time series
	as := func(k kind) metric.MeasurementOption {
		if option, ok := known.Load(k); ok {
			return option.(metric.MeasurementOption)
		}
		option := metric.WithAttributeSet(attribute.NewSet(attribute.String("http.request.method", k.method), attribute.String("http.route", k.route),
			attribute.Int("http.response.status_code", k.status)))
		known.Store(k, option)
		return option
	}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			started := time.Now()
			wrapped := wrap(w, r)
			defer func() {
				duration.Record(context.WithoutCancel(r.Context()), time.Since(started).Seconds(), as(kind{knownMethod(r.Method), route(r), statusOf(wrapped)}))
			}()
			next.ServeHTTP(wrapped, r)
		})
	}, nil
}

// knownMethod keeps invented methods from making time series.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return method
	}
	return "_OTHER"
}

// recovered turns a panic into a problem and logs it once, with its stack. When the answer has begun, the
// connection is cut, so that the client can't take the part for the whole.
func recovered(log *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			wrapped := wrap(w, r)
			defer func() {
				cause := recover()
				if cause == nil {
					return
				}
				if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(cause)
				}
				log.ErrorContext(r.Context(), "request panicked", "panic", cause, "method", r.Method, "route", route(r),
					"request_id", requestID(r.Context()), "stack", string(debug.Stack()))
				if wrapped.Status() != 0 {
					panic(http.ErrAbortHandler)
				}
				quiet := slog.New(slog.DiscardHandler) // it is in the log already
				problem.Write(wrapped, r, quiet, problem.New(problem.CodeInternal, "imgsrv failed to do this; its log says why"))
			}()
			next.ServeHTTP(wrapped, r)
		})
	}
}

// Authenticate finds out who makes a request and puts that into the context; a token that isn't known is a
// 401, no token is nobody.
func Authenticate(guard *access.Guard, log *slog.Logger) func(http.Handler) http.Handler {
	return authenticate(guard.Authenticate, log)
}

// requireRole is Authenticate for what needs a role: nobody is a 401, a principal without the role a 403. Where
// the route has an image, the role is needed on it.
func requireRole(guard *access.Guard, log *slog.Logger, role events.Role) func(http.Handler) http.Handler {
	return authenticate(func(r *http.Request) (access.Principal, error) {
		p, err := guard.Holder(r, role)
		if image := param(r, "image"); err == nil && image != "" {
			err = access.Need(p, image, role)
		}
		return p, err
	}, log)
}

// requireServerRole is requireRole for what concerns no single image.
func requireServerRole(guard *access.Guard, log *slog.Logger, role events.Role) func(http.Handler) http.Handler {
	return authenticate(func(r *http.Request) (access.Principal, error) {
		p, err := guard.Holder(r, role)
		if err == nil {
			err = access.Need(p, "", role)
		}
		return p, err
	}, log)
}

func authenticate(who func(*http.Request) (access.Principal, error), log *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			principal, err := who(r)
			if err != nil {
				problem.Write(w, r, log, err)
				return
			}
			w.Header().Add("Vary", "Authorization") // what one is answered isn't for another
			next.ServeHTTP(w, r.WithContext(access.With(r.Context(), principal)))
		})
	}
}

// baseURL is what the client calls this server: scheme and host of its request. Forwarded and X-Forwarded-*
// are not honoured, since anybody can send them. Without a Host header it is "", and URLs are then
// references to the same host.
func baseURL(r *http.Request) string {
	switch {
	case r.Host == "":
		return ""
	case r.TLS != nil:
		return "https://" + r.Host
	}
	return "http://" + r.Host
}

// base is the base URL of the request of a context.
func base(ctx context.Context) string { return scopeOf(ctx).baseURL }
