package access

import (
	"context"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// PathTokenBase is the path below which a token stands in the path: /r/{token}/streams/v1/index.json. It is for clients
// that can send nothing else.
const PathTokenBase = "/r/"

// hidden stands for a token where a path is shown.
const hidden = "…"

// pathTokenShape is what a token may be made of; what is written otherwise isn't one.
var pathTokenShape = regexp.MustCompile(`^[A-Za-z0-9_-]{1,200}$`)

type pathTokenKey struct{}

// PathToken takes the token out of a path below [PathTokenBase], so that nobody inside, be it a log, a metric, a problem
// document or a redirect, ever sees it: the request goes on with the rest as its path, and the token in its context. It has to be
// the outermost of all handlers.
//
// That is for reading what a simplestreams remote consists of: its documents and the files that they list. Everything else below
// the base goes on as one path where there is nothing. Who the token belongs to, and whether it is any good, isn't
// looked at here.
func PathToken(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Referer(), PathTokenBase) { // the address of one of those requests
			r = r.WithContext(r.Context())
			r.Header = r.Header.Clone()
			r.Header.Del("Referer")
		}
		if !strings.HasPrefix(r.URL.Path, PathTokenBase) {
			next.ServeHTTP(w, r)
			return
		}
		// What is answered here isn't for others, and its address isn't either.
		w.Header().Set("Referrer-Policy", "no-referrer")
		token, rest := cutPathToken(r)
		u := *r.URL
		u.Path, u.RawPath = rest, ""
		inner := r.WithContext(context.WithValue(r.Context(), pathTokenKey{}, token))
		inner.URL, inner.RequestURI = &u, u.RequestURI()
		inner.Header = r.Header.Clone()
		inner.Header.Del("Authorization") // one request, one token
		next.ServeHTTP(w, inner)
	})
}

// PathTokenFrom is the token that stood in the path of a request; ok says whether the request came that way.
func PathTokenFrom(ctx context.Context) (token string, ok bool) {
	token, ok = ctx.Value(pathTokenKey{}).(string)
	return token, ok
}

// NothingHere is the problem of a path that nothing is behind.
func NothingHere() error {
	return problem.New(events.CodeNotFound, "there is nothing at this path; /openapi.yaml lists what there is")
}

// cutPathToken gives the token and the path after it; a token "" and a path where there is nothing for what can't be read so.
func cutPathToken(r *http.Request) (token, rest string) {
	// Decoded: the token has no character that needs escaping, and neither have the names in the documents.
	token, rest, _ = strings.Cut(strings.TrimPrefix(r.URL.Path, PathTokenBase), "/")
	rest = "/" + rest
	if r.Method != http.MethodGet && r.Method != http.MethodHead || !pathTokenShape.MatchString(token) || !inRemote(rest) ||
		(&url.URL{Path: rest}).EscapedPath() != rest {
		return "", PathTokenBase + hidden
	}
	return token, rest
}

// inRemote says whether a path is one of a simplestreams remote: /streams/v1/… or a file of a version.
func inRemote(p string) bool {
	if path.Clean(p) != p {
		return false
	}
	if strings.HasPrefix(p, "/streams/v1/") {
		return true
	}
	part := strings.Split(p, "/")
	return len(part) == 10 && part[1] == "api" && part[2] == "images" && part[4] == "versions" && part[6] == "variants" && part[8] == "formats"
}

// longToken is what looks like a token of ours.
var longToken = regexp.MustCompile(tokenPrefix + `[A-Za-z0-9_-]{20,}`)

// ShownPath is the path of a request as it may be logged: with /r/… where a token stood, and without one that was put
// somewhere else by mistake.
func ShownPath(r *http.Request) string {
	shown := longToken.ReplaceAllString(r.URL.Path, hidden)
	if token, ok := PathTokenFrom(r.Context()); ok && token != "" {
		return PathTokenBase + hidden + shown
	}
	return shown
}
