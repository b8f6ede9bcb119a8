package eventstest

import (
	"strings"

	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
)

// Principal is like [History.Upload].
func (h *History) Principal(name string) events.Current[events.Principal] {
	return current[events.Principal](h, events.PrincipalEntity(name))
}

// Token is like [History.Upload].
func (h *History) Token(id string) events.Current[events.Token] {
	return current[events.Token](h, events.TokenEntity(id))
}

// Trust is like [History.Upload].
func (h *History) Trust(id string) events.Current[events.Trust] {
	return current[events.Trust](h, events.TrustEntity(id))
}

// access changes who may do what: each kind of change about as often as its opposite.
func (h *History) access(t *rapid.T) error {
	name := rapid.SampledFrom([]string{"ci", "alice"}).Draw(t, "principal")
	id := rapid.SampledFrom([]string{"token-1", "token-2"}).Draw(t, "token")
	trust := "0199c0de-0000-7000-8000-00000000000" + rapid.SampledFrom([]string{"1", "2"}).Draw(t, "trust rule")
	grant := rapid.SampledFrom([]events.Grant{{Role: events.RoleReader}, {Role: events.RolePublisher, Images: "a*"}}).Draw(t, "grant")
	hash := strings.Repeat("0a", 32)
	// What a change needs is made on the way, or few histories would come so far.
	create := func() error {
		return h.decide(t)(events.CreatePrincipal(events.Principal{Name: name, Kind: events.Service, Grants: []events.Grant{}, CreatedBy: "test", CreatedAt: h.now}, h.Principal(name)))
	}
	give := func() error {
		ignoreRefusal(t, create())
		return h.decide(t)(events.GrantRole(h.Principal(name), name, grant))
	}
	issue := func(id string) error {
		if h.Token(id).Sequence != 0 {
			return nil // ids are never used again
		}
		token := events.Token{ID: id, Principal: events.AdminPrincipal, Hash: hash, Grants: []events.Grant{grant}, IssuedBy: "test", IssuedAt: h.now}
		return h.decide(t)(events.IssueToken(token, events.Current[events.Principal]{}, h.now))
	}
	add := func() error {
		rule := events.Trust{ID: trust, Name: "rule-" + trust[35:], Issuer: "https://ci.example.org", Audience: "imgsrv", Claims: map[string]string{"sub": "x"},
			Grants: []events.Grant{{Role: events.RolePublisher}}, Lifetime: events.Lifetime{AddedBy: "test", AddedAt: h.now}}
		return h.decide(t)(events.AddTrust(rule, nil, h.Trust(trust)))
	}
	switch rapid.SampledFrom([]string{"create", "grant", "revoke role", "remove", "issue", "rotate", "use", "revoke", "trust", "distrust"}).Draw(t, "change") {
	case "create":
		return create()
	case "grant":
		return give()
	case "revoke role":
		ignoreRefusal(t, give())
		return h.decide(t)(events.RevokeRole(h.Principal(name), name, grant))
	case "remove":
		ignoreRefusal(t, create())
		return h.decide(t)(events.RemovePrincipal(h.Principal(name), name, "test", h.now))
	case "issue":
		return issue(id)
	case "rotate":
		if h.Token("token-2").Sequence != 0 {
			return nil
		}
		ignoreRefusal(t, issue("token-1"))
		return h.decide(t)(events.RotateToken(h.Token("token-1"), events.Current[events.Principal]{}, "token-1", "token-2", hash, "test", h.now))
	case "use":
		ignoreRefusal(t, issue(id))
		return h.decide(t)(events.UseToken(h.Token(id), h.now), nil)
	case "revoke":
		ignoreRefusal(t, issue(id))
		return h.decide(t)(events.RevokeToken(h.Token(id), id, "test", h.now))
	case "trust":
		return add()
	}
	ignoreRefusal(t, add())
	return h.decide(t)(events.RemoveTrust(h.Trust(trust), trust, "test", h.now))
}
