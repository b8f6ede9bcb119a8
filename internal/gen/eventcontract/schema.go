package eventcontract

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/imgsrv/imgsrv/events"
)

const (
	dialect       = "https://json-schema.org/draft/2020-12/schema"
	schemaIDStart = "urn:imgsrv:event:"
	wholeState    = "The payload is the whole state of its entity after the event."
	digestPattern = `^(sha256:[0-9a-f]{64})?$`
)

// schemasOf makes the JSON Schema (draft 2020-12) of each type that events.Decode reads, from its Go type and
// from the comments and constants of package events below root. Schemas leave room for properties they
// don't know, as readers must.
func schemasOf(root string) (map[events.Type]*jsonschema.Schema, error) {
	src, err := readSource(filepath.Join(root, "events"))
	if err != nil {
		return nil, err
	}
	out := map[events.Type]*jsonschema.Schema{}
	for _, typ := range events.Types() {
		payload, _ := events.Payload(typ)
		schema, err := src.schema(payload, false)
		if err != nil {
			return nil, fmt.Errorf("schema of %s: %w", typ, err)
		}
		current, err := currentType(typ)
		if err != nil {
			return nil, err
		}
		schema.Schema, schema.ID, schema.Title = dialect, schemaIDStart+string(typ), string(typ)
		schema.Description = strings.TrimSpace(schema.Description + " " + wholeState)
		if current != typ {
			schema.Deprecated = true
			schema.Description += " Not written any more; " + string(current) + " took its place."
		}
		out[typ] = schema
	}
	return out, nil
}

// currentType is the newest version of a type: itself, or the one that it is upcast to.
func currentType(typ events.Type) (events.Type, error) {
	fact, err := events.Decode(typ, []byte("{}"))
	if err != nil {
		return "", fmt.Errorf("newest version of %s: %w", typ, err)
	}
	return fact.Type(), nil
}

// encode writes a schema as it is checked in.
func encode(schema *jsonschema.Schema) ([]byte, error) {
	data, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode schema: %w", err)
	}
	return append(data, '\n'), nil
}

func (s *source) schema(t reflect.Type, nullable bool) (*jsonschema.Schema, error) {
	out := &jsonschema.Schema{Description: s.docs[t.Name()]}
	if t.Kind() == reflect.Pointer {
		return s.schema(t.Elem(), nullable)
	}
	var kind string
	var err error
	switch {
	case t == reflect.TypeFor[time.Time]():
		kind, out.Format, out.Description = "string", "date-time", ""
	case t == reflect.TypeFor[events.Digest]():
		kind, out.Pattern = "string", digestPattern
	case t.Kind() == reflect.String:
		kind = "string"
		for _, value := range s.constants[t.Name()] {
			out.Enum = append(out.Enum, value)
		}
	case t.Kind() == reflect.Bool:
		kind = "boolean"
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Int64:
		kind = "integer"
	case t.Kind() >= reflect.Uint && t.Kind() <= reflect.Uint64:
		kind, out.Minimum = "integer", new(float64)
	case t == reflect.TypeFor[[]byte]():
		kind, out.ContentEncoding = "string", "base64"
	case t.Kind() == reflect.Slice:
		kind = "array"
		out.Items, err = s.schema(t.Elem(), canBeNull(t.Elem()))
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
		kind = "object"
		out.AdditionalProperties, err = s.schema(t.Elem(), canBeNull(t.Elem()))
	case t.Kind() == reflect.Struct:
		kind, out.Properties = "object", map[string]*jsonschema.Schema{}
		err = s.properties(t, out)
	default:
		err = fmt.Errorf("no rule for Go type %s", t)
	}
	if out.Type = kind; nullable {
		out.Type, out.Types = "", []string{kind, "null"}
	}
	return out, err
}

// properties adds a struct's fields by the rules of encoding/json, those of embedded structs too.
func (s *source) properties(t reflect.Type, out *jsonschema.Schema) error {
	for field := range t.Fields() {
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if field.Anonymous && name == "" {
			if err := s.properties(field.Type, out); err != nil {
				return err
			}
			continue
		}
		if name == "-" || !field.IsExported() {
			continue
		}
		if name == "" || out.Properties[name] != nil {
			return fmt.Errorf("field %s of %s needs a JSON name of its own", field.Name, t)
		}
		optional := strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero")
		property, err := s.schema(field.Type, !optional && canBeNull(field.Type))
		if err != nil {
			return fmt.Errorf("field %s: %w", field.Name, err)
		}
		if doc := s.docs[t.Name()+"."+field.Name]; doc != "" {
			property.Description = doc
		}
		out.Properties[name] = property
		out.PropertyOrder = append(out.PropertyOrder, name)
		if !optional {
			out.Required = append(out.Required, name)
		}
	}
	return nil
}

func canBeNull(t reflect.Type) bool {
	return slices.Contains([]reflect.Kind{reflect.Pointer, reflect.Slice, reflect.Map}, t.Kind())
}
