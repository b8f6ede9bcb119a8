// Package access says who makes a request and what they may do. It folds principals and tokens from their
// events, in memory, so that it can decide while PostgreSQL is away. It must not know routes, nor what is done
// with the rights.
package access

import (
	"context"
	"slices"

	"github.com/imgsrv/imgsrv/events"
)

// Principal is who makes a request. The zero value is somebody without credentials.
type Principal struct {
	Name    string // "" for somebody without credentials
	TokenID string // of the token that was shown; "" for other credentials

	grants []events.Grant
	within []events.Grant // where not empty, only what these give too
	alive  func() bool    // nil for credentials that can't end
}

// NewPrincipal is somebody who holds these roles.
func NewPrincipal(name string, grants ...events.Grant) Principal {
	return Principal{Name: name, grants: grants}
}

// While gives the principal credentials that can end: alive says whether they are still good.
func (p Principal) While(alive func() bool) Principal {
	p.alive = alive
	return p
}

// May says whether the principal holds a role on an image, by a grant for the whole server or for a pattern
// that the image matches. Of a public image everybody is a reader; that isn't asked here.
func (p Principal) May(role events.Role, image string) bool {
	return image != "" && p.covers(role, image)
}

// MayServer says whether the principal holds a role on the whole server.
func (p Principal) MayServer(role events.Role) bool { return p.covers(role, "") }

func (p Principal) covers(role events.Role, image string) bool {
	covers := func(g events.Grant) bool { return g.Covers(role, image) }
	return slices.ContainsFunc(p.grants, covers) && (len(p.within) == 0 || slices.ContainsFunc(p.within, covers))
}

// MaySomewhere says whether the principal may hold a role on some image: it is the door before a body is read,
// and no more than that.
func (p Principal) MaySomewhere(role events.Role) bool {
	somewhere := func(g events.Grant) bool {
		g.Images = ""
		return g.Covers(role, "")
	}
	return slices.ContainsFunc(p.grants, somewhere) && (len(p.within) == 0 || slices.ContainsFunc(p.within, somewhere))
}

// Grants are the roles that the principal holds, and, where not empty, those that its token narrows them to.
func (p Principal) Grants() (grants, within []events.Grant) {
	return slices.Clone(p.grants), slices.Clone(p.within)
}

// OnlyReads says whether all that the principal may is to read: a secret in a URL must not do more.
func (p Principal) OnlyReads() bool {
	return p.Name != "" && !p.MaySomewhere(events.RolePublisher) && !p.MaySomewhere(events.RoleOperator)
}

// Alive says whether the credentials are still good: for answers that last long.
func (p Principal) Alive() bool { return p.alive == nil || p.alive() }

// Readable says which private images the principal may read: an image has to match a pattern of each list. No
// lists: all of them; an empty list: none. The lists are sorted, so that equal rights look the same.
func (p Principal) Readable() [][]string { return p.Holds(events.RoleReader) }

// Holds is as Readable, for any role.
func (p Principal) Holds(role events.Role) [][]string {
	lists := [][]string{}
	add := func(grants []events.Grant) {
		patterns := []string{}
		for _, g := range grants {
			everywhere := g
			everywhere.Images = ""
			switch {
			case !everywhere.Covers(role, ""):
			case g.Images == "":
				return
			default:
				patterns = append(patterns, g.Images)
			}
		}
		slices.Sort(patterns)
		lists = append(lists, slices.Compact(patterns))
	}
	add(p.grants)
	if len(p.within) > 0 {
		add(p.within)
	}
	return lists
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
