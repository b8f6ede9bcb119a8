package events

import (
	"fmt"
	"slices"
	"strings"
)

// Role says what somebody may do.
type Role string

// The roles. Each one but admin is held on the whole server or on the images of a pattern; publishers and
// operators may also read what they publish and operate.
const (
	RoleReader    Role = "reader"    // see private images
	RolePublisher Role = "publisher" // upload, publish, move aliases
	RoleOperator  Role = "operator"  // jobs; on the whole server also projections, webhooks, backup
	RoleAdmin     Role = "admin"     // principals, tokens, and everything else
)

// Roles lists them, the weakest first.
func Roles() []Role { return []Role{RoleReader, RolePublisher, RoleOperator, RoleAdmin} }

// Grant is a role on the images whose names match a pattern, or on the whole server.
type Grant struct {
	Role   Role   `json:"role"`
	Images string `json:"images,omitempty"` // pattern in which '*' stands for any characters; "" for the whole server
}

// Covers says whether the grant gives a role on an image; image "" asks for the role on the whole server.
func (g Grant) Covers(role Role, image string) bool {
	if g.Images != "" && (image == "" || !MatchStars(g.Images, image)) {
		return false
	}
	switch g.Role {
	case RoleAdmin:
		return g.Images == ""
	case RoleReader:
		return role == RoleReader
	}
	return g.Role == role || role == RoleReader
}

// String is the grant for people: publisher on team-a-*.
func (g Grant) String() string {
	if g.Images == "" {
		return string(g.Role)
	}
	return string(g.Role) + " on " + g.Images
}

// maxGrants bounds what one principal, token or rule holds.
const maxGrants = 50

// checkGrants refuses roles that don't exist and patterns that match no image.
func checkGrants(c *checker, field string, grants []Grant) {
	if len(grants) > maxGrants {
		c.fail(field, "", fmt.Sprintf("at most %d roles", maxGrants))
	}
	for i, g := range grants {
		at := fmt.Sprintf("%s[%d]", field, i)
		if !slices.Contains(Roles(), g.Role) {
			c.fail(at+".role", string(g.Role), "a role is reader, publisher, operator or admin")
		}
		if g.Images == "" {
			continue
		}
		if err := CheckImagePattern(g.Images); err != nil {
			c.fail(at+".images", g.Images, err.Error())
		}
		if g.Role == RoleAdmin {
			c.fail(at+".images", g.Images, "an admin is one of the whole server")
		}
	}
}

// CheckImagePattern is as [CheckImageName], for a pattern of such names.
func CheckImagePattern(pattern string) error {
	// A star may stand for nothing or for anything, so what is checked is the rest.
	if len(pattern) > 127 || CheckImageName(strings.ReplaceAll(pattern, "*", "a")) != nil {
		return fmt.Errorf("a pattern of images is the name of an image, in which * stands for any characters")
	}
	return nil
}

// MatchStars compares a name with a pattern: each * of the pattern stands for any characters, also none.
func MatchStars(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	last := len(parts) - 1
	s, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1:last] {
		if _, s, ok = strings.Cut(s, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(s, parts[last])
}
