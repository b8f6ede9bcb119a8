package docs_test

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
)

// The stations of an entity's way are files that do what the table says of them, and where it says that there is none, there is none.
func TestTheWayOfEachEntityIsThatOfTheCode(t *testing.T) {
	t.Parallel()
	facts, goNames := map[string][]events.Type{}, map[string][]string{} // by kind
	for _, typ := range events.Types() {
		kind := events.KindOf(typ)
		facts[kind] = append(facts[kind], typ)
		if payload, _ := events.Payload(typ); ast.IsExported(payload.Name()) {
			goNames[kind] = append(goNames[kind], payload.Name())
		}
	}
	tables := map[string][]string{} // by kind, of its facts' rows
	for _, row := range factTable(t) {
		for _, name := range quoted.FindAllStringSubmatch(row.cells[2], -1) {
			tables[events.KindOf(row.fact)] = append(tables[events.KindOf(row.fact)], name[1])
		}
	}
	callers, following := callersOfRules(t), followers(t)
	for kind, cells := range walkTable(t) {
		state := strings.ToUpper(kind[:1]) + kind[1:]
		ofKind := append([]string{state + "Fact", "Kind" + state, state}, goNames[kind]...)
		for station, cell := range cells {
			file, reason := "", strings.TrimPrefix(cell, "- ")
			if named := quoted.FindStringSubmatch(cell); named != nil && reason == cell {
				file = named[1]
			} else if reason == cell || len(reason) < 10 {
				t.Errorf("%s: the %s station has neither a file nor a reason why it has none: %q", kind, station, cell)
				continue
			}
			text := ""
			if file != "" {
				text = page(t, "../"+file)
			}
			mentioned := strings.Contains(text, "."+state+"(ctx") || slices.ContainsFunc(ofKind, func(name string) bool { return strings.Contains(text, "events."+name) })
			switch station {
			case "request":
				if !slices.ContainsFunc(facts[kind], func(typ events.Type) bool { return callers[typ][file] }) {
					t.Errorf("%s: %s calls no rule that makes one of its facts", kind, file)
				}
			case "rule":
				if file != "events/"+kind+".go" {
					t.Errorf("%s: its rules are in %s", kind, file)
				}
				if diff := cmp.Diff(append([]string{state}, inOrder(goNames[kind])...), declared(t, file, append(goNames[kind], state))); diff != "" {
					t.Errorf("%s declares (-state and facts of the kind, +what is there):\n%s", file, diff)
				}
			case "consumer":
				follows := false
				for folder, kinds := range following {
					follows = follows || kinds[kind] && (file == "" || path.Dir(file) == folder)
				}
				if file == "" && follows || file != "" && strings.HasPrefix(file, "handlers/") && !follows || file != "" && !mentioned {
					t.Errorf("%s: consumer %q, and it is followed: %v", kind, file, follows)
				}
			case "rows":
				if (file == "") != (len(tables[kind]) == 0) || file != "" && !mentioned {
					t.Errorf("%s: rows by %q, and its facts move %v", kind, file, tables[kind])
				}
			case "query":
				shown := file == "" || mentioned
				if path.Dir(file) == "store/catalog" {
					shown = slices.ContainsFunc(tables[kind], func(table string) bool { return strings.Contains(text, table+" ") })
				}
				if !shown {
					t.Errorf("%s: %s shows nothing of it", kind, file)
				}
			}
		}
	}
}

// walkTable is the table of the stations, by entity and by the words of its head. It has all entities, as has the one of their ids.
func walkTable(t *testing.T) map[string]map[string]string {
	t.Helper()
	_, section, _ := strings.Cut(page(t, "events.md"), "## From a request to its answer\n")
	section, subjects, _ := strings.Cut(section, "## Subjects\n")
	subjects, _, _ = strings.Cut(subjects, "\n## ")
	rows, stations := map[string]map[string]string{}, []string(nil)
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| ---") {
			continue
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			cells = append(cells, strings.TrimSpace(cell))
		}
		if stations == nil {
			stations = cells
			continue
		}
		row := map[string]string{}
		for i, station := range stations[1:] {
			row[station] = cells[i+1]
		}
		rows[strings.Trim(cells[0], "`")] = row
	}
	if diff := cmp.Diff([]string{"entity", "request", "rule", "consumer", "rows", "query"}, stations); diff != "" {
		t.Fatalf("stations:\n%s", diff)
	}
	var walked, identified []string
	for kind := range rows {
		walked = append(walked, kind)
	}
	for line := range strings.Lines(subjects) {
		if first, _, isRow := strings.Cut(strings.TrimPrefix(line, "| "), " | "); isRow && first != line {
			for _, kind := range quoted.FindAllStringSubmatch(first, -1) {
				identified = append(identified, kind[1])
			}
		}
	}
	slices.Sort(walked)
	slices.Sort(identified)
	for name, kinds := range map[string][]string{"stations": walked, "ids": identified} {
		if diff := cmp.Diff(kindsOf(events.Types()), kinds); diff != "" {
			t.Errorf("the table of %s has other entities (-registry +docs/events.md):\n%s", name, diff)
		}
	}
	return rows
}

func inOrder(names []string) []string { return slices.Sorted(slices.Values(names)) }

// declared are those of some types that a file declares: the first, and then the rest by name.
func declared(t *testing.T, file string, of []string) []string {
	t.Helper()
	var names []string
	for _, f := range goFiles(t, path.Dir(file)) {
		if f.path != file {
			continue
		}
		ast.Inspect(f.File, func(node ast.Node) bool {
			if spec, ok := node.(*ast.TypeSpec); ok && slices.Contains(of, spec.Name.Name) {
				names = append(names, spec.Name.Name)
			}
			return true
		})
	}
	if len(names) > 1 {
		slices.Sort(names[1:])
	}
	return names
}
