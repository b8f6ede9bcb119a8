package events

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Bounds of a trust rule's form.
const (
	MaxTrustClaims  = 20
	MaxTrustText    = 500 // bytes of an issuer, an audience, a claim's value
	maxClaimName    = 100 // bytes
	DefaultTokenTTL = time.Hour
	minTokenTTL     = time.Minute
	maxTokenTTL     = 24 * time.Hour
)

// Trust is a rule that gives roles to whoever brings an OIDC token of an issuer, meant for an audience, with
// certain claims. It holds no secret, and needs none.
type Trust struct {
	ID       string            `json:"id"`       // UUIDv7
	Name     string            `json:"name"`     // for people; part of the principals' names
	Issuer   string            `json:"issuer"`   // URL, exactly as in the token's iss
	Audience string            `json:"audience"` // one of the token's aud
	Claims   map[string]string `json:"claims"`   // what the token has to say, by name; '*' stands for any characters
	Grants   []Grant           `json:"grants"`
	// TokenTTL is how long a token lives at most that comes in exchange for an OIDC token, in seconds; 0: an hour.
	TokenTTL int64 `json:"token_ttl_seconds,omitempty"`
	Lifetime
}

// The facts of a trust rule.
type (
	// TrustAdded begins it.
	TrustAdded struct{ Trust }
	// TrustRemoved ends it, for good, and with it the tokens that hang on it.
	TrustRemoved struct{ Trust }
)

// TrustFact is any fact of a trust rule.
type TrustFact = FactOf[Trust]

// After is the rule after the fact.
func (t Trust) After() Trust { return t }

// Entity names the rule.
func (t Trust) Entity() Entity { return TrustEntity(t.ID) }

// Type names the fact's type.
func (TrustAdded) Type() Type { return "imgsrv.trust.added.v1" }

// Type names the fact's type.
func (TrustRemoved) Type() Type { return "imgsrv.trust.removed.v1" }

// TokenLife is how long a token lives at most that comes in exchange for an OIDC token.
func (t Trust) TokenLife() time.Duration {
	if t.TokenTTL == 0 {
		return DefaultTokenTTL
	}
	return time.Duration(t.TokenTTL) * time.Second
}

// AddTrust decides to add a rule; living are those that there are.
func AddTrust(t Trust, living []Trust, current Current[Trust]) ([]Change, error) {
	var c checker
	if !trustNamePattern.MatchString(t.Name) {
		c.fail("name", t.Name, "a rule's name has 1 to 63 lower-case letters, digits, '.', '_' or '-' and begins with a letter or digit")
	}
	// Two rules of one name couldn't be told apart in the history of what their principals did.
	if slices.ContainsFunc(living, func(other Trust) bool { return other.Name == t.Name }) {
		c.fail("name", t.Name, "there is a rule of this name already")
	}
	u, ok := c.url("issuer", t.Issuer, MaxTrustText, "an issuer is https://HOST[:PORT][/PATH], exactly as in the token's iss")
	switch {
	case !ok:
	case u.Scheme == "http" && !IsLoopbackHost(u.Hostname()):
		c.fail("issuer", t.Issuer, "an issuer is reached by https: whoever can change its answers can make tokens")
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(t.Issuer, "#"):
		c.fail("issuer", "", "an issuer has no user, password, query or fragment")
	}
	if t.Audience == "" {
		c.fail("audience", "", "an audience is needed: without one, a token that was made for another service would do; this server's URL is a good one")
	}
	c.text("audience", t.Audience, MaxTrustText)
	checkClaims(&c, t)
	if len(t.Grants) == 0 {
		c.fail("grants", "", "a rule gives at least one role")
	}
	checkGrants(&c, "grants", t.Grants)
	for i, g := range t.Grants {
		if g.Role == RoleAdmin {
			c.fail(fmt.Sprintf("grants[%d].role", i), string(g.Role), "nobody becomes an admin by an OIDC token: make a principal")
		}
	}
	if ttl := time.Duration(t.TokenTTL) * time.Second; t.TokenTTL != 0 && (ttl < minTokenTTL || t.TokenTTL > int64(maxTokenTTL.Seconds())) {
		c.fail("token_ttl_seconds", fmt.Sprint(t.TokenTTL), "an exchanged token lives from a minute to a day")
	}
	if err := c.refusal(); err != nil {
		return nil, err
	}
	return []Change{{Fact: TrustAdded{t}, Expect: current.Sequence}}, nil
}

var (
	trustNamePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	claimNamePattern = regexp.MustCompile(`^[!-~]+$`) // printable ASCII without the space
)

// IsLoopbackHost says whether a host of a URL is this machine by its name. Names are not looked up.
func IsLoopbackHost(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// claimsOfTenant are, for issuers that sign tokens for everybody, the claims that say whose a token is.
var claimsOfTenant = map[string][]string{
	"https://token.actions.githubusercontent.com": {"sub", "repository", "repository_id", "repository_owner", "repository_owner_id"},
	"https://gitlab.com":                          {"sub", "project_path", "project_id", "namespace_path", "namespace_id"},
}

func checkClaims(c *checker, t Trust) {
	if len(t.Claims) == 0 {
		c.fail("claims", "", "at least one claim is needed, such as sub: without one, everybody whom the issuer knows would be trusted")
	}
	if len(t.Claims) > MaxTrustClaims {
		c.fail("claims", "", fmt.Sprintf("a rule names at most %d claims", MaxTrustClaims))
	}
	for _, name := range slices.Sorted(maps.Keys(t.Claims)) {
		field, value := "claims."+name, t.Claims[name]
		switch {
		case len(name) > maxClaimName || !claimNamePattern.MatchString(name):
			c.fail("claims", "", fmt.Sprintf("a claim's name has 1 to %d printable characters", maxClaimName))
			continue
		case slices.Contains([]string{"iss", "aud", "exp", "nbf", "iat"}, name):
			c.fail(field, value, "issuer, audience and times are checked by themselves")
		case strings.Trim(value, "*") == "":
			c.fail(field, value, "a value that anything matches is no condition")
		}
		c.text(field, value, MaxTrustText)
	}
	tenant, shared := claimsOfTenant[t.Issuer]
	if shared && len(t.Claims) > 0 && !slices.ContainsFunc(tenant, func(name string) bool { return namesTenant(name, t.Claims[name]) }) {
		c.fail("claims", "", "this issuer signs for everybody: one of "+strings.Join(tenant, ", ")+" has to say whose tokens are meant, without '*' in the owner's name")
	}
}

// namesTenant says whether a value leaves no choice of the owner, the part before the first slash. A sub may be made of
// other things than the owner: it names one only where it begins with a repository's or project's path.
func namesTenant(claim, value string) bool {
	if claim == "sub" {
		kind, rest, _ := strings.Cut(value, ":")
		if kind != "repo" && kind != "repository" && kind != "repository_owner" && kind != "project_path" {
			return false
		}
		value = rest
	}
	owner, _, _ := strings.Cut(value, "/")
	return owner != "" && !strings.Contains(owner, "*")
}

// RemoveTrust decides to end a rule.
func RemoveTrust(current Current[Trust], id, by string, at time.Time) ([]Change, error) {
	if !current.State.Living() {
		return nil, Refuse(CodeNotFound, "there is no trust rule %s", id)
	}
	next := current.State
	next.end(by, at)
	return []Change{{Fact: TrustRemoved{next}, Expect: current.Sequence}}, nil
}
