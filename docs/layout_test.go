package docs_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Each package but the helpers of tests has its line in docs/architecture.md, and a comment of its own; there is no line for one that is gone.
func TestTheTableOfPackagesIsThatOfTheFolders(t *testing.T) {
	t.Parallel()
	comments := map[string]string{} // of all packages, by folder
	err := filepath.WalkDir("..", func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && (name == "testdata" || name == "node_modules" || strings.HasPrefix(name, ".") && name != "..") {
			return filepath.SkipDir
		}
		if entry.IsDir() || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			return err
		}
		folder := path.Dir(strings.TrimPrefix(filepath.ToSlash(file), "../"))
		comments[folder] += parsed.Doc.Text()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for folder, comment := range comments {
		if comment == "" {
			t.Errorf("package %s doesn't say why it exists", folder)
		}
		isHelper := strings.HasPrefix(folder, "internal/") && strings.HasSuffix(folder, "test") || folder == "internal/crash" || folder == "internal/testtool"
		if !isHelper && path.Base(folder) != "cmd" { // internal/gen/eventcontract/cmd only calls its package
			want = append(want, folder)
		}
	}
	_, table, _ := strings.Cut(page(t, "architecture.md"), "| package | why it exists |")
	table, _, _ = strings.Cut(table, "\n\n")
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		for _, name := range quoted.FindAllStringSubmatch(cells[min(1, len(cells)-1)], -1) {
			got = append(got, name[1])
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/architecture.md (+) against the folders (-):\n%s", diff)
	}
}
