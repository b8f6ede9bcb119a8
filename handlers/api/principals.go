package api

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// Paths of principals.
const (
	pathPrincipals = "/api/principals"
	pathPrincipal  = pathPrincipals + "/{name}"
	pathRoles      = pathPrincipal + "/roles"
	pathWhoAmI     = "/api/whoami"
)

// roleGrant is a role as the API speaks of it.
type roleGrant struct {
	Role   string `json:"role" enum:"reader,publisher,operator,admin"`
	Images string `json:"images,omitempty" doc:"Images that the role is for, with * for any characters; absent: the whole server" example:"team-a-*"`
}

type createPrincipalInput struct {
	Body struct {
		Name        string      `json:"name" doc:"1 to 63 lower-case letters, digits, '.', '_', '@', '+' or '-'" example:"team-a-ci"`
		Kind        string      `json:"kind,omitempty" enum:"person,service" default:"service"`
		Description string      `json:"description,omitempty"`
		Roles       []roleGrant `json:"roles,omitempty" nullable:"false"`
	}
}

type principalInput struct {
	Name string `path:"name" example:"team-a-ci"`
}

type grantRoleInput struct {
	Name string `path:"name" example:"team-a-ci"`
	Body roleGrant
}

type revokeRoleInput struct {
	Name   string `path:"name" example:"team-a-ci"`
	Role   string `query:"role" required:"true" enum:"reader,publisher,operator,admin"`
	Images string `query:"images" doc:"As the role was granted" example:"team-a-*"`
}

type principalOutput struct {
	Location string `header:"Location" doc:"The principal"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event"`
	Body     principalStatus
}

type principalsOutput struct {
	Body struct {
		Principals []principalStatus `json:"principals" nullable:"false" doc:"By name, the built-in admin first"`
	}
}

type principalStatus struct {
	Name        string      `json:"name" example:"team-a-ci"`
	Kind        string      `json:"kind" enum:"person,service"`
	Description string      `json:"description,omitempty"`
	Roles       []roleGrant `json:"roles" nullable:"false"`
	CreatedBy   string      `json:"created_by"`
	CreatedAt   *time.Time  `json:"created_at,omitempty" doc:"Absent for the built-in admin"`
}

type whoAmIOutput struct {
	Cache string `header:"Cache-Control"`
	Body  struct {
		Name    string      `json:"name" doc:"Empty for somebody without credentials" example:"team-a-ci"`
		TokenID string      `json:"token_id,omitempty"`
		Roles   []roleGrant `json:"roles" nullable:"false" doc:"What the credentials allow"`
		Within  []roleGrant `json:"within,omitempty" nullable:"false" doc:"Where given, the token allows only what is in both lists"`
	}
}

// principals registers, for admins, so each with 401, 403 and 503: GET /api/principals: 200; POST: 201 with
// Location and Imgsrv-Sequence, 409 the name is taken, 422; GET /api/principals/{name}: 200, 404; DELETE: 204 with
// Imgsrv-Sequence, 404, 409 it is built in; POST …/roles: 200, 404, 409, 422; DELETE …/roles: 200, 404, 409.
// And for everybody GET /api/whoami: 200, 401.
func (s *server) principals() {
	body := []int{http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity}
	administer(s, huma.Operation{OperationID: "list-principals", Method: http.MethodGet, Path: pathPrincipals, Summary: "List principals"}, s.listPrincipals)
	administer(s, huma.Operation{OperationID: "create-principal", Method: http.MethodPost, Path: pathPrincipals, DefaultStatus: http.StatusCreated,
		Summary: "Make a principal", Description: "A person or a service, with roles on the whole server or on the images of a pattern.", Errors: body}, s.createPrincipal)
	administer(s, huma.Operation{OperationID: "get-principal", Method: http.MethodGet, Path: pathPrincipal, Summary: "Look at a principal"}, s.getPrincipal)
	administer(s, huma.Operation{OperationID: "remove-principal", Method: http.MethodDelete, Path: pathPrincipal, DefaultStatus: http.StatusNoContent,
		Summary: "Remove a principal", Description: "All its tokens end with it.", Errors: []int{http.StatusConflict}}, s.removePrincipal)
	administer(s, huma.Operation{OperationID: "grant-role", Method: http.MethodPost, Path: pathRoles, DefaultStatus: http.StatusOK,
		Summary: "Give a principal a role", Description: "One that it has changes nothing.", Errors: body}, s.grantRole)
	administer(s, huma.Operation{OperationID: "revoke-role", Method: http.MethodDelete, Path: pathRoles, DefaultStatus: http.StatusOK,
		Summary: "Take a role from a principal", Errors: []int{http.StatusConflict, http.StatusUnprocessableEntity}}, s.revokeRole)
	read(s, huma.Operation{OperationID: "who-am-i", Path: pathWhoAmI, Tags: []string{tagAccess}, Summary: "Say who the credentials belong to"}, nil, s.whoAmI)
}

// administer registers an operation for admins.
func administer[I, O any](s *server, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	operate(s, events.RoleAdmin, op, handler)
}

func (s *server) listPrincipals(context.Context, *struct{}) (*principalsOutput, error) {
	out := &principalsOutput{}
	out.Body.Principals = []principalStatus{}
	for _, p := range s.Guard.Directory().Principals() {
		out.Body.Principals = append(out.Body.Principals, principalStatusOf(p))
	}
	return out, nil
}

func (s *server) getPrincipal(_ context.Context, in *principalInput) (*principalOutput, error) {
	p, ok := s.Guard.Directory().Principal(in.Name)
	if !ok {
		return nil, missing("there is no principal %q", in.Name)
	}
	return &principalOutput{Body: principalStatusOf(p)}, nil
}

func (s *server) createPrincipal(ctx context.Context, in *createPrincipalInput) (*principalOutput, error) {
	p := events.Principal{Name: in.Body.Name, Kind: events.PrincipalKind(in.Body.Kind), Description: in.Body.Description,
		Grants: grantsOf(in.Body.Roles), CreatedBy: access.From(ctx).Name, CreatedAt: s.Clock().UTC()}
	if p.Kind == "" {
		p.Kind = events.Service
	}
	out, err := s.decidePrincipal(ctx, p.Name, func(current events.Current[events.Principal]) ([]events.Change, error) {
		return events.CreatePrincipal(p, current)
	})
	if err == nil {
		out.Location = base(ctx) + pathPrincipals + "/" + url.PathEscape(p.Name)
	}
	return out, err
}

func (s *server) grantRole(ctx context.Context, in *grantRoleInput) (*principalOutput, error) {
	return s.decidePrincipal(ctx, in.Name, func(current events.Current[events.Principal]) ([]events.Change, error) {
		return events.GrantRole(current, in.Name, grantOf(in.Body))
	})
}

func (s *server) revokeRole(ctx context.Context, in *revokeRoleInput) (*principalOutput, error) {
	return s.decidePrincipal(ctx, in.Name, func(current events.Current[events.Principal]) ([]events.Change, error) {
		return events.RevokeRole(current, in.Name, grantOf(roleGrant{Role: in.Role, Images: in.Images}))
	})
}

func (s *server) removePrincipal(ctx context.Context, in *principalInput) (*removedOutput, error) {
	out, err := s.decidePrincipal(ctx, in.Name, func(current events.Current[events.Principal]) ([]events.Change, error) {
		return events.RemovePrincipal(current, in.Name, access.From(ctx).Name, s.Clock().UTC())
	})
	if err != nil {
		return nil, err
	}
	return &removedOutput{Sequence: out.Sequence}, nil
}

// decidePrincipal appends what a rule decides, and answers once it counts here.
func (s *server) decidePrincipal(ctx context.Context, name string, rule func(events.Current[events.Principal]) ([]events.Change, error)) (*principalOutput, error) {
	var after events.Principal
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: access.From(ctx).Name}, func(ctx context.Context) (changes []events.Change, err error) {
		var current events.Current[events.Principal]
		if events.CheckPrincipalName(name) == nil { // else no fact is about it
			if current, err = s.Events.Principal(ctx, name); err != nil {
				return nil, err
			}
		}
		after = current.State
		changes, err = rule(current)
		if err == nil && len(changes) > 0 {
			after = events.Fold(after, changes[0].Fact)
		}
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	if err := s.Guard.Directory().Wait(ctx, sequence); err != nil {
		return nil, err
	}
	return &principalOutput{Sequence: uint64(sequence), Body: principalStatusOf(after)}, nil
}

func (s *server) whoAmI(ctx context.Context, _ *struct{}) (*whoAmIOutput, error) {
	p := access.From(ctx)
	out := &whoAmIOutput{Cache: "no-store"}
	out.Body.Name, out.Body.TokenID = p.Name, p.TokenID
	grants, within := p.Grants()
	out.Body.Roles = rolesOf(grants)
	if len(within) > 0 {
		out.Body.Within = rolesOf(within)
	}
	return out, nil
}

func principalStatusOf(p events.Principal) principalStatus {
	return principalStatus{Name: p.Name, Kind: string(p.Kind), Description: p.Description, Roles: rolesOf(p.Grants), CreatedBy: p.CreatedBy, CreatedAt: timeOrNone(p.CreatedAt)}
}

func grantOf(r roleGrant) events.Grant {
	return events.Grant{Role: events.Role(r.Role), Images: r.Images}
}

func grantsOf(roles []roleGrant) []events.Grant {
	grants := []events.Grant{}
	for _, r := range roles {
		grants = append(grants, grantOf(r))
	}
	return grants
}

func rolesOf(grants []events.Grant) []roleGrant {
	roles := []roleGrant{}
	for _, g := range grants {
		roles = append(roles, roleGrant{Role: string(g.Role), Images: g.Images})
	}
	return roles
}

// somebody is the caller, where that must be somebody.
func somebody(ctx context.Context) (access.Principal, error) {
	p := access.From(ctx)
	if p.Name == "" {
		return p, problem.New(problem.CodeUnauthorized, "this needs a token, in the header Authorization: Bearer TOKEN")
	}
	return p, nil
}
