package oidc_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access/oidc"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/oidctest"
)

// clock is a time that tests move.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.at.Store(time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

// setup is a verifier with one rule for one issuer.
type setup struct {
	*oidc.Verifier
	t      *testing.T
	issuer *oidctest.Issuer
	key    oidctest.Key
	clock  *clock
	rules  []events.Trust
}

func newSetup(t *testing.T, key oidctest.Key) *setup {
	t.Helper()
	s := &setup{t: t, issuer: oidctest.New(t, key), key: key, clock: newClock()}
	s.rules = []events.Trust{s.rule()}
	v, err := oidc.New(oidc.Config{Rules: func() []events.Trust { return s.rules }, Logger: slog.New(slog.DiscardHandler), CAFile: s.issuer.CAFile, Clock: s.clock.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = v.Close() })
	s.Verifier = v
	return s
}

func (s *setup) rule() events.Trust {
	return events.Trust{ID: "1", Name: "github-main", Issuer: s.issuer.URL, Audience: "https://images.example.org",
		Claims: map[string]string{"repository": "acme/images", "ref": "refs/heads/*"}, Grants: []events.Grant{{Role: events.RolePublisher, Images: "acme-*"}}}
}

func (s *setup) token(changes map[string]any) string {
	s.t.Helper()
	return s.key.Sign(s.t, oidctest.JSON(s.t, s.issuer.Claims(s.clock.now(), changes)))
}

// refused checks that a token is a problem of a status whose text says why, and of 503 that it says when to try again.
func (s *setup) refused(raw string, status int, why string) {
	s.t.Helper()
	who, err := s.Authenticate(s.t.Context(), raw)
	var details *problem.Details
	if !errors.As(err, &details) || details.Status != status || !strings.Contains(details.Detail, why) {
		s.t.Fatalf("error %v, want status %d and %q", err, status, why)
	}
	if who.Name != "" || who.MaySomewhere(events.RoleReader) {
		s.t.Errorf("a refused token gives %+v", who)
	}
	for _, secret := range []string{"github-main", "acme", "refs/heads"} { // of the rules
		if strings.Contains(details.Detail, secret) {
			s.t.Errorf("the refusal tells of the rules: %s", details.Detail)
		}
	}
	if after := details.GetHeaders().Get("Retry-After"); (status == 503) != (after != "") || status == 503 && after != "10" {
		s.t.Errorf("status %d and Retry-After %q", status, after)
	}
}

func (s *setup) accepted(raw string) {
	s.t.Helper()
	who, err := s.Authenticate(s.t.Context(), raw)
	if err != nil || !who.May(events.RolePublisher, "acme-web") {
		s.t.Fatalf("%+v, %v", who, err)
	}
}

func TestATokenOfATrustedIssuerGivesTheRolesOfItsRule(t *testing.T) {
	t.Parallel()
	for name, key := range map[string]oidctest.Key{"RS256": oidctest.RSA(t, "k1"), "ES256": oidctest.ECDSA(t, "k1"), "a key without a name": oidctest.RSA(t, "")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t, key)
			raw := s.token(nil)
			for range 2 { // the second time from the cache
				who, err := s.Verify(t.Context(), raw)
				if err != nil {
					t.Fatal(err)
				}
				if who.Principal.Name != "oidc:github-main:repo:acme/images:ref:refs/heads/main" || len(who.Rules) != 1 || !who.Expires.Equal(s.clock.now().Add(5*time.Minute)) {
					t.Errorf("identity %+v", who)
				}
				p := who.Principal
				if !p.May(events.RolePublisher, "acme-web") || p.May(events.RolePublisher, "other") || p.MayServer(events.RoleReader) {
					t.Errorf("rights %+v", p)
				}
			}
			if n := s.issuer.Requests("/keys"); n != 1 {
				t.Errorf("the keys were asked for %d times, want once", n)
			}
		})
	}
}

func TestATokenThatIsNotGoodIsRefusedAndToldWhy(t *testing.T) {
	t.Parallel()
	s := newSetup(t, oidctest.RSA(t, "k1"))
	stranger := oidctest.RSA(t, "k1") // another key under the same name
	now := s.clock.now()
	claims := oidctest.JSON(t, s.issuer.Claims(now, nil))
	part := base64.RawURLEncoding.EncodeToString
	public, err := x509.MarshalPKIXPublicKey(s.key.Private.Public())
	if err != nil {
		t.Fatal(err)
	}
	hs256 := func(secret []byte) string {
		signed := part([]byte(`{"alg":"HS256","kid":"k1"}`)) + "." + part(claims)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		return signed + "." + part(mac.Sum(nil))
	}
	good := strings.Split(s.token(nil), ".")
	tampered := good[0] + "." + part(oidctest.JSON(t, s.issuer.Claims(now, map[string]any{"ref": "refs/heads/other"}))) + "." + good[2]
	for name, c := range map[string]struct{ raw, why string }{
		"expired":                        {s.token(map[string]any{"exp": now.Add(-time.Minute).Unix()}), "expired at 2026-11-25T11:59:00Z"},
		"no expiry":                      {s.token(map[string]any{"exp": nil}), "exp"},
		"an expiry that is no number":    {s.token(map[string]any{"exp": "tomorrow"}), "exp"},
		"an endless expiry":              {s.token(map[string]any{"exp": 1e300}), "exp"},
		"not yet valid":                  {s.token(map[string]any{"nbf": now.Add(2 * time.Minute).Unix()}), "nbf"},
		"another audience":               {s.token(map[string]any{"aud": "https://elsewhere.example.org"}), "aud"},
		"other audiences":                {s.token(map[string]any{"aud": []string{"a", "https://images.example.org/"}}), "aud"},
		"no audience":                    {s.token(map[string]any{"aud": nil}), "aud"},
		"another issuer":                 {s.token(map[string]any{"iss": "https://evil.example.org"}), "iss"},
		"nearly the issuer":              {s.token(map[string]any{"iss": s.issuer.URL + "/"}), "iss"},
		"no issuer":                      {s.token(map[string]any{"iss": nil}), "iss"},
		"the issuer in capitals":         {s.token(map[string]any{"iss": nil, "ISS": s.issuer.URL}), "iss"},
		"another repository":             {s.token(map[string]any{"repository": "evil/images"}), "claims"},
		"a repository that begins so":    {s.token(map[string]any{"repository": "acme/images2"}), "claims"},
		"a branch that is a tag":         {s.token(map[string]any{"ref": "refs/tags/heads/x"}), "claims"},
		"a claim that lacks":             {s.token(map[string]any{"ref": nil}), "claims"},
		"a claim that is an object":      {s.token(map[string]any{"ref": map[string]any{"refs/heads/main": "refs/heads/main"}}), "claims"},
		"alg none":                       {part([]byte(`{"alg":"none"}`)) + "." + part(claims) + ".", "signed"},
		"alg none, in capitals":          {part([]byte(`{"alg":"NONE","kid":"k1"}`)) + "." + part(claims) + ".", "signed"},
		"HS256 with the public key, DER": {hs256(public), "signed"},
		"HS256 with the public key, PEM": {hs256(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), "signed"},
		"another's signature":            {stranger.Sign(t, claims), "signature"},
		"another's claims":               {tampered, "signature"},
		"no signature":                   {good[0] + "." + good[1] + ".", "signature"},
		"its key in the header":          {withEmbeddedKey(t, stranger, claims), "signature"},
		"a huge token":                   {s.token(map[string]any{"x": strings.Repeat("x", 20<<10)}), "longer"},
		"not JSON":                       {s.key.Sign(t, []byte("hello")), "JSON"},
		"null":                           {s.key.Sign(t, []byte("null")), "JSON"},
		"two objects":                    {s.key.Sign(t, append(claims, claims...)), "JSON"},
		"no token":                       {"hello", "JSON Web Token"},
		"nothing":                        {"", "JSON Web Token"},
	} {
		t.Run(name, func(t *testing.T) {
			s := *s
			s.t = t
			s.refused(c.raw, http.StatusUnauthorized, c.why)
		})
	}
	s.accepted(s.token(nil)) // the verifier itself is in order
	if n := s.issuer.Requests("/keys"); n != 1 {
		t.Errorf("the keys were asked for %d times, want once", n)
	}
}

func withEmbeddedKey(t *testing.T, key oidctest.Key, payload []byte) string {
	t.Helper()
	with, err := jose.NewSigner(jose.SigningKey{Algorithm: key.Algorithm, Key: key.Private}, (&jose.SignerOptions{EmbedJWK: true}).WithHeader("kid", "k1"))
	if err != nil {
		t.Fatal(err)
	}
	jws, err := with.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestWhatATokenMaySay(t *testing.T) {
	t.Parallel()
	s := newSetup(t, oidctest.ECDSA(t, "k1"))
	now := s.clock.now()
	for name, changes := range map[string]map[string]any{
		"one of several audiences":       {"aud": []string{"sigstore", "https://images.example.org"}},
		"a clock that is behind":         {"nbf": now.Add(20 * time.Second).Unix()},
		"a clock that is ahead":          {"exp": now.Add(-20 * time.Second).Unix()},
		"no nbf":                         {"nbf": nil},
		"a fraction of a second":         {"exp": float64(now.Unix()) + 60.5},
		"an element of an array":         {"ref": []any{1, "refs/heads/release-2"}},
		"claims nobody asked for":        {"job_workflow_ref": "x", "deep": map[string]any{"er": []int{1}}},
		"no subject":                     {"sub": nil},
		"a subject for a terminal's eye": {"sub": "a\x1b[2Jb \n" + strings.Repeat("é", 300)},
	} {
		s.accepted(s.token(changes))
		who, err := s.Authenticate(t.Context(), s.token(changes))
		if err != nil || strings.ContainsAny(who.Name, "\x1b\n ") || len(who.Name) > 300 {
			t.Errorf("%s: name %q, %v", name, who.Name, err)
		}
	}
	s.rules[0].Claims = map[string]string{"repository": "acme/*", "admin": "true", "run_number": "42", "teams": "images"}
	s.accepted(s.token(map[string]any{"admin": true, "run_number": 42, "teams": []string{"web", "images"}}))
	s.refused(s.token(map[string]any{"admin": false, "run_number": 42, "teams": "images"}), 401, "claims")
}

func TestAllRulesThatMatchCountAndOnlyThoseThatThereAre(t *testing.T) {
	t.Parallel()
	s := newSetup(t, oidctest.ECDSA(t, "k1"))
	first, second, third := s.rule(), s.rule(), s.rule()
	first.AddedAt, second.AddedAt = s.clock.now().Add(time.Second), s.clock.now()
	second.ID, second.Name, second.Grants = "2", "older", []events.Grant{{Role: events.RoleReader}, {Role: events.RolePublisher, Images: "acme-*"}}
	third.ID, third.Name, third.Claims, third.Grants = "3", "elsewhere", map[string]string{"repository": "evil/images"}, []events.Grant{{Role: events.RoleOperator}}
	s.rules = []events.Trust{first, second, third}
	raw := s.token(nil)
	who, err := s.Verify(t.Context(), raw)
	if err != nil || len(who.Rules) != 2 || who.Rules[0].ID != "2" || !strings.HasPrefix(who.Principal.Name, "oidc:older:") ||
		!who.Principal.MayServer(events.RoleReader) || !who.Principal.May(events.RolePublisher, "acme-web") || who.Principal.MayServer(events.RoleOperator) {
		t.Errorf("%+v, %v", who, err)
	}
	if !who.Principal.Alive() {
		t.Error("the credentials have ended at once")
	}
	// The token is in the cache; that its rules end counts nevertheless.
	s.rules = []events.Trust{first, third}
	if who, err := s.Authenticate(t.Context(), raw); err != nil || who.MayServer(events.RoleReader) {
		t.Errorf("after the end of a rule: %+v, %v", who, err)
	}
	if who.Principal.Alive() {
		t.Error("what began under a rule goes on after its end")
	}
	s.rules = []events.Trust{third}
	s.refused(raw, 401, "claims")
	third.Removed = true
	s.rules = []events.Trust{third}
	s.refused(raw, 401, "iss")
	s.rules = nil
	s.refused(raw, 401, "iss")
	// And it expires there.
	s.rules = []events.Trust{first}
	s.accepted(raw)
	if who, err = s.Verify(t.Context(), raw); err != nil || !who.Principal.Alive() {
		t.Errorf("%+v, %v", who, err)
	}
	s.clock.advance(6 * time.Minute)
	s.refused(raw, 401, "expired")
	if who.Principal.Alive() {
		t.Error("what began with a token goes on after the token's time")
	}
}

func TestAnIssuersNewKeysAreFound(t *testing.T) {
	t.Parallel()
	s := newSetup(t, oidctest.RSA(t, "k1"))
	old := s.token(nil)
	s.accepted(old)
	s.clock.advance(time.Minute)
	s.key = oidctest.ECDSA(t, "k2")
	s.issuer.Rotate(s.key)
	s.accepted(s.token(nil))
	s.clock.advance(time.Minute)
	s.accepted(old) // seen a short time ago
	withdrawn := oidctest.RSA(t, "k1")
	s.refused(withdrawn.Sign(t, oidctest.JSON(t, s.issuer.Claims(s.clock.now(), nil))), 401, "kid")

	// A key of another kind in the place of one, both without a name.
	s.key = oidctest.RSA(t, "")
	s.issuer.Rotate(s.key)
	s.clock.advance(time.Minute)
	s.accepted(s.token(nil))
	s.key = oidctest.RSA(t, "")
	s.issuer.Rotate(s.key)
	s.clock.advance(time.Minute)
	s.accepted(s.token(nil))
}

// A withdrawn key counts until the keys are asked for again, and a token under it no longer than the cache keeps it.
func TestAWithdrawnKeyCountsNoMoreAfterAnHour(t *testing.T) {
	t.Parallel()
	s := newSetup(t, oidctest.RSA(t, "k1"))
	raw := s.token(map[string]any{"exp": s.clock.now().Add(24 * time.Hour).Unix()})
	s.accepted(raw)
	s.issuer.Rotate(oidctest.ECDSA(t, "k2"))
	s.clock.advance(50 * time.Minute)
	s.accepted(raw)
	s.clock.advance(11 * time.Minute)
	s.refused(raw, 401, "kid")
}

func TestForgedTokensDontMakeTheServerHammerAnIssuer(t *testing.T) {
	t.Parallel()
	s := newSetup(t, oidctest.RSA(t, "k1"))
	s.accepted(s.token(nil))
	s.clock.advance(time.Minute)
	forger := oidctest.ECDSA(t, "")
	forge := func() string {
		forger.ID = strconv.FormatInt(time.Now().UnixNano(), 36)
		return forger.Sign(t, oidctest.JSON(t, s.issuer.Claims(s.clock.now(), nil)))
	}
	s.refused(forge(), 401, "kid")
	var tokens []string
	for range 50 {
		tokens = append(tokens, forge())
	}
	var all sync.WaitGroup
	for _, raw := range tokens {
		all.Go(func() {
			_, err := s.Authenticate(t.Context(), raw)
			if details := problem.From(err); err == nil || details.Status != 503 || details.GetHeaders().Get("Retry-After") != "10" {
				t.Errorf("a forged token: %v", err)
			}
		})
	}
	all.Wait()
	if n := s.issuer.Requests("/keys"); n != 2 {
		t.Errorf("the keys were asked for %d times, want once for the good token and once for the forged", n)
	}
	s.accepted(s.token(nil)) // whose key is known needs no issuer
	// An honest new key is found as soon as the pause is over.
	s.key = oidctest.ECDSA(t, "k2")
	s.issuer.Rotate(s.key)
	s.refused(s.token(nil), 503, "try again")
	s.clock.advance(11 * time.Second)
	s.accepted(s.token(nil))
}

func TestAnIssuerThatCantBeReached(t *testing.T) {
	t.Parallel()
	s := newSetup(t, oidctest.RSA(t, "k1"))
	raw := s.token(map[string]any{"exp": s.clock.now().Add(48 * time.Hour).Unix()})
	s.issuer.Set(func() { s.issuer.Down = true })
	for range 3 {
		s.refused(raw, 503, "can't be asked")
	}
	if n := s.issuer.Requests("/.well-known/openid-configuration"); n != 1 {
		t.Errorf("%d requests within the pause, want one", n)
	}
	s.issuer.Set(func() { s.issuer.Down = false })
	s.clock.advance(11 * time.Second)
	s.accepted(raw)

	// Keys that came once are used for a day.
	s.issuer.Close()
	s.clock.advance(23 * time.Hour)
	s.accepted(raw)
	s.clock.advance(2 * time.Hour)
	s.refused(raw, 503, "can't be asked")
}

// Each of these is an issuer that answers, and not well.
func TestAnIssuerThatAnswersBadly(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a server without TLS was asked for keys") }))
	t.Cleanup(elsewhere.Close)
	for name, spoil := range map[string]func(*oidctest.Issuer){
		"another issuer's document": func(i *oidctest.Issuer) { i.Document["issuer"] = "https://evil.example.org" },
		"keys without TLS":          func(i *oidctest.Issuer) { i.Document["jwks_uri"] = elsewhere.URL },
		"a redirect to plain http":  func(i *oidctest.Issuer) { i.Document["jwks_uri"], i.Moved = i.URL+"/moved", elsewhere.URL },
		"no keys' place":            func(i *oidctest.Issuer) { i.Document["jwks_uri"] = nil },
		"a file":                    func(i *oidctest.Issuer) { i.Document["jwks_uri"] = "file:///etc/passwd" },
		"a place with nothing":      func(i *oidctest.Issuer) { i.Document["jwks_uri"] = i.URL + "/nothing" },
		"no keys":                   func(i *oidctest.Issuer) { i.Keys = nil },
		"a secret": func(i *oidctest.Issuer) {
			i.Keys = []any{map[string]string{"kty": "oct", "kid": "k1", "k": "c2VjcmV0"}}
		},
		"a key for encryption": func(i *oidctest.Issuer) {
			k := i.Keys[0].(jose.JSONWebKey)
			k.Use = "enc"
			i.Keys = []any{k}
		},
		"an endless document": func(i *oidctest.Issuer) { i.Document["x"] = strings.Repeat("x", 2<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSetup(t, oidctest.RSA(t, "k1"))
			spoil(s.issuer)
			s.refused(s.token(nil), 503, "can't be asked")
		})
	}
	t.Run("a certificate nobody knows", func(t *testing.T) {
		t.Parallel()
		s := newSetup(t, oidctest.RSA(t, "k1"))
		v, err := oidc.New(oidc.Config{Rules: func() []events.Trust { return s.rules }, Logger: slog.New(slog.DiscardHandler), Clock: s.clock.now})
		if err != nil {
			t.Fatal(err)
		}
		s.Verifier = v
		s.refused(s.token(nil), 503, "can't be asked")
	})
	t.Run("keys of unknown kinds beside a good one", func(t *testing.T) {
		t.Parallel()
		s := newSetup(t, oidctest.RSA(t, "k1"))
		s.issuer.Keys = append([]any{map[string]string{"kty": "OKP", "crv": "Ed448", "x": "AA"}, map[string]string{"kty": "new"}, "what"}, s.issuer.Keys...)
		s.accepted(s.token(nil))
	})
}

func TestTheCAFileHasToBeOne(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"/nowhere/ca.pem", "doc.go"} {
		if _, err := oidc.New(oidc.Config{CAFile: file}); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// The grants of a rule are not what a caller may change.
func TestAnIdentityIsACopy(t *testing.T) {
	t.Parallel()
	s := newSetup(t, oidctest.ECDSA(t, "k1"))
	before := maps.Clone(s.rules[0].Claims)
	who, err := s.Verify(t.Context(), s.token(nil))
	if err != nil {
		t.Fatal(err)
	}
	who.Rules[0].Name = "changed"
	if s.rules[0].Name != "github-main" || !maps.Equal(before, s.rules[0].Claims) {
		t.Errorf("rules %+v", s.rules)
	}
}
