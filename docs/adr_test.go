package docs_test

import (
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	required = regexp.MustCompile(`(?m)^\t(\S+) v\S+$`) // without "// indirect"
	moduleOf = regexp.MustCompile("`([a-z0-9.-]+\\.[a-z]+/[^`]+)`")
)

// Each direct dependency has its reason, and there is none for one that is gone.
func TestEachDirectDependencyIsJustified(t *testing.T) {
	t.Parallel()
	var want, got []string
	for _, found := range required.FindAllStringSubmatch(page(t, "../go.mod"), -1) {
		want = append(want, found[1])
	}
	for _, found := range moduleOf.FindAllStringSubmatch(page(t, "adr/0001-dependencies.md"), -1) {
		got = append(got, found[1])
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/adr/0001-dependencies.md (+) against go.mod (-):\n%s", diff)
	}
}
