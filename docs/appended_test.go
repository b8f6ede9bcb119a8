package docs_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events"
)

// Who is said to append a fact calls a rule that makes it, and every file that calls one is named, by itself or by its folder.
func TestTheFactTableNamesWhoAppendsEachFact(t *testing.T) {
	t.Parallel()
	callers := callersOfRules(t)
	// events.Withdraw moves or ends aliases where it is told to; retention tells it nothing, and withdraws what no alias names.
	for _, never := range []events.Type{"imgsrv.version.named.v1", "imgsrv.alias.moved.v2", "imgsrv.alias.removed.v1"} {
		delete(callers[never], "handlers/retention/retention.go")
	}
	for _, row := range factTable(t) {
		unnamed, idle := callers[row.fact], map[string]bool{}
		for _, name := range quoted.FindAllStringSubmatch(row.cells[0], -1) {
			idle[name[1]] = true
			for file := range callers[row.fact] {
				if file == name[1] || path.Dir(file) == name[1] {
					delete(idle, name[1])
					unnamed = maps.Clone(unnamed)
					delete(unnamed, file)
				}
			}
		}
		if len(unnamed) > 0 || len(idle) > 0 {
			t.Errorf("%s: calls of its rules in %v are not named; %v are named and call none", row.fact, slices.Sorted(maps.Keys(unnamed)), slices.Sorted(maps.Keys(idle)))
		}
	}
}

// callersOfRules are, of each type of fact, the files outside of package events that call a function of it which makes such a fact, also by way of others.
func callersOfRules(t *testing.T) map[events.Type]map[string]bool {
	t.Helper()
	types := map[string]events.Type{} // by the fact's name in Go
	for _, typ := range events.Types() {
		if payload, _ := events.Payload(typ); ast.IsExported(payload.Name()) { // else an old version, that nobody makes any more
			types[payload.Name()] = typ
		}
	}
	makes := map[string]map[events.Type]bool{} // by function of package events
	calls := map[string]map[string]bool{}
	for _, file := range goFiles(t, "events") {
		if path.Dir(file.path) != "events" {
			continue
		}
		for _, decl := range file.Decls {
			function, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := function.Name.Name
			ast.Inspect(function, func(node ast.Node) bool {
				switch n := node.(type) {
				case *ast.CompositeLit:
					if id, ok := n.Type.(*ast.Ident); ok && types[id.Name] != "" {
						add(makes, name, types[id.Name])
					}
				case *ast.CallExpr:
					if id, ok := n.Fun.(*ast.Ident); ok {
						add(calls, name, id.Name)
					}
				}
				return true
			})
		}
	}
	for again := true; again; {
		again = false
		for name, called := range calls {
			for other := range called {
				for typ := range makes[other] {
					if !makes[name][typ] {
						add(makes, name, typ)
						again = true
					}
				}
			}
		}
	}
	callers := map[events.Type]map[string]bool{}
	for _, file := range slices.Concat(goFiles(t, "handlers"), goFiles(t, "events/jetstream"), goFiles(t, "projections"), goFiles(t, "store"), goFiles(t, "cmd")) {
		ast.Inspect(file.File, func(node ast.Node) bool {
			if expression, ok := node.(*ast.SelectorExpr); ok {
				if rule, ok := strings.CutPrefix(selected(expression), "events."); ok {
					for typ := range makes[rule] {
						add(callers, typ, file.path)
					}
				}
			}
			return true
		})
	}
	return callers
}

func add[K, V comparable](sets map[K]map[V]bool, key K, value V) {
	if sets[key] == nil {
		sets[key] = map[V]bool{}
	}
	sets[key][value] = true
}

type goFile struct {
	*ast.File
	path string // below the project's folder, with slashes
}

// goFiles are the parsed files of a folder and those below it, without tests.
func goFiles(t *testing.T, folder string) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(filepath.Join("..", filepath.FromSlash(folder)), func(name string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		below, err := filepath.Rel("..", name)
		files = append(files, goFile{file, filepath.ToSlash(below)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
