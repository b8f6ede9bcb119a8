// Package events holds what can happen in imgsrv and the rules of it: the facts, their envelope, the
// subjects they are stored under, and for each entity the pure functions that decide which fact may
// come next. It knows no clock, no network, no database, and imports nothing of the project.
//
// # Shape
//
// Each entity has one subject in the stream, and each fact carries the whole state of its entity, so
// that the last fact of a subject is all a rule needs. A rule takes states and a command and answers
// with facts or with an [*Error]; whoever calls it appends the facts in one atomic batch, each with the
// sequence its state was read at ([Change]).
//
// What an entity is, its facts and their rules are in the file of its name, version.go for versions, in this order; what needs room
// of its own has a file beside it. docs/events.md has the table of all facts.
//
// # Versions of a type
//
// A type's version is in its name (imgsrv.version.published.v1). Old versions stay readable for ever:
// [Decode] upcasts them to the current Go type, and testdata keeps one golden file for each. schemas holds
// the JSON Schema of each payload ([Schema]), made of the Go types by go generate; see docs/event-contracts.md.
package events
