package access

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// Guard finds out who makes a request.
type Guard struct {
	directory *Directory
	oidc      func(ctx context.Context, raw string) (Principal, error)
}

// NewGuard is a guard of one admin's token and nobody else: for servers without events, as tests have.
func NewGuard(adminToken string) *Guard {
	d := NewDirectory(DirectoryConfig{Logger: slog.New(slog.DiscardHandler)})
	d.AddBuiltIn(adminToken)
	return d.Guard(nil)
}

// Guard lets in whom the directory knows. oidc, where it isn't nil, is asked about bearer tokens that are JSON
// Web Tokens; its error is the answer.
func (d *Directory) Guard(oidc func(ctx context.Context, raw string) (Principal, error)) *Guard {
	return &Guard{directory: d, oidc: oidc}
}

type (
	authenticatedKey struct{}
	authentication   struct {
		principal Principal
		err       error
	}
)

// Authenticated carries what Authenticate has found out to those who ask again about the same request.
func Authenticated(ctx context.Context, p Principal, err error) context.Context {
	return context.WithValue(ctx, authenticatedKey{}, authentication{p, err})
}

// Directory is where the guard looks.
func (g *Guard) Directory() *Directory { return g.directory }

// Authenticate finds out who makes a request: by a token in the Authorization header, as a bearer or as the
// password of basic authentication (RFC 7617), or by a client certificate that the listener has verified, whose
// common name is a principal's. Without any of them it is nobody, which is no error; credentials that aren't
// good are a 401. A token that stood in the path (PathToken) is the only one that counts; one that isn't good, or may do more
// than read, is answered as a path where there is nothing: the client can do nothing else with it.
func (g *Guard) Authenticate(r *http.Request) (Principal, error) {
	if seen, ok := r.Context().Value(authenticatedKey{}).(authentication); ok {
		return seen.principal, seen.err
	}
	if token, ok := PathTokenFrom(r.Context()); ok {
		if p, why := g.directory.byToken(token); why == "" && p.OnlyReads() {
			return p, nil
		}
		return Principal{}, NothingHere()
	}
	header := r.Header.Get("Authorization")
	if header == "" {
		if p, ok := g.byCertificate(r); ok {
			return p, nil
		}
		return Principal{}, nil
	}
	scheme, token, _ := strings.Cut(header, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		return g.byToken(r.Context(), strings.TrimSpace(token))
	case strings.EqualFold(scheme, "Basic"):
		// The name is for people: the token says whose it is.
		if _, password, ok := r.BasicAuth(); ok {
			return g.byToken(r.Context(), password)
		}
		return Principal{}, problem.New(problem.CodeUnauthorized, "the Authorization header is no basic authentication: it takes the token as the password")
	}
	return Principal{}, problem.New(problem.CodeUnauthorized, "the Authorization header has to be: Bearer TOKEN")
}

func (g *Guard) byToken(ctx context.Context, token string) (Principal, error) {
	p, why := g.directory.byToken(token)
	switch {
	case why == "":
		return p, nil
	case g.oidc != nil && strings.Count(token, ".") == 2 && !strings.HasPrefix(token, tokenPrefix):
		return g.oidc(ctx, token)
	}
	return Principal{}, problem.New(problem.CodeUnauthorized, why)
}

func (g *Guard) byCertificate(r *http.Request) (Principal, bool) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Principal{}, false
	}
	// The built-in admin isn't in the list of principals, so no certificate can be its.
	return g.directory.byName(r.TLS.VerifiedChains[0][0].Subject.CommonName)
}

// Holder is Authenticate for what needs a role: nobody is a 401, somebody who holds the role nowhere a 403.
// Where the role is needed on one image, Need asks for it once the image is known.
func (g *Guard) Holder(r *http.Request, role events.Role) (Principal, error) {
	p, err := g.Authenticate(r)
	switch {
	case err != nil:
		return p, err
	case p.Name == "" && r.TLS != nil && len(r.TLS.VerifiedChains) > 0:
		return p, problem.New(problem.CodeUnauthorized, "the certificate's name "+strconv.Quote(r.TLS.VerifiedChains[0][0].Subject.CommonName)+" is no principal's, and this needs one")
	case p.Name == "":
		return p, problem.New(problem.CodeUnauthorized, "this needs a token, in the header Authorization: Bearer TOKEN; the first one is in admin.token in the server's data folder")
	case !p.MaySomewhere(role):
		return p, problem.New(problem.CodeForbidden, "this takes the role "+string(role))
	}
	return p, nil
}

// Need refuses a principal that holds none of the roles on an image; image "" asks for the whole server. The
// answer is the same whether or not there is such an image.
func Need(p Principal, image string, roles ...events.Role) error {
	for _, role := range roles {
		if image == "" && p.MayServer(role) || p.May(role, image) {
			return nil
		}
	}
	names := make([]string, len(roles))
	for i, role := range roles {
		names[i] = string(role)
	}
	where := "on the whole server"
	if image != "" {
		where = "on image " + image
	}
	return problem.New(problem.CodeForbidden, "this takes the role "+strings.Join(names, " or ")+" "+where)
}
