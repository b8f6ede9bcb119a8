// Package docs_test holds the pages of this folder against the code, so that they can't fall behind it unnoticed. It knows what tables
// and headings the pages have, and nothing of the site that is made of them.
package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// factRow is a row of the fact table: type, appended by, consumed by, rows.
type factRow struct {
	fact  events.Type
	cells []string
}

func factTable(t *testing.T) []factRow {
	t.Helper()
	var rows []factRow
	for line := range strings.Lines(page(t, "events.md")) {
		if !strings.HasPrefix(line, "| `imgsrv.") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 {
			t.Fatalf("a row of the fact table has %d cells, want 4: %s", len(cells), line)
		}
		rows = append(rows, factRow{events.Type(strings.Trim(cells[0], " `")), cells[1:]})
	}
	return rows
}

func TestTheFactTableNamesEveryTypeOfTheRegistry(t *testing.T) {
	t.Parallel()
	var documented []events.Type
	for _, row := range factTable(t) {
		documented = append(documented, row.fact)
	}
	slices.Sort(documented)
	if diff := cmp.Diff(events.Types(), documented); diff != "" {
		t.Errorf("docs/events.md (+) against events.Types() (-):\n%s", diff)
	}
}

var (
	quoted  = regexp.MustCompile("`([^`]+)`")
	created = regexp.MustCompile(`(?m)^CREATE TABLE (\w+)`)
)

// What is written as code in the fact table is a file or folder of the project or, in the last column, a table.
func TestTheFactTableNamesWhatExists(t *testing.T) {
	t.Parallel()
	tables := projectionTables(t)
	for _, row := range factTable(t) {
		for _, cell := range row.cells[:2] {
			for _, name := range quoted.FindAllStringSubmatch(cell, -1) {
				if _, err := os.Stat(filepath.Join("..", filepath.FromSlash(name[1]))); err != nil {
					t.Errorf("%s: %v", row.fact, err)
				}
			}
		}
		for _, name := range quoted.FindAllStringSubmatch(row.cells[2], -1) {
			if !tables[name[1]] {
				t.Errorf("%s: there is no table %s", row.fact, name[1])
			}
		}
	}
}

// projectionTables are the tables that the migrations make, as schema.table.
func projectionTables(t *testing.T) map[string]bool {
	t.Helper()
	tables := map[string]bool{}
	err := filepath.WalkDir(filepath.Join("..", "migrations"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".sql" {
			return err
		}
		text, err := os.ReadFile(path)
		for _, name := range created.FindAllStringSubmatch(string(text), -1) {
			tables[filepath.Base(filepath.Dir(path))+"."+name[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(tables) == 0 {
		t.Fatal("no tables were found in the migrations")
	}
	return tables
}

var problemHeading = regexp.MustCompile("(?m)^## `([a-z0-9-]+)`\n\\*\\*(\\d+)\\*\\* (.+)$")

func TestThePageOfProblemsIsTheTableOfProblems(t *testing.T) {
	t.Parallel()
	want, got := map[string]string{}, map[string]string{}
	for _, code := range problem.Codes() {
		details := problem.New(code, "")
		want[string(code)] = fmt.Sprintf("%d %s", details.Status, details.Title)
	}
	for _, found := range problemHeading.FindAllStringSubmatch(page(t, "problems.md"), -1) {
		if _, twice := got[found[1]]; twice {
			t.Errorf("%s is described twice", found[1])
		}
		got[found[1]] = found[2] + " " + found[3]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/problems.md (+) against the table of handlers/problem (-):\n%s", diff)
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+\.md)(#[^)]*)?\)`)

func TestLinksBetweenPagesLeadSomewhere(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(pages, "../README.md", "../CONTRIBUTING.md") {
		text := page(t, name)
		if filepath.Dir(name) == "." && !strings.HasPrefix(text, "---\ntitle: ") {
			t.Errorf("%s does not begin with its title", name)
		}
		for _, target := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), filepath.FromSlash(target[1]))); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// An open fence turns the rest of a page inside out.
func TestCodeFencesAreClosed(t *testing.T) {
	t.Parallel()
	pages, err := filepath.Glob("*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(err)
	}
	for _, page := range append(pages, "../README.md", "../SECURITY.md", "../CONTRIBUTING.md", "../CHANGELOG.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		open := 0 // line of the open fence
		for i, line := range strings.Split(string(text), "\n") {
			fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
			switch {
			case !isFence:
			case open == 0:
				open = i + 1
			case fence != "":
				t.Errorf("%s:%d opens a fence inside of the one of line %d", page, i+1, open)
			default:
				open = 0
			}
		}
		if open != 0 {
			t.Errorf("%s:%d opens a fence that is never closed", page, open)
		}
	}
}
