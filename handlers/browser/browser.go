// Package browser tells browsers what they may do with the server's answers: security headers, Strict-Transport-Security, and which
// other sites' scripts may call it (CORS). It knows header names and no routes; who may do what is handlers/access's business.
package browser

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rs/cors"
)

// Config is what the operator chooses.
type Config struct {
	// HSTS is how long browsers shall use nothing but HTTPS for this host (RFC 6797, max-age), in whole seconds; 0: no such header.
	HSTS time.Duration
	// Origins are the sites whose scripts may call the server, as CheckOrigins takes them; none: CORS is off.
	Origins []string
}

// policy lets a document load nothing and be framed by nobody: what the server sends is data. A handler of pages sets its own.
const policy = "default-src 'none'; frame-ancestors 'none'"

var nosniff, policies, noReferrer = []string{"nosniff"}, []string{policy}, []string{"no-referrer"}

// preflightAge is how long browsers remember an answer to a preflight.
const preflightAge = 10 * time.Minute

// Headers that scripts of other origins may send, beside those that are always allowed.
var requestHeaders = []string{
	"Authorization", "Cache-Control", "Content-Type", "Idempotency-Key", "If-Match", "If-Modified-Since", "If-None-Match", "If-Range",
	"If-Unmodified-Since", "Imgsrv-Min-Sequence", "Last-Event-ID", "Range", "X-Request-Id",
	// tus 1.0, its extensions creation, checksum, concatenation and creation-defer-length, and the IETF draft
	"Tus-Resumable", "Upload-Checksum", "Upload-Complete", "Upload-Concat", "Upload-Defer-Length", "Upload-Draft-Interop-Version",
	"Upload-Incomplete", "Upload-Length", "Upload-Metadata", "Upload-Offset", "X-HTTP-Method-Override",
}

// Headers of answers that scripts of other origins may read, beside those that are always allowed.
var answerHeaders = []string{
	"Accept-Ranges", "Allow", "Content-Disposition", "Content-Length", "Content-Range", "ETag", "Imgsrv-At-Sequence", "Imgsrv-Problem", "Imgsrv-Sequence",
	"Link", "Location", "Repr-Digest", "Retry-After", "WWW-Authenticate", "X-Request-Id",
	"Tus-Checksum-Algorithm", "Tus-Extension", "Tus-Max-Size", "Tus-Resumable", "Tus-Version", "Upload-Complete", "Upload-Concat",
	"Upload-Defer-Length", "Upload-Draft-Interop-Version", "Upload-Expires", "Upload-Incomplete", "Upload-Length", "Upload-Limit",
	"Upload-Metadata", "Upload-Offset",
}

// CheckOrigins refuses what no browser sends as an Origin header (RFC 6454): each has to be SCHEME://HOST[:PORT], or "*", any
// site, alone.
func CheckOrigins(origins []string) error {
	for _, origin := range origins {
		if origin == "*" {
			if len(origins) > 1 {
				return fmt.Errorf("* means every origin, so it stands alone, not beside %d more", len(origins)-1)
			}
			return nil
		}
		u, err := url.Parse(origin)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil ||
			strings.Contains(origin, "*") || !strings.EqualFold(origin, u.Scheme+"://"+u.Host) {
			return fmt.Errorf("an origin is SCHEME://HOST[:PORT], without a path, such as https://images.example, not %q", origin)
		}
	}
	return nil
}

// Middleware sets the headers on every answer of a handler, before the handler runs, which may so set others in their place; and it
// answers preflights itself, where CORS is on.
func Middleware(cfg Config) func(http.Handler) http.Handler {
	share := func(next http.Handler) http.Handler { return next }
	if len(cfg.Origins) > 0 {
		share = cors.New(cors.Options{
			AllowedOrigins: cfg.Origins,
			AllowedMethods: []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete},
			AllowedHeaders: requestHeaders, ExposedHeaders: answerHeaders, MaxAge: int(preflightAge.Seconds()),
			// Client certificates and the password of a basic authentication are what a browser adds by itself: only for sites with a name.
			AllowCredentials: cfg.Origins[0] != "*",
		}).Handler
	}
	hsts := ""
	if seconds := int64(cfg.HSTS.Seconds()); seconds > 0 {
		hsts = "max-age=" + strconv.FormatInt(seconds, 10)
	}
	return func(next http.Handler) http.Handler {
		shared := share(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h := w.Header()
			// Values that all answers share: whoever sets another one puts it in their place, and adding copies.
			h["X-Content-Type-Options"] = nosniff
			h["Content-Security-Policy"] = policies
			h["Referrer-Policy"] = noReferrer // a path may hold a secret
			if hsts != "" && r.TLS != nil {
				h.Set("Strict-Transport-Security", hsts)
			}
			shared.ServeHTTP(w, r)
		})
	}
}
