package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	namedTest    = regexp.MustCompile("`(?:([a-z0-9/]+): )?((?:Test|Fuzz)[A-Z]\\w*)`")
	testDeclared = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Z]\w*)\(`)
)

// What the threat model says is shown by a test is shown by one that there is, in the package that is named.
func TestTheThreatModelNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	declared := map[string][]string{} // packages by test
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, found := range testDeclared.FindAllStringSubmatch(string(text), -1) {
			folder := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), "../"))
			declared[found[1]] = append(declared[found[1]], folder)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := namedTest.FindAllStringSubmatch(page(t, "threat-model.md"), -1)
	if len(named) < 20 {
		t.Fatalf("the page names %d tests", len(named))
	}
	for folder, i := "", 0; i < len(named); i++ {
		if named[i][1] != "" {
			folder = named[i][1] // the tests after it are of the same package, until another one is named
		}
		there := false
		for _, in := range declared[named[i][2]] {
			there = there || in == folder
		}
		if !there {
			t.Errorf("%s has no test %s: it is in %v", folder, named[i][2], declared[named[i][2]])
		}
	}
}
