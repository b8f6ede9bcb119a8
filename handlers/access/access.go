// Package access says who makes a request and what they may do. Today there is one principal, the admin
// whose token the first start makes; principals with roles will come in here, and nowhere else.
package access

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// tokenPrefix makes a leaked token recognisable to scanners.
const tokenPrefix = "imgsrv_"

// Principal is who makes a request. The zero value is somebody without credentials.
type Principal struct {
	Name   string // "" for somebody without credentials
	grants []events.Grant
}

// NewPrincipal is somebody who holds these roles.
func NewPrincipal(name string, grants ...events.Grant) Principal {
	return Principal{Name: name, grants: grants}
}

// May says whether the principal holds a role on an image, by a grant for the whole server or for a pattern
// that the image matches. Of a public image everybody is a reader; that isn't asked here.
func (p Principal) May(role events.Role, image string) bool {
	return image != "" && slices.ContainsFunc(p.grants, func(g events.Grant) bool { return g.Covers(role, image) })
}

// MayServer says whether the principal holds a role on the whole server.
func (p Principal) MayServer(role events.Role) bool {
	return slices.ContainsFunc(p.grants, func(g events.Grant) bool { return g.Covers(role, "") })
}

// MaySomewhere says whether the principal holds a role on any image at all: the door before the body is read.
func (p Principal) MaySomewhere(role events.Role) bool {
	return slices.ContainsFunc(p.grants, func(g events.Grant) bool {
		g.Images = ""
		return g.Covers(role, "")
	})
}

// MayWrite says whether the principal may upload, publish and move aliases of every image.
//
// It goes once every caller asks May(events.RolePublisher, image).
func (p Principal) MayWrite() bool { return p.MayServer(events.RolePublisher) }

// MaySeePrivate says whether the principal may see all private images.
//
// It goes once every caller asks May(events.RoleReader, image).
func (p Principal) MaySeePrivate() bool { return p.MayServer(events.RoleReader) }

// Guard knows the token's hash.
type Guard struct{ admin [sha256.Size]byte }

// NewGuard makes a guard of the admin's token.
func NewGuard(adminToken string) *Guard { return &Guard{admin: sha256.Sum256([]byte(adminToken))} }

// Authenticate finds out who makes a request. Without an Authorization header it is nobody, which is no
// error; with one that isn't ours the error is a 401.
func (g *Guard) Authenticate(r *http.Request) (Principal, error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return Principal{}, nil
	}
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return Principal{}, problem.New(problem.CodeUnauthorized, "the Authorization header has to be: Bearer TOKEN")
	}
	sum := sha256.Sum256([]byte(strings.TrimSpace(token)))
	if subtle.ConstantTimeCompare(sum[:], g.admin[:]) != 1 {
		return Principal{}, problem.New(problem.CodeUnauthorized, "the token is unknown")
	}
	return NewPrincipal("admin", events.Grant{Role: events.RoleAdmin}), nil
}

// Writer is Authenticate for requests that change something: nobody is a 401, a principal without the
// right a 403.
func (g *Guard) Writer(r *http.Request) (Principal, error) {
	p, err := g.Authenticate(r)
	switch {
	case err != nil:
		return p, err
	case p.Name == "":
		return p, problem.New(problem.CodeUnauthorized, "writing needs the header Authorization: Bearer TOKEN; the admin's token is in admin.token in the server's data folder")
	case !p.MayWrite():
		return p, problem.New(problem.CodeForbidden, "this token may not write")
	}
	return p, nil
}

type (
	contextKey  struct{}
	recorderKey struct{}
)

// With carries the principal to the handler.
func With(ctx context.Context, p Principal) context.Context {
	if seen, ok := ctx.Value(recorderKey{}).(*Principal); ok {
		*seen = p
	}
	return context.WithValue(ctx, contextKey{}, p)
}

// Record lets who stands outside of authentication, as the access log does, see whom With has named inside,
// once the handler has returned. Both belong to one request and one goroutine.
func Record(ctx context.Context) (context.Context, *Principal) {
	seen := new(Principal)
	return context.WithValue(ctx, recorderKey{}, seen), seen
}

// From is the principal of a request's context; nobody where none was put.
func From(ctx context.Context) Principal {
	p, _ := ctx.Value(contextKey{}).(Principal)
	return p
}

// AdminToken reads the admin's token from a file, or makes one and keeps it there (mode 0600). made says
// that it is new, and should be shown, once.
func AdminToken(path string) (token string, made bool, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		token = strings.TrimSpace(string(data))
		if token == "" {
			return "", false, fmt.Errorf("%s is empty: remove it, and a new token is made", path)
		}
		return token, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("read the admin's token: %w", err)
	}
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return "", false, fmt.Errorf("make the admin's token: %w", err)
	}
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	if err := writePrivate(path, []byte(token+"\n")); err != nil {
		return "", false, fmt.Errorf("keep the admin's token: %w", err)
	}
	return token, true, nil
}

// writePrivate writes a file that only its owner may read, whole or not at all.
func writePrivate(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".token-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // gone after the rename
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
