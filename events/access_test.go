package events

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestGrantsCover(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		grant Grant
		role  Role
		image string
		want  bool
	}{
		{Grant{RoleReader, ""}, RoleReader, "x", true},
		{Grant{RoleReader, ""}, RoleReader, "", true},
		{Grant{RoleReader, ""}, RolePublisher, "x", false},
		{Grant{RoleReader, "a-*"}, RoleReader, "a-1", true},
		{Grant{RoleReader, "a-*"}, RoleReader, "b-1", false},
		{Grant{RoleReader, "a-*"}, RoleReader, "", false},
		{Grant{RolePublisher, "a-*"}, RoleReader, "a-1", true},
		{Grant{RolePublisher, "a-*"}, RoleOperator, "a-1", false},
		{Grant{RoleOperator, "a-*"}, RoleReader, "a-1", true},
		{Grant{RoleOperator, ""}, RolePublisher, "a-1", false},
		{Grant{RoleOperator, ""}, RoleAdmin, "", false},
		{Grant{RoleAdmin, ""}, RolePublisher, "a-1", true},
		{Grant{RoleAdmin, ""}, RoleOperator, "", true},
		{Grant{RoleAdmin, "a-*"}, RoleReader, "a-1", false}, // no rule lets it come about
	} {
		if got := test.grant.Covers(test.role, test.image); got != test.want {
			t.Errorf("%s covers %s on %q: %t", test.grant, test.role, test.image, got)
		}
	}
}

// A pattern matches what the same pattern matches as a regular language, by trying every way to cut the name.
func TestMatchStars(t *testing.T) {
	t.Parallel()
	var slow func(pattern, s string) bool
	slow = func(pattern, s string) bool {
		switch {
		case pattern == "":
			return s == ""
		case pattern[0] == '*':
			return slow(pattern[1:], s) || s != "" && slow(pattern, s[1:])
		}
		return s != "" && s[0] == pattern[0] && slow(pattern[1:], s[1:])
	}
	rapid.Check(t, func(t *rapid.T) {
		pattern := rapid.StringMatching(`[ab*]{0,8}`).Draw(t, "pattern")
		s := rapid.StringMatching(`[ab]{0,10}`).Draw(t, "s")
		if got, want := MatchStars(pattern, s), slow(pattern, s); got != want {
			t.Errorf("%q matches %q: %t, want %t", pattern, s, got, want)
		}
	})
}

func TestRulesOfPrincipals(t *testing.T) {
	t.Parallel()
	none := Current[Principal]{}
	there := Current[Principal]{State: Principal{Name: "ci", Kind: Service, Grants: []Grant{{Role: RoleReader}}}, Sequence: 7}
	gone := Current[Principal]{State: Principal{Name: "ci", Removed: true}, Sequence: 8}
	for name, test := range map[string]struct {
		decide func() ([]Change, error)
		code   Code // "" for none
		expect Sequence
		facts  int
	}{
		"a new one":         {func() ([]Change, error) { return CreatePrincipal(there.State, none) }, "", 0, 1},
		"one that was":      {func() ([]Change, error) { return CreatePrincipal(there.State, gone) }, "", 8, 1},
		"one that is":       {func() ([]Change, error) { return CreatePrincipal(there.State, there) }, CodePrincipalExists, 0, 0},
		"the built-in":      {func() ([]Change, error) { return CreatePrincipal(Principal{Name: "admin", Kind: Service}, none) }, CodePrincipalExists, 0, 0},
		"no name":           {func() ([]Change, error) { return CreatePrincipal(Principal{Kind: Service}, none) }, CodeInvalid, 0, 0},
		"the server's name": {func() ([]Change, error) { return CreatePrincipal(Principal{Name: "imgsrv", Kind: Service}, none) }, CodeInvalid, 0, 0},
		"like OIDC's":       {func() ([]Change, error) { return CreatePrincipal(Principal{Name: "oidc:x:y", Kind: Person}, none) }, CodeInvalid, 0, 0},
		"no kind":           {func() ([]Change, error) { return CreatePrincipal(Principal{Name: "x"}, none) }, CodeInvalid, 0, 0},
		"no role": {func() ([]Change, error) {
			return CreatePrincipal(Principal{Name: "x", Kind: Person, Grants: []Grant{{Role: "king"}}}, none)
		}, CodeInvalid, 0, 0},
		"admin of a pattern": {func() ([]Change, error) { return GrantRole(there, "ci", Grant{RoleAdmin, "a-*"}) }, CodeInvalid, 0, 0},
		"a bad pattern":      {func() ([]Change, error) { return GrantRole(there, "ci", Grant{RoleReader, "../*"}) }, CodeInvalid, 0, 0},
		"a role":             {func() ([]Change, error) { return GrantRole(there, "ci", Grant{RolePublisher, "a-*"}) }, "", 7, 1},
		"the same role":      {func() ([]Change, error) { return GrantRole(there, "ci", Grant{Role: RoleReader}) }, "", 0, 0},
		"to nobody":          {func() ([]Change, error) { return GrantRole(none, "ci", Grant{Role: RoleReader}) }, CodeNotFound, 0, 0},
		"to the gone":        {func() ([]Change, error) { return GrantRole(gone, "ci", Grant{Role: RoleReader}) }, CodeNotFound, 0, 0},
		"to the built-in":    {func() ([]Change, error) { return GrantRole(none, "admin", Grant{Role: RoleReader}) }, CodeBuiltIn, 0, 0},
		"taken":              {func() ([]Change, error) { return RevokeRole(there, "ci", Grant{Role: RoleReader}) }, "", 7, 1},
		"taken, not held":    {func() ([]Change, error) { return RevokeRole(there, "ci", Grant{RoleReader, "a"}) }, CodeNotFound, 0, 0},
		"removed":            {func() ([]Change, error) { return RemovePrincipal(there, "ci", "admin", time.Now()) }, "", 7, 1},
		"removed twice":      {func() ([]Change, error) { return RemovePrincipal(gone, "ci", "admin", time.Now()) }, CodeNotFound, 0, 0},
		"the built-in, too":  {func() ([]Change, error) { return RemovePrincipal(none, "admin", "admin", time.Now()) }, CodeBuiltIn, 0, 0},
	} {
		changes, err := test.decide()
		if test.code != "" && !IsCode(err, test.code) || test.code == "" && err != nil || len(changes) != test.facts {
			t.Errorf("%s: %d facts, %v, want code %q", name, len(changes), err, test.code)
		}
		if len(changes) == 1 && changes[0].Expect != test.expect {
			t.Errorf("%s expects %d", name, changes[0].Expect)
		}
	}
	// A rule leaves the state it was given alone.
	if !slices.Equal(there.State.Grants, []Grant{{Role: RoleReader}}) {
		t.Errorf("changed: %v", there.State.Grants)
	}
}

func TestRulesOfTokens(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	hash := strings.Repeat("0a", 32)
	owner := Current[Principal]{State: Principal{Name: "ci"}, Sequence: 3}
	token := Token{ID: "1", Principal: "ci", Hash: hash, IssuedAt: now, ExpiresAt: now.Add(time.Hour), Grants: []Grant{{RoleReader, "a-*"}}}
	for name, test := range map[string]struct {
		token Token
		owner Current[Principal]
		code  Code
	}{
		"of a principal":    {token, owner, ""},
		"of nobody":         {token, Current[Principal]{}, CodeNotFound},
		"of the built-in":   {Token{Principal: "admin", Hash: hash}, Current[Principal]{}, ""},
		"of a trust rule":   {Token{Principal: "oidc:x:y", Trust: "2", Hash: hash}, Current[Principal]{}, ""},
		"the token itself":  {Token{Principal: "ci", Hash: "imgsrv_secret"}, owner, CodeInvalid},
		"expired":           {Token{Principal: "ci", Hash: hash, ExpiresAt: now}, owner, CodeInvalid},
		"with a long name":  {Token{Principal: "ci", Hash: hash, Name: strings.Repeat("x", 101)}, owner, CodeInvalid},
		"with many roles":   {Token{Principal: "ci", Hash: hash, Grants: slices.Repeat([]Grant{{RoleReader, "a-*"}}, maxGrants+1)}, owner, CodeInvalid},
		"with a wrong role": {Token{Principal: "ci", Hash: hash, Grants: []Grant{{Role: "x"}}}, owner, CodeInvalid},
	} {
		if changes, err := IssueToken(test.token, test.owner, now); test.code != "" && !IsCode(err, test.code) || (err == nil) != (len(changes) == 1) || test.code == "" && err != nil {
			t.Errorf("%s: %d facts, %v", name, len(changes), err)
		}
	}
	current := Current[Token]{State: token, Sequence: 9}
	changes, err := RotateToken(current, owner, "1", "2", hash, "ci", now.Add(10*time.Minute))
	if err != nil || len(changes) != 2 {
		t.Fatalf("%d facts, %v", len(changes), err)
	}
	next, old := Fold(Token{}, changes[0].Fact), Fold(token, changes[1].Fact)
	if next.ID != "2" || next.Replaces != "1" || !next.ExpiresAt.Equal(now.Add(70*time.Minute)) || !slices.Equal(next.Grants, token.Grants) || changes[0].Expect != 0 {
		t.Errorf("new: %+v", next)
	}
	if !old.Revoked || old.RevokedBy != "ci" || changes[1].Expect != 9 {
		t.Errorf("old: %+v", old)
	}
	revoked := Current[Token]{State: old, Sequence: 11}
	for name, err := range map[string]error{
		"rotate a revoked one":  second(RotateToken(revoked, owner, "1", "3", hash, "x", now)),
		"revoke it twice":       second(RevokeToken(revoked, "1", "x", now)),
		"revoke none":           second(RevokeToken(Current[Token]{}, "1", "x", now)),
		"rotate an expired one": second(RotateToken(current, owner, "1", "3", hash, "x", now.Add(2*time.Hour))),
		"rotate a namesake's":   second(RotateToken(current, Current[Principal]{State: Principal{Name: "ci", CreatedAt: now.Add(time.Minute)}, Sequence: 8}, "1", "3", hash, "x", now.Add(2*time.Minute))),
		"rotate for a gone one": second(RotateToken(current, Current[Principal]{}, "1", "3", hash, "x", now)),
	} {
		if !IsCode(err, CodeNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	exchanged := current
	exchanged.State.Trust = "2"
	if changes, err := RotateToken(exchanged, owner, "1", "3", hash, "x", now); !IsCode(err, CodeInvalid) {
		t.Errorf("a token of an OIDC token outlives it by %d facts, %v", len(changes), err)
	}
	if changes := UseToken(current, now); len(changes) != 1 || !Fold(token, changes[0].Fact).LastUsed.Equal(now.Truncate(24*time.Hour)) {
		t.Errorf("use: %+v", changes)
	}
	used := current
	used.State.LastUsed = now.Truncate(24 * time.Hour)
	if len(UseToken(used, now)) != 0 || len(UseToken(revoked, now.Add(48*time.Hour))) != 0 {
		t.Error("a use is recorded twice a day, or of a revoked token")
	}
}

func second(_ []Change, err error) error { return err }
