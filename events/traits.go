package events

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"
)

// Bounds of what a publisher may say of a version in maps.
const (
	MaxLabels       = 64
	MaxRequirements = 32
)

var (
	labelPattern       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$`)
	requirementPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
)

// Traits is what a publisher says of a version beside its names: for people, for clients that choose among versions, and for
// hosts that must meet its requirements.
type Traits struct {
	ReleaseTitle string            `json:"release_title,omitempty"` // as people write it: 12 (bookworm)
	Codename     string            `json:"codename,omitempty"`
	SupportEOL   string            `json:"support_eol,omitempty"`  // the last day of support, YYYY-MM-DD
	Supported    *bool             `json:"supported,omitempty"`    // nil: the publisher was silent
	Labels       map[string]string `json:"labels,omitempty"`       // the publisher's own words
	Requirements map[string]string `json:"requirements,omitempty"` // Incus's image requirements without their prefix: secureboot
}

// IsSupported says whether the version counts as supported; one whose publisher was silent does.
func (t Traits) IsSupported() bool { return t.Supported == nil || *t.Supported }

// EndOfSupport is the day of SupportEOL, its beginning in UTC; zero where there is none.
func (t Traits) EndOfSupport() time.Time {
	day, err := time.Parse(time.DateOnly, t.SupportEOL)
	if err != nil {
		return time.Time{}
	}
	return day
}

// booleanRequirements are the requirements that Incus and LXD read as true or false. Any other word means nothing to them, so
// that a host would start what it must not.
var booleanRequirements = []string{"cdrom_agent", "cdrom_cloud_init", "nesting", "privileged", "secureboot"}

func (c *checker) traits(u *Upload) {
	c.text("release_title", u.ReleaseTitle, maxLineageText)
	c.text("codename", u.Codename, maxLineageText)
	if u.SupportEOL != "" {
		day, err := time.Parse(time.DateOnly, u.SupportEOL)
		switch {
		case err != nil:
			c.fail("support_eol", u.SupportEOL, "support_eol is a day, YYYY-MM-DD")
		case !day.After(u.InitiatedAt):
			c.fail("support_eol", u.SupportEOL, "support_eol is after the day of the publication: clients take an image for expired from then on")
		}
	}
	if len(u.Labels) > MaxLabels {
		c.fail("labels", fmt.Sprint(len(u.Labels)), fmt.Sprintf("a version has at most %d labels", MaxLabels))
	}
	for _, key := range slices.Sorted(maps.Keys(u.Labels)) {
		field := "labels." + shortened(key)
		if !labelPattern.MatchString(key) {
			c.fail(field, key, "a label's name has 1 to 63 letters, digits, '.', '_', '/' or '-', beginning with a letter or digit")
		}
		c.text(field, u.Labels[key], maxLineageText)
	}
	if len(u.Requirements) > MaxRequirements {
		c.fail("requirements", fmt.Sprint(len(u.Requirements)), fmt.Sprintf("a version has at most %d requirements", MaxRequirements))
	}
	for _, key := range slices.Sorted(maps.Keys(u.Requirements)) {
		field, value := "requirements."+shortened(key), u.Requirements[key]
		switch {
		case !requirementPattern.MatchString(key):
			c.fail(field, key, "a requirement's name has 1 to 63 lower-case letters, digits, '.', '_' or '-', beginning with a letter or digit")
		case slices.Contains(booleanRequirements, key) && value != "true" && value != "false":
			c.fail(field, value, "this requirement is true or false")
		case value == "":
			c.fail(field, value, "a requirement has a value")
		}
		c.text(field, value, maxLineageText)
	}
}

// shortened keeps a name that somebody else chose from filling an answer.
func shortened(name string) string {
	if len(name) > 80 {
		return name[:80]
	}
	return name
}
