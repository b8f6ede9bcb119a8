package events

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

// PrincipalKind says what a principal is, for people who read lists; both may do the same.
type PrincipalKind string

// The kinds of principal.
const (
	Person  PrincipalKind = "person"
	Service PrincipalKind = "service"
)

// AdminPrincipal is there without a fact and can't be changed: who has a server's data folder finds a token of it
// in admin.token.
const AdminPrincipal = "admin"

// Principal is who may do something: a person or a service. It holds roles; its tokens say that a request is its.
type Principal struct {
	Name        string        `json:"name"`
	Kind        PrincipalKind `json:"kind"`
	Description string        `json:"description,omitempty"`
	Grants      []Grant       `json:"grants"`
	Removed     bool          `json:"removed,omitempty"`
	CreatedBy   string        `json:"created_by"`
	CreatedAt   time.Time     `json:"created_at"`
	RemovedBy   string        `json:"removed_by,omitempty"`
	RemovedAt   time.Time     `json:"removed_at,omitzero"`
}

// The facts of a principal.
type (
	// PrincipalCreated begins it, also one of that name that was removed: its old tokens stay dead.
	PrincipalCreated struct{ Principal }
	// PrincipalRoleGranted gives it a role.
	PrincipalRoleGranted struct {
		Principal
		Grant Grant `json:"grant"`
	}
	// PrincipalRoleRevoked takes a role from it.
	PrincipalRoleRevoked struct {
		Principal
		Grant Grant `json:"grant"`
	}
	// PrincipalRemoved ends it, and every token that it has.
	PrincipalRemoved struct{ Principal }
)

// PrincipalFact is any fact of a principal.
type PrincipalFact = FactOf[Principal]

// After is the principal after the fact.
func (p Principal) After() Principal { return p }

// Entity names the principal.
func (p Principal) Entity() Entity { return PrincipalEntity(p.Name) }

// Type names the fact's type.
func (PrincipalCreated) Type() Type { return "imgsrv.principal.created.v1" }

// Type names the fact's type.
func (PrincipalRoleGranted) Type() Type { return "imgsrv.principal.role_granted.v1" }

// Type names the fact's type.
func (PrincipalRoleRevoked) Type() Type { return "imgsrv.principal.role_revoked.v1" }

// Type names the fact's type.
func (PrincipalRemoved) Type() Type { return "imgsrv.principal.removed.v1" }

// A colon would make a name look like that of an OIDC identity; imgsrv is who does what nobody asked for.
var principalPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._@+-]{0,62}$`)

// CheckPrincipalName is as [CheckImageName].
func CheckPrincipalName(s string) error {
	if !principalPattern.MatchString(s) || s == "imgsrv" {
		return fmt.Errorf("a principal's name has 1 to 63 lower-case letters, digits, '.', '_', '@', '+' or '-', begins with a letter or digit, and isn't imgsrv")
	}
	return nil
}

const maxDescriptionBytes = 500

// CreatePrincipal decides to make a principal.
func CreatePrincipal(p Principal, current Current[Principal]) ([]Change, error) {
	var c checker
	c.name("name", p.Name, CheckPrincipalName)
	if p.Kind != Person && p.Kind != Service {
		c.fail("kind", string(p.Kind), "a principal is a person or a service")
	}
	if len(p.Description) > maxDescriptionBytes {
		c.fail("description", p.Description, fmt.Sprintf("at most %d bytes", maxDescriptionBytes))
	}
	checkGrants(&c, "roles", p.Grants)
	if err := c.refusal(); err != nil {
		return nil, err
	}
	if current.Sequence != 0 && !current.State.Removed || p.Name == AdminPrincipal {
		return nil, Refuse(CodePrincipalExists, "there is a principal %s already", p.Name)
	}
	return []Change{{Fact: PrincipalCreated{p}, Expect: current.Sequence}}, nil
}

// GrantRole decides to give a principal a role; one that it has changes nothing.
func GrantRole(current Current[Principal], name string, g Grant) ([]Change, error) {
	if err := needPrincipal(current, name); err != nil {
		return nil, err
	}
	next := current.State
	if slices.Contains(next.Grants, g) {
		return nil, nil
	}
	next.Grants = append(slices.Clone(next.Grants), g)
	var c checker
	checkGrants(&c, "roles", next.Grants)
	if err := c.refusal(); err != nil {
		return nil, err
	}
	return []Change{{Fact: PrincipalRoleGranted{Principal: next, Grant: g}, Expect: current.Sequence}}, nil
}

// RevokeRole decides to take a role from a principal.
func RevokeRole(current Current[Principal], name string, g Grant) ([]Change, error) {
	if err := needPrincipal(current, name); err != nil {
		return nil, err
	}
	next := current.State
	i := slices.Index(next.Grants, g)
	if i < 0 {
		return nil, Refuse(CodeNotFound, "principal %s is not %s", name, g)
	}
	next.Grants = slices.Delete(slices.Clone(next.Grants), i, i+1)
	return []Change{{Fact: PrincipalRoleRevoked{Principal: next, Grant: g}, Expect: current.Sequence}}, nil
}

// RemovePrincipal decides to end a principal.
func RemovePrincipal(current Current[Principal], name, by string, at time.Time) ([]Change, error) {
	if err := needPrincipal(current, name); err != nil {
		return nil, err
	}
	next := current.State
	next.Removed, next.RemovedBy, next.RemovedAt = true, by, at
	return []Change{{Fact: PrincipalRemoved{next}, Expect: current.Sequence}}, nil
}

// needPrincipal refuses a principal that can't be changed or isn't there.
func needPrincipal(current Current[Principal], name string) error {
	if name == AdminPrincipal {
		return Refuse(CodeBuiltIn, "the principal %s is built in and stays as it is: what can be revoked are its tokens", name)
	}
	if current.Sequence == 0 || current.State.Removed {
		return Refuse(CodeNotFound, "there is no principal %s", name)
	}
	return nil
}
