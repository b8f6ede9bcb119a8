package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// Paths of tokens.
const (
	pathTokens = "/api/tokens"
	pathToken  = pathTokens + "/{id}"
	pathRotate = pathToken + "/rotate"
)

type tokensInput struct {
	Ended     bool   `query:"ended" doc:"Also those that are revoked, expired or of somebody who was removed"`
	Principal string `query:"principal" doc:"Only those of this principal" example:"team-a-ci"`
}

type createTokenInput struct {
	Body struct {
		Principal string      `json:"principal,omitempty" doc:"Whose it is; absent: the caller's" example:"team-a-ci"`
		Name      string      `json:"name,omitempty" doc:"For people" example:"runner 7"`
		Roles     []roleGrant `json:"roles,omitempty" nullable:"false" doc:"Of what the principal may, only this; absent: all of it, also what it may later"`
		ExpiresIn string      `json:"expires_in,omitempty" doc:"How long the token lives; absent: until it is revoked" example:"720h"`
	}
}

type tokenInput struct {
	ID string `path:"id" format:"uuid" example:"0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"`
}

type tokensOutput struct {
	Body struct {
		Tokens []tokenStatus `json:"tokens" nullable:"false" doc:"In the order in which they were issued"`
	}
}

type tokenOutput struct{ Body tokenStatus }

type issuedOutput struct {
	Location string `header:"Location" doc:"The token, without the secret"`
	Cache    string `header:"Cache-Control"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event"`
	Body     issuedToken
}

type tokenStatus struct {
	ID        string      `json:"id" format:"uuid"`
	Principal string      `json:"principal"`
	Name      string      `json:"name,omitempty"`
	Roles     []roleGrant `json:"roles" nullable:"false" doc:"Of what the principal may, only this; none: all of it"`
	ExpiresAt *time.Time  `json:"expires_at,omitempty"`
	IssuedBy  string      `json:"issued_by"`
	IssuedAt  *time.Time  `json:"issued_at,omitempty" doc:"Absent for the token in admin.token"`
	LastUsed  string      `json:"last_used,omitempty" format:"date" doc:"The day, in UTC" example:"2026-01-31"`
	Replaces  string      `json:"replaces,omitempty" format:"uuid" doc:"The token in whose place it came"`
	Trust     string      `json:"trust,omitempty" format:"uuid" doc:"The trust rule that it hangs on"`
	Ended     string      `json:"ended,omitempty" doc:"Why the token is no longer good"`
}

type issuedToken struct {
	tokenStatus
	Token string `json:"token" doc:"The secret. It is shown this once"`
}

// tokens registers, for admins, so each with 401, 403 and 503: GET /api/tokens: 200; POST: 201 with Location and
// Imgsrv-Sequence, 404 no such principal, 422; GET /api/tokens/{id}: 200, 404, 422; POST …/rotate: 201, 404, 422;
// DELETE: 204 with Imgsrv-Sequence, 404, 422. The last three also for the bearer of that token.
func (s *server) tokens() {
	administer(s, huma.Operation{OperationID: "list-tokens", Method: http.MethodGet, Path: pathTokens, Summary: "List tokens"}, s.listTokens)
	administer(s, huma.Operation{OperationID: "create-token", Method: http.MethodPost, Path: pathTokens, DefaultStatus: http.StatusCreated, Summary: "Issue a token",
		Description: "The answer has the token, this once: imgsrv keeps only its hash.",
		Errors:      []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity}}, s.createToken)
	errs := []int{http.StatusForbidden, http.StatusNotFound, http.StatusUnprocessableEntity}
	own(s, huma.Operation{OperationID: "get-token", Method: http.MethodGet, Path: pathToken, Summary: "Look at a token", Errors: errs}, s.getToken)
	own(s, huma.Operation{OperationID: "rotate-token", Method: http.MethodPost, Path: pathRotate, DefaultStatus: http.StatusCreated, Summary: "Replace a token",
		Description: "Issues another one for the same, with as long to live, and ends the old one at once.", Errors: errs}, s.rotateToken)
	own(s, huma.Operation{OperationID: "revoke-token", Method: http.MethodDelete, Path: pathToken, DefaultStatus: http.StatusNoContent, Summary: "Revoke a token",
		Description: "It counts at once, on every node.", Errors: errs}, s.revokeToken)
}

// own registers an operation on a token that its bearer may do too.
func own[I, O any](s *server, op huma.Operation, handler func(context.Context, *I) (*O, error)) {
	op.Tags = []string{tagAccess}
	op.Middlewares = huma.Middlewares{lift(Authenticate(s.Guard, s.Log))}
	op.Description += " For admins, and for the bearer of that token."
	needCredentials(&op)
	register(s, op, handler)
}

// mayManage says whether the caller may manage a token: an admin may, and its bearer.
func mayManage(ctx context.Context, id string) error {
	p, err := somebody(ctx)
	if err == nil && p.TokenID != id {
		err = access.Need(p, "", events.RoleAdmin)
	}
	return err
}

func (s *server) listTokens(_ context.Context, in *tokensInput) (*tokensOutput, error) {
	out := &tokensOutput{}
	out.Body.Tokens = []tokenStatus{}
	tokens, ended := s.Guard.Directory().Tokens(in.Ended)
	for i, t := range tokens {
		if in.Principal == "" || t.Principal == in.Principal {
			out.Body.Tokens = append(out.Body.Tokens, tokenStatusOf(t.Token, ended[i]))
		}
	}
	return out, nil
}

func (s *server) getToken(ctx context.Context, in *tokenInput) (*tokenOutput, error) {
	if err := mayManage(ctx, in.ID); err != nil {
		return nil, err
	}
	t, ended, ok := s.Guard.Directory().Token(in.ID)
	if !ok {
		return nil, missing("there is no token %s", in.ID)
	}
	return &tokenOutput{Body: tokenStatusOf(t.Token, ended)}, nil
}

func (s *server) createToken(ctx context.Context, in *createTokenInput) (*issuedOutput, error) {
	now := s.Clock().UTC()
	secret, hash := access.NewToken()
	t := events.Token{ID: uuid.Must(uuid.NewV7()).String(), Principal: in.Body.Principal, Name: in.Body.Name, Hash: hash, Grants: grantsOf(in.Body.Roles),
		IssuedBy: access.From(ctx).Name, IssuedAt: now}
	if t.Principal == "" {
		t.Principal = t.IssuedBy
	}
	if in.Body.ExpiresIn != "" {
		ttl, err := time.ParseDuration(in.Body.ExpiresIn)
		if err != nil || ttl <= 0 {
			return nil, &events.Error{Code: events.CodeInvalid, Text: "expires_in is a positive duration such as 720h", Fields: []events.FieldError{
				{Field: "expires_in", Text: "a positive duration such as 720h", Value: in.Body.ExpiresIn}}}
		}
		t.ExpiresAt = now.Add(ttl)
	}
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: t.IssuedBy}, func(ctx context.Context) ([]events.Change, error) {
		var owner events.Current[events.Principal]
		if events.CheckPrincipalName(t.Principal) == nil {
			var err error
			if owner, err = s.Events.Principal(ctx, t.Principal); err != nil {
				return nil, err
			}
		}
		return events.IssueToken(t, owner, now)
	})
	if err != nil {
		return nil, err
	}
	return s.issued(ctx, t, secret, sequence)
}

func (s *server) rotateToken(ctx context.Context, in *tokenInput) (*issuedOutput, error) {
	if err := mayManage(ctx, in.ID); err != nil {
		return nil, err
	}
	if _, ended, ok := s.Guard.Directory().Token(in.ID); ok && ended != "" {
		return nil, missing("there is no token %s to replace: %s", in.ID, ended)
	}
	secret, hash := access.NewToken()
	id := uuid.Must(uuid.NewV7()).String()
	var next events.Token
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: access.From(ctx).Name}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.currentToken(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		var owner events.Current[events.Principal]
		if current.State.Trust == "" && events.CheckPrincipalName(current.State.Principal) == nil {
			if owner, err = s.Events.Principal(ctx, current.State.Principal); err != nil {
				return nil, err
			}
		}
		changes, err := events.RotateToken(current, owner, in.ID, id, hash, access.From(ctx).Name, s.Clock().UTC())
		if err == nil {
			next = events.Fold(next, changes[0].Fact)
		}
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	return s.issued(ctx, next, secret, sequence)
}

func (s *server) revokeToken(ctx context.Context, in *tokenInput) (*removedOutput, error) {
	if err := mayManage(ctx, in.ID); err != nil {
		return nil, err
	}
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: access.From(ctx).Name}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.currentToken(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		return events.RevokeToken(current, in.ID, access.From(ctx).Name, s.Clock().UTC())
	})
	if err != nil {
		return nil, err
	}
	if err := s.Guard.Directory().Wait(ctx, sequence); err != nil {
		return nil, err
	}
	return &removedOutput{Sequence: uint64(sequence)}, nil
}

// currentToken reads a token from the log; the one in admin.token may have no fact there yet.
func (s *server) currentToken(ctx context.Context, id string) (events.Current[events.Token], error) {
	current, err := s.Events.Token(ctx, id)
	if err == nil && current.Sequence == 0 {
		if t, _, ok := s.Guard.Directory().Token(id); ok && t.BuiltIn {
			current.State = t.Token
		}
	}
	return current, err
}

// issued answers with a new token once it counts here.
func (s *server) issued(ctx context.Context, t events.Token, secret string, sequence events.Sequence) (*issuedOutput, error) {
	if err := s.Guard.Directory().Wait(ctx, sequence); err != nil {
		return nil, problem.New(problem.CodeUnavailable, "the token "+t.ID+" was issued and isn't known here yet: revoke it, and ask for another one")
	}
	return &issuedOutput{Location: base(ctx) + pathTokens + "/" + t.ID, Cache: "no-store", Sequence: uint64(sequence),
		Body: issuedToken{tokenStatus: tokenStatusOf(t, ""), Token: secret}}, nil
}

func tokenStatusOf(t events.Token, ended string) tokenStatus {
	status := tokenStatus{ID: t.ID, Principal: t.Principal, Name: t.Name, Roles: rolesOf(t.Grants), ExpiresAt: timeOrNone(t.ExpiresAt),
		IssuedBy: t.IssuedBy, IssuedAt: timeOrNone(t.IssuedAt), Replaces: t.Replaces, Trust: t.Trust, Ended: ended}
	if !t.LastUsed.IsZero() {
		status.LastUsed = t.LastUsed.Format(time.DateOnly)
	}
	return status
}
