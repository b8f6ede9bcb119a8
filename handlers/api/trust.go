package api

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/access/oidc"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// Paths of trust rules, and of the exchange of an OIDC token.
const (
	pathTrustRules = "/api/trust-rules"
	pathTrustRule  = pathTrustRules + "/{id}"
	pathExchange   = pathTokens + "/exchange"
)

type addTrustInput struct {
	Body struct {
		Name     string            `json:"name" doc:"For people; part of the principals' names" example:"github-main"`
		Issuer   string            `json:"issuer" doc:"URL of the issuer, exactly as in the token's iss" example:"https://token.actions.githubusercontent.com"`
		Audience string            `json:"audience" doc:"What the token's aud has to hold" example:"https://images.example.org"`
		Claims   map[string]string `json:"claims" doc:"What the token has to say, by the claims' names; * stands for any characters" example:"{\"repository\": \"acme/images\", \"ref\": \"refs/heads/main\"}"`
		Roles    []roleGrant       `json:"roles" nullable:"false" doc:"What such a token allows"`
		TokenTTL string            `json:"token_ttl,omitempty" doc:"How long a token lives at most that comes in exchange, from 1m to 24h; absent: 1h" example:"2h"`
	}
}

type trustInput struct {
	ID string `path:"id" example:"0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2c"`
}

type trustAddedOutput struct {
	Location string `header:"Location" doc:"The rule"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event"`
	Body     trustStatus
}

type trustOutput struct{ Body trustStatus }

type trustsOutput struct {
	Body struct {
		Rules []trustStatus `json:"trust_rules" nullable:"false" doc:"In the order in which they were added"`
	}
}

type trustStatus struct {
	ID       string            `json:"id" format:"uuid"`
	Name     string            `json:"name"`
	Issuer   string            `json:"issuer" format:"uri"`
	Audience string            `json:"audience"`
	Claims   map[string]string `json:"claims"`
	Roles    []roleGrant       `json:"roles" nullable:"false"`
	TokenTTL string            `json:"token_ttl" doc:"How long a token lives at most that comes in exchange" example:"1h0m0s"`
	AddedBy  string            `json:"added_by"`
	AddedAt  time.Time         `json:"added_at"`
}

type exchangeInput struct {
	Body *struct {
		Image string `json:"image,omitempty" doc:"What is going to be published: of several rules that the token satisfies, the oldest counts that covers it" example:"acme-web"`
		TTL   string `json:"ttl,omitempty" doc:"How long the token is to live; absent, and at most: what the rule allows" example:"30m"`
	} `required:"false"`
}

// trustRules registers, for admins, so each with 401, 403 and 503: GET /api/trust-rules: 200; POST: 201 with Location and
// Imgsrv-Sequence, 422; GET /api/trust-rules/{id}: 200, 404; DELETE: 204 with Imgsrv-Sequence, 404. And for whoever brings an
// OIDC token POST /api/tokens/exchange: 201, 401 no rule is satisfied, 422, 503 also where the token's issuer doesn't answer.
func (s *server) trustRules() {
	body := []int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity}
	administer(s, huma.Operation{OperationID: "list-trust-rules", Method: http.MethodGet, Path: pathTrustRules, Summary: "List trust rules"}, s.listTrust)
	administer(s, huma.Operation{OperationID: "add-trust-rule", Method: http.MethodPost, Path: pathTrustRules, DefaultStatus: http.StatusCreated,
		Summary: "Trust an OIDC issuer's tokens",
		Description: "Whoever brings a token of the issuer for the audience, with all these claims, gets the roles: so a CI job publishes without a stored secret. " +
			"The role admin can't be had in this way.", Errors: body}, s.addTrust)
	administer(s, huma.Operation{OperationID: "get-trust-rule", Method: http.MethodGet, Path: pathTrustRule, Summary: "Look at a trust rule"}, s.getTrust)
	administer(s, huma.Operation{OperationID: "remove-trust-rule", Method: http.MethodDelete, Path: pathTrustRule, DefaultStatus: http.StatusNoContent,
		Summary: "Remove a trust rule", Description: "It counts no more at once, on every node, nor do the tokens that came by it."}, s.removeTrust)
	op := huma.Operation{OperationID: "exchange-token", Method: http.MethodPost, Path: pathExchange, DefaultStatus: http.StatusCreated, Tags: []string{tagAccess},
		Summary: "Exchange an OIDC token for one of this server",
		Description: "The OIDC token is the bearer token of the request. The answer has a token with the roles of one trust rule, this once; it ends with the rule, and by itself " +
			"when its time is over. For uploads that take longer than a CI platform's token lives.",
		Errors:      append(body, http.StatusUnauthorized, http.StatusServiceUnavailable),
		Security:    []map[string][]string{{securityBearer: {}}},
		Middlewares: huma.Middlewares{lift(s.identify)}}
	register(s, op, s.exchange)
}

type identityKey struct{}

// identify checks the OIDC token that a request brings before anything else is looked at. A token of this server's own
// isn't one: it would live for ever by being exchanged again and again.
func (s *server) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			problem.Write(w, r, s.Log, problem.New(problem.CodeUnauthorized, "this needs an OIDC token, in the header Authorization: Bearer TOKEN"))
			return
		}
		who, err := s.OIDC.Verify(r.Context(), strings.TrimSpace(token))
		if err != nil {
			problem.Write(w, r, s.Log, err)
			return
		}
		ctx := access.With(r.Context(), who.Principal)
		next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, identityKey{}, who)))
	})
}

func (s *server) listTrust(context.Context, *struct{}) (*trustsOutput, error) {
	out := new(trustsOutput)
	out.Body.Rules = []trustStatus{}
	for _, t := range s.TrustRules.Living() {
		out.Body.Rules = append(out.Body.Rules, statusOfTrust(t))
	}
	return out, nil
}

func (s *server) getTrust(_ context.Context, in *trustInput) (*trustOutput, error) {
	rules := s.TrustRules.Living()
	i := slices.IndexFunc(rules, func(t events.Trust) bool { return t.ID == in.ID })
	if i < 0 {
		return nil, missing("there is no trust rule %q", in.ID)
	}
	return &trustOutput{Body: statusOfTrust(rules[i])}, nil
}

func (s *server) addTrust(ctx context.Context, in *addTrustInput) (*trustAddedOutput, error) {
	t := events.Trust{ID: uuid.Must(uuid.NewV7()).String(), Name: in.Body.Name, Issuer: in.Body.Issuer, Audience: in.Body.Audience, Claims: in.Body.Claims,
		Grants: grantsOf(in.Body.Roles), Lifetime: events.Lifetime{AddedBy: access.From(ctx).Name, AddedAt: s.Clock().UTC()}}
	ttl, err := durationOf("token_ttl", in.Body.TokenTTL)
	if err != nil {
		return nil, err
	}
	if t.TokenTTL = int64(ttl / time.Second); ttl != 0 && t.TokenTTL == 0 {
		t.TokenTTL = 1 // below the least, and not the default
	}
	changes, err := events.AddTrust(t, s.TrustRules.Living(), events.Current[events.Trust]{})
	if err != nil {
		return nil, err
	}
	sequence, err := s.Events.Append(ctx, jetstream.Cause{Actor: t.AddedBy}, changes...)
	if err != nil {
		return nil, err
	}
	if err := s.TrustRules.Wait(ctx, sequence); err != nil {
		return nil, err
	}
	return &trustAddedOutput{Location: base(ctx) + pathTrustRules + "/" + t.ID, Sequence: uint64(sequence), Body: statusOfTrust(t)}, nil
}

func (s *server) removeTrust(ctx context.Context, in *trustInput) (*removedOutput, error) {
	if uuid.Validate(in.ID) != nil {
		return nil, missing("there is no trust rule %q", in.ID)
	}
	who := access.From(ctx).Name
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: who}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Events.Trust(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		return events.RemoveTrust(current, in.ID, who, s.Clock().UTC())
	})
	if err != nil {
		return nil, err
	}
	if err := s.TrustRules.Wait(ctx, sequence); err != nil {
		return nil, err
	}
	return &removedOutput{Sequence: uint64(sequence)}, nil
}

func (s *server) exchange(ctx context.Context, in *exchangeInput) (*issuedOutput, error) {
	who, ok := ctx.Value(identityKey{}).(oidc.Identity)
	if !ok {
		return nil, errors.New("the exchange was reached without an identity")
	}
	rule, life := who.Rules[0], time.Duration(0)
	if in.Body != nil {
		image := in.Body.Image
		if i := slices.IndexFunc(who.Rules, func(t events.Trust) bool {
			return access.NewPrincipal("", t.Grants...).May(events.RolePublisher, image)
		}); i > 0 {
			rule = who.Rules[i]
		}
		var err error
		if life, err = durationOf("ttl", in.Body.TTL); err != nil {
			return nil, err
		}
	}
	if life == 0 || life > rule.TokenLife() {
		life = rule.TokenLife()
	}
	now := s.Clock().UTC()
	secret, hash := access.NewToken()
	t := events.Token{ID: uuid.Must(uuid.NewV7()).String(), Principal: who.Name(rule), Trust: rule.ID, Name: "exchanged by rule " + rule.Name, Hash: hash, Grants: rule.Grants,
		ExpiresAt: now.Add(life), IssuedBy: who.Name(rule), IssuedAt: now}
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: t.IssuedBy}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Events.Trust(ctx, rule.ID)
		if err != nil {
			return nil, err
		}
		if current.State.Removed { // and not heard of here
			return nil, problem.New(problem.CodeUnauthorized, "the trust rule that the token satisfies was just removed")
		}
		return events.IssueToken(t, events.Current[events.Principal]{}, now)
	})
	if err != nil {
		return nil, err
	}
	return s.issued(ctx, t, secret, sequence)
}

// durationOf reads a positive duration of a request; 0 where none is given.
func durationOf(field, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, &events.Error{Code: events.CodeInvalid, Text: field + " is a positive duration such as 90m", Fields: []events.FieldError{
			{Field: field, Text: "a positive duration such as 90m", Value: text}}}
	}
	return d, nil
}

func statusOfTrust(t events.Trust) trustStatus {
	return trustStatus{ID: t.ID, Name: t.Name, Issuer: t.Issuer, Audience: t.Audience, Claims: t.Claims, Roles: rolesOf(t.Grants), TokenTTL: t.TokenLife().String(),
		AddedBy: t.AddedBy, AddedAt: t.AddedAt.UTC()}
}
