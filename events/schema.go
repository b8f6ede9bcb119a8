package events

import (
	"embed"
	"fmt"
	"reflect"
)

//go:generate go run ../internal/gen/eventcontract/cmd -root ..

//go:embed schemas/*.json
var schemas embed.FS

// Schema is the JSON Schema (draft 2020-12) of a type's payload, as checked in under schemas/. The error
// wraps ErrUnknownType for a type that this release doesn't know.
func Schema(t Type) ([]byte, error) {
	if _, ok := registry[t]; !ok {
		return nil, fmt.Errorf("schema of %q: %w", t, ErrUnknownType)
	}
	data, err := schemas.ReadFile("schemas/" + string(t) + ".json")
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", t, err)
	}
	return data, nil
}

// Payload is the Go type whose JSON encoding is the payload of a stored type: for an old version the struct
// of that version, not the one that [Decode] answers with. ok is false for an unknown type.
func Payload(t Type) (payload reflect.Type, ok bool) {
	c, ok := registry[t]
	return c.payload, ok
}
