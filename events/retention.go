package events

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

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
