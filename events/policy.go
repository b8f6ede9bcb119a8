package events

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of a policy.
const (
	MaxPolicyFormats = 20
	MaxDeltas        = 20
	maxKeep          = 100_000 // versions, or days
)

// Policy says what is made of an image's versions, and how long they are kept.
type Policy struct {
	// Formats are made of what was published, where a variant doesn't bring them.
	Formats []PolicyFormat `json:"formats,omitempty"`
	// Deltas is against how many older versions deltas are made; absent: as many as the server makes by default.
	Deltas    *int      `json:"deltas,omitempty"`
	Retention Retention `json:"retention,omitzero"`
}

// PolicyFormat is a format to be made of each variant that it can be made of.
type PolicyFormat struct {
	Format string `json:"format"` // such as disk.raw.zst
	// Required: that it can't be made is an error; without it, it is left out.
	Required bool `json:"required"`
}

// Retention says which versions stay published: the newest KeepLast, those published within KeepDays days, and always
// the newest, those that an alias names, and those that somebody restored. Both 0: all stay.
type Retention struct {
	KeepLast int `json:"keep_last,omitempty"` // versions
	KeepDays int `json:"keep_days,omitempty"` // days of 24 hours since the publication
}

// SetPolicy decides to give an image a policy. The one that it has already changes nothing.
func SetPolicy(image Current[Image], policy Policy) ([]Change, error) {
	if image.Sequence == 0 {
		return nil, Refuse(CodeNotFound, "there is no such image")
	}
	if err := checkPolicy(policy); err != nil {
		return nil, err
	}
	next := image.State
	if next.Policy != nil && samePolicy(*next.Policy, policy) {
		return nil, nil
	}
	next.Policy = &policy
	return []Change{{Fact: ImagePolicySet{next}, Expect: image.Sequence}}, nil
}

func samePolicy(a, b Policy) bool {
	return slices.Equal(a.Formats, b.Formats) && a.Retention == b.Retention &&
		(a.Deltas == nil) == (b.Deltas == nil) && (a.Deltas == nil || *a.Deltas == *b.Deltas)
}

func checkPolicy(p Policy) error {
	var c checker
	if len(p.Formats) > MaxPolicyFormats {
		c.fail("formats", "", fmt.Sprintf("a policy names at most %d formats", MaxPolicyFormats))
	}
	seen := map[string]bool{}
	for i, f := range p.Formats {
		field := fmt.Sprintf("formats[%d].format", i)
		if err := CheckFormatName(f.Format); err != nil {
			c.fail(field, f.Format, err.Error())
		} else if seen[f.Format] {
			c.fail(field, f.Format, "a policy names a format once")
		}
		seen[f.Format] = true
	}
	if p.Deltas != nil && (*p.Deltas < 0 || *p.Deltas > MaxDeltas) {
		c.fail("deltas", fmt.Sprint(*p.Deltas), fmt.Sprintf("deltas are made against 0 to %d older versions", MaxDeltas))
	}
	for _, keep := range []struct {
		field string
		n     int
	}{{"retention.keep_last", p.Retention.KeepLast}, {"retention.keep_days", p.Retention.KeepDays}} {
		if keep.n < 0 || keep.n > maxKeep {
			c.fail(keep.field, fmt.Sprint(keep.n), fmt.Sprintf("%s is 0, for no such rule, to %d", keep.field, maxKeep))
		}
	}
	return c.refusal()
}

// ChangeVisibility decides who may see an image. The visibility that it has already changes nothing.
func ChangeVisibility(image Current[Image], visibility Visibility) ([]Change, error) {
	if image.Sequence == 0 {
		return nil, Refuse(CodeNotFound, "there is no such image")
	}
	var c checker
	if visibility != Public && visibility != Private {
		c.fail("visibility", string(visibility), "a visibility is public or private")
	}
	if err := c.refusal(); err != nil {
		return nil, err
	}
	next := image.State
	if next.Visibility == visibility {
		return nil, nil
	}
	next.Visibility = visibility
	return []Change{{Fact: ImageVisibilityChanged{next}, Expect: image.Sequence}}, nil
}

// Unkept are the versions of an image that its retention doesn't keep at a moment, oldest first. versions and aliases
// are all of the image, in any order and any state.
func (r Retention) Unkept(versions []Version, aliases []Alias, now time.Time) []Version {
	if r == (Retention{}) {
		return nil
	}
	named := map[string]bool{}
	for _, alias := range aliases {
		named[alias.Version] = true
	}
	var published []Version
	for _, v := range versions {
		if v.State == StatePublished && v.Manifest != nil {
			published = append(published, v)
		}
	}
	slices.SortFunc(published, func(a, b Version) int { // newest first
		return cmp.Or(b.Manifest.PublishedAt.Compare(a.Manifest.PublishedAt), cmp.Compare(b.UploadID, a.UploadID))
	})
	young := now.Add(-time.Duration(r.KeepDays) * 24 * time.Hour)
	var unkept []Version
	for i, v := range published {
		if i >= max(r.KeepLast, 1) && !named[v.Version] && v.Restoration == nil && !v.Manifest.PublishedAt.After(young) {
			unkept = append(unkept, v)
		}
	}
	slices.Reverse(unkept)
	return unkept
}

// Reason is why a version that isn't kept is withdrawn.
func (r Retention) Reason() string {
	var rules []string
	if r.KeepLast > 0 {
		rules = append(rules, fmt.Sprintf("the newest %d", r.KeepLast))
	}
	if r.KeepDays > 0 {
		rules = append(rules, fmt.Sprintf("those of the last %d days", r.KeepDays))
	}
	return "retention: the image's policy keeps " + strings.Join(rules, " and ")
}
