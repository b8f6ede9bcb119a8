package eventcontract

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// source is what reflection can't tell of the Go types: their comments and their constants.
type source struct {
	docs      map[string]string   // of Type and of Type.Field
	constants map[string][]string // values of the string constants of a type, in order
}

// readSource parses the Go files of a folder, without tests.
func readSource(folder string) (*source, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return nil, fmt.Errorf("read source: %w", err)
	}
	s := &source{docs: map[string]string{}, constants: map[string][]string{}}
	set := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("read source: %w", err)
		}
		for _, decl := range file.Decls {
			if group, ok := decl.(*ast.GenDecl); ok {
				if err := s.readGroup(group); err != nil {
					return nil, fmt.Errorf("read %s: %w", name, err)
				}
			}
		}
	}
	return s, nil
}

func (s *source) readGroup(group *ast.GenDecl) error {
	for _, spec := range group.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			doc := spec.Doc
			if doc == nil && !group.Lparen.IsValid() {
				doc = group.Doc
			}
			s.docs[spec.Name.Name] = text(doc)
			if fields, ok := spec.Type.(*ast.StructType); ok {
				s.readFields(spec.Name.Name, fields)
			}
		case *ast.ValueSpec:
			if err := s.readConstants(group, spec); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *source) readFields(owner string, fields *ast.StructType) {
	for _, field := range fields.Fields.List {
		doc := text(field.Doc)
		if doc == "" {
			doc = text(field.Comment)
		}
		for _, name := range field.Names {
			s.docs[owner+"."+name.Name] = doc
		}
	}
}

func (s *source) readConstants(group *ast.GenDecl, spec *ast.ValueSpec) error {
	owner, ok := spec.Type.(*ast.Ident)
	if group.Tok != token.CONST || !ok {
		return nil
	}
	for _, value := range spec.Values {
		literal, ok := value.(*ast.BasicLit)
		if !ok || literal.Kind != token.STRING {
			continue
		}
		unquoted, err := strconv.Unquote(literal.Value)
		if err != nil {
			return fmt.Errorf("constant %s: %w", literal.Value, err)
		}
		s.constants[owner.Name] = append(s.constants[owner.Name], unquoted)
	}
	return nil
}

var docLink = regexp.MustCompile(`\[\*?([A-Z]\w*(?:\.\w+)?)\]`)

// text is a comment as one paragraph, without the brackets of Go's links.
func text(comment *ast.CommentGroup) string {
	return docLink.ReplaceAllString(strings.Join(strings.Fields(comment.Text()), " "), "$1")
}
