package events

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func aTrust() Trust {
	return Trust{ID: "t", Name: "github-main", Issuer: "https://token.actions.githubusercontent.com", Audience: "https://images.example.org",
		Claims: map[string]string{"repository": "acme/images", "ref": "refs/heads/*"}, Grants: []Grant{{Role: RolePublisher, Images: "acme-*"}}, Lifetime: Lifetime{AddedBy: "admin"}}
}

func TestATrustRuleOfBadFormIsRefused(t *testing.T) {
	t.Parallel()
	changes, err := AddTrust(aTrust(), []Trust{{Name: "another"}}, Current[Trust]{})
	if err != nil || len(changes) != 1 || changes[0].Expect != 0 || changes[0].Fact.Type() != "imgsrv.trust.added.v1" {
		t.Fatalf("changes %v, error %v", changes, err)
	}
	claims := func(pairs ...string) func(*Trust) {
		return func(r *Trust) {
			r.Claims = map[string]string{}
			for i := 0; i < len(pairs); i += 2 {
				r.Claims[pairs[i]] = pairs[i+1]
			}
		}
	}
	elsewhere := func(change func(*Trust)) func(*Trust) {
		return func(r *Trust) { r.Issuer = "https://kubernetes.default.svc"; change(r) }
	}
	for name, c := range map[string]struct {
		field  string // "" for what may be
		change func(*Trust)
	}{
		"no name":                 {"name", func(r *Trust) { r.Name = "" }},
		"a colon in the name":     {"name", func(r *Trust) { r.Name = "a:b" }},
		"a name that is taken":    {"name", func(r *Trust) { r.Name = "another" }},
		"no issuer":               {"issuer", func(r *Trust) { r.Issuer = "" }},
		"an issuer by http":       {"issuer", func(r *Trust) { r.Issuer = "http://issuer.example.org" }},
		"nearly loopback":         {"issuer", func(r *Trust) { r.Issuer = "http://127.0.0.1.example.org" }},
		"loopback":                {"", func(r *Trust) { r.Issuer = "http://127.0.0.1:8090" }},
		"loopback by IPv6":        {"", func(r *Trust) { r.Issuer = "http://[::1]:8090/realm" }},
		"an issuer with password": {"issuer", func(r *Trust) { r.Issuer = "https://me:secret@issuer.example.org" }},
		"an issuer with query":    {"issuer", func(r *Trust) { r.Issuer = "https://issuer.example.org/?x" }},
		"an issuer with fragment": {"issuer", func(r *Trust) { r.Issuer = "https://issuer.example.org/#" }},
		"another scheme":          {"issuer", func(r *Trust) { r.Issuer = "file:///etc" }},
		"no audience":             {"audience", func(r *Trust) { r.Audience = "" }},
		"a long audience":         {"audience", func(r *Trust) { r.Audience = strings.Repeat("a", MaxTrustText+1) }},
		"no claims":               {"claims", elsewhere(claims())},
		"only anything":           {"claims.sub", elsewhere(claims("sub", "**"))},
		"an empty value":          {"claims.sub", elsewhere(claims("sub", ""))},
		"a name with a space":     {"claims", elsewhere(claims("s ub", "x"))},
		"the issuer as claim":     {"claims.iss", elsewhere(claims("sub", "x", "iss", "y"))},
		"the audience as claim":   {"claims.aud", elsewhere(claims("sub", "x", "aud", "y"))},
		"a service account":       {"", elsewhere(claims("sub", "system:serviceaccount:ci:*"))},
		"all of GitHub by ref":    {"claims", claims("ref", "refs/heads/main")},
		"an environment by sub":   {"claims", claims("sub", "environment:production")},
		"all of GitHub by sub":    {"claims", claims("sub", "repo:*")},
		"any owner":               {"claims", claims("repository", "*/images")},
		"owners that begin so":    {"claims", claims("repository", "acme*/images", "ref", "refs/heads/main")},
		"one owner":               {"", claims("repository", "acme/*")},
		"one owner by sub":        {"", claims("sub", "repo:acme/*:ref:refs/heads/main")},
		"one owner by id":         {"", claims("repository_owner_id", "4711")},
		"all of GitLab":           {"claims", func(r *Trust) { claims("ref", "main")(r); r.Issuer = "https://gitlab.com" }},
		"a group of GitLab":       {"", func(r *Trust) { claims("project_path", "acme/*")(r); r.Issuer = "https://gitlab.com" }},
		"many claims":             {"claims", func(r *Trust) { r.Claims = manyClaims() }},
		"no roles":                {"grants", func(r *Trust) { r.Grants = nil }},
		"an admin":                {"grants[0].role", func(r *Trust) { r.Grants = []Grant{{Role: RoleAdmin}} }},
		"an unknown role":         {"grants[0].role", func(r *Trust) { r.Grants = []Grant{{Role: "root"}} }},
		"a bad pattern":           {"grants[0].images", func(r *Trust) { r.Grants = []Grant{{Role: RoleReader, Images: "A*"}} }},
		"a second":                {"token_ttl_seconds", func(r *Trust) { r.TokenTTL = 1 }},
		"two days":                {"token_ttl_seconds", func(r *Trust) { r.TokenTTL = 172800 }},
		"so long that it wraps":   {"token_ttl_seconds", func(r *Trust) { r.TokenTTL = 1 << 55 }},
		"an hour":                 {"", func(r *Trust) { r.TokenTTL = 3600 }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rule := aTrust()
			c.change(&rule)
			_, err := AddTrust(rule, []Trust{{Name: "another"}}, Current[Trust]{})
			if c.field == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			var refusal *Error
			if !errors.As(err, &refusal) || refusal.Code != CodeInvalid || len(refusal.Fields) != 1 || refusal.Fields[0].Field != c.field {
				t.Errorf("error %+v, want one of field %s", err, c.field)
			}
		})
	}
}

func manyClaims() map[string]string {
	claims := maps.Clone(aTrust().Claims)
	for i := range MaxTrustClaims {
		claims[strings.Repeat("x", i+1)] = "y"
	}
	return claims
}

func TestARemovedTrustRuleIsGone(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)
	current := Current[Trust]{State: aTrust(), Sequence: 3}
	changes, err := RemoveTrust(current, "t", "eve", now)
	if err != nil {
		t.Fatal(err)
	}
	want := aTrust()
	want.Removed, want.RemovedBy, want.RemovedAt = true, "eve", now
	if diff := cmp.Diff([]Change{{Fact: TrustRemoved{want}, Expect: 3}}, changes); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
	for name, c := range map[string]Current[Trust]{"removed": {State: Fold(current.State, changes[0].Fact), Sequence: 4}, "never added": {}} {
		if _, err := RemoveTrust(c, "t", "eve", now); !IsCode(err, CodeNotFound) {
			t.Errorf("%s: removing gives %v", name, err)
		}
	}
}

func TestHowLongAnExchangedTokenLives(t *testing.T) {
	t.Parallel()
	if got := (Trust{}).TokenLife(); got != time.Hour {
		t.Errorf("without a bound %s, want an hour", got)
	}
	if got := (Trust{TokenTTL: 90}).TokenLife(); got != 90*time.Second {
		t.Errorf("with one of 90 seconds: %s", got)
	}
}
