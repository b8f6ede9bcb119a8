package events

import (
	"fmt"
	"regexp"
	"time"
)

// Token lets its bearer act as a principal, or, handed out in exchange for an OIDC token, with the roles of a
// trust rule. The token itself is in no event: who reads them all can't sign in with what they find.
type Token struct {
	ID        string    `json:"id"`              // UUIDv7
	Principal string    `json:"principal"`       // whose; for one of a trust rule the OIDC identity
	Trust     string    `json:"trust,omitempty"` // id of the trust rule that it hangs on; "" for a principal's
	Name      string    `json:"name,omitempty"`  // for people
	Hash      string    `json:"hash"`            // SHA-256 of the token, hex
	Grants    []Grant   `json:"grants"`          // of what the principal may, only this; none: all of it
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	Replaces  string    `json:"replaces,omitempty"` // the token in whose place it came
	Revoked   bool      `json:"revoked,omitempty"`
	IssuedBy  string    `json:"issued_by"`
	IssuedAt  time.Time `json:"issued_at"`
	RevokedBy string    `json:"revoked_by,omitempty"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
	LastUsed  time.Time `json:"last_used,omitzero"` // the day, in UTC
}

// The facts of a token.
type (
	// TokenIssued begins it.
	TokenIssued struct{ Token }
	// TokenUsed says that it was used on another day than before.
	TokenUsed struct{ Token }
	// TokenRevoked ends it, for good.
	TokenRevoked struct{ Token }
)

// TokenFact is any fact of a token.
type TokenFact = FactOf[Token]

// After is the token after the fact.
func (t Token) After() Token { return t }

// Entity names the token.
func (t Token) Entity() Entity { return TokenEntity(t.ID) }

// Type names the fact's type.
func (TokenIssued) Type() Type { return "imgsrv.token.issued.v1" }

// Type names the fact's type.
func (TokenUsed) Type() Type { return "imgsrv.token.used.v1" }

// Type names the fact's type.
func (TokenRevoked) Type() Type { return "imgsrv.token.revoked.v1" }

// Expired says whether the token's time is over.
func (t Token) Expired(now time.Time) bool { return !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) }

var hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

const maxTokenNameBytes = 100

// IssueToken decides to hand out a token of a principal. A token of a trust rule has no principal to look at;
// owner is then the zero value.
func IssueToken(t Token, owner Current[Principal], now time.Time) ([]Change, error) {
	var c checker
	if len(t.Name) > maxTokenNameBytes {
		c.fail("name", t.Name, fmt.Sprintf("at most %d bytes", maxTokenNameBytes))
	}
	if !hashPattern.MatchString(t.Hash) {
		c.fail("hash", "", "a hash has 64 lower-case hex digits")
	}
	if t.Expired(now) {
		c.fail("expires_at", t.ExpiresAt.Format(time.RFC3339), "lies in the past")
	}
	checkGrants(&c, "roles", t.Grants)
	if err := c.refusal(); err != nil {
		return nil, err
	}
	if t.Trust == "" && t.Principal != AdminPrincipal {
		if err := needPrincipal(owner, t.Principal); err != nil {
			return nil, err
		}
	}
	return []Change{{Fact: TokenIssued{t}}}, nil
}

// RotateToken decides to put another token in a token's place: what it may and how long it lives stay the
// same, counted from now. The old one ends at once.
func RotateToken(current Current[Token], owner Current[Principal], id, newID, newHash, by string, now time.Time) ([]Change, error) {
	if err := needToken(current, id); err != nil {
		return nil, err
	}
	old := current.State
	if old.Principal != AdminPrincipal && old.IssuedAt.Before(owner.State.CreatedAt) {
		return nil, Refuse(CodeNotFound, "token %s was of a principal that was removed; the one of today has its name only", id)
	}
	if old.Trust != "" {
		return nil, Refuse(CodeInvalid, "token %s came in exchange for an OIDC token: exchange another one", id)
	}
	if old.Expired(now) {
		return nil, Refuse(CodeNotFound, "token %s has expired", id)
	}
	next := Token{ID: newID, Principal: old.Principal, Name: old.Name, Hash: newHash, Grants: old.Grants, Replaces: old.ID, IssuedBy: by, IssuedAt: now}
	if !old.ExpiresAt.IsZero() {
		next.ExpiresAt = now.Add(old.ExpiresAt.Sub(old.IssuedAt))
	}
	issued, err := IssueToken(next, owner, now)
	if err != nil {
		return nil, err
	}
	revoked, err := RevokeToken(current, id, by, now)
	return append(issued, revoked...), err
}

// RevokeToken decides to end a token.
func RevokeToken(current Current[Token], id, by string, at time.Time) ([]Change, error) {
	if err := needToken(current, id); err != nil {
		return nil, err
	}
	next := current.State
	next.Revoked, next.RevokedBy, next.RevokedAt = true, by, at
	return []Change{{Fact: TokenRevoked{next}, Expect: current.Sequence}}, nil
}

// UseToken records the day of a token's use; none where that is known, or the token has ended.
func UseToken(current Current[Token], at time.Time) []Change {
	day := at.UTC().Truncate(24 * time.Hour)
	if current.Sequence == 0 || current.State.Revoked || !day.After(current.State.LastUsed) {
		return nil
	}
	next := current.State
	next.LastUsed = day
	return []Change{{Fact: TokenUsed{next}, Expect: current.Sequence}}
}

func needToken(current Current[Token], id string) error {
	// Not by the sequence: the token in admin.token has no fact before its end.
	if current.State.ID == "" || current.State.Revoked {
		return Refuse(CodeNotFound, "there is no token %s, or it is revoked", id)
	}
	return nil
}
