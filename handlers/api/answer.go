package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// What the requests and answers of all resources have in common.

// entityOutput is an entity as of its last event.
type entityOutput[B any] struct {
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of its last event; send it as Imgsrv-Min-Sequence to read your own write"`
	Body     B
}

// locatedOutput is an entity that was made or changed, and where it is.
type locatedOutput[B any] struct {
	Location string `header:"Location" doc:"Where it is"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of its last event; send it as Imgsrv-Min-Sequence to read your own write"`
	Body     B
}

// secretOutput is as locatedOutput, with what is shown this once and nobody may keep.
type secretOutput[B any] struct {
	Location string `header:"Location" doc:"Where it is, without the secret"`
	Cache    string `header:"Cache-Control"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event; send it as Imgsrv-Min-Sequence to read your own write"`
	Body     B
}

// bodyOutput is what has no event of its own.
type bodyOutput[B any] struct{ Body B }

type removedOutput struct {
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the event; send it as Imgsrv-Min-Sequence to read your own write"`
}

func entityAnswer[S, B any](current events.Current[S], body B) *entityOutput[B] {
	return &entityOutput[B]{Sequence: uint64(current.Sequence), Body: body}
}

func locatedAnswer[S, B any](location string, current events.Current[S], body B) *locatedOutput[B] {
	return &locatedOutput[B]{Location: location, Sequence: uint64(current.Sequence), Body: body}
}

func removedAnswer[S any](current events.Current[S], err error) (*removedOutput, error) {
	if err != nil {
		return nil, err
	}
	return &removedOutput{Sequence: uint64(current.Sequence)}, nil
}

// change appends what a rule decides about an entity, as the doing of the caller, and returns the entity as it is then. Where somebody
// was faster it is read and decided again. Of changes to several of its kind the last is the entity's.
func change[S any](ctx context.Context, s *server, id string, read func(context.Context, string) (events.Current[S], error),
	rule func(context.Context, events.Current[S]) ([]events.Change, error)) (after events.Current[S], err error) {
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: access.From(ctx).Name}, func(ctx context.Context) ([]events.Change, error) {
		current, err := read(ctx, id)
		if err != nil {
			return nil, err
		}
		changes, err := rule(ctx, current)
		after = current
		for _, c := range changes {
			after.State = events.Fold(after.State, c.Fact)
		}
		return changes, err
	})
	after.Sequence = max(after.Sequence, sequence)
	return after, err
}

// PageInput asks for a page of a list. It is exported since huma passes over fields of an unexported one.
type PageInput struct {
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Entries on a page"`
	After string `query:"after" doc:"next of the page before"`
}

// PageHeader leads to the next page.
type PageHeader struct {
	Link string `header:"Link" doc:"The next page, rel=next (RFC 8288)"`
}

// next leads to the page behind this one; nowhere on the last one. more are further parameters, name and value in turn; empty ones
// are left out.
func (p PageInput) next(ctx context.Context, path, next string, more ...string) PageHeader {
	if next == "" {
		return PageHeader{}
	}
	query := url.Values{"after": {next}, "limit": {strconv.Itoa(p.Limit)}}
	for i := 0; i+1 < len(more); i += 2 {
		if more[i+1] != "" {
			query.Set(more[i], more[i+1])
		}
	}
	return PageHeader{Link: fmt.Sprintf("<%s%s?%s>; rel=\"next\"", base(ctx), path, query.Encode())}
}

// listed makes an empty list of none, which is [] and not null in JSON.
func listed(names []string) []string {
	if names == nil {
		return []string{}
	}
	return names
}

func timeOrNone(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// etagOf tells texts apart.
func etagOf(text []byte) string {
	sum := sha256.Sum256(text)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
}

// etagMatches compares as If-None-Match wants: any of the tags, weak or strong, or * (RFC 9110 13.1.2).
func etagMatches(header, etag string) bool {
	for _, tag := range strings.Split(header, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}

// missing is the refusal of what isn't there, and of what the caller may not see: the two look the same.
func missing(format string, args ...any) error {
	return events.Refuse(events.CodeNotFound, format, args...)
}

// notFoundAs puts what is missing into words where a store only says that something is.
func notFoundAs(err, gone error) error {
	if errors.Is(err, catalog.ErrNotFound) {
		return gone
	}
	return err
}

func invalid(field, value string, rule error) error {
	return &events.Error{Code: events.CodeInvalid, Text: field + ": " + rule.Error(),
		Fields: []events.FieldError{{Field: field, Text: rule.Error(), Value: value}}}
}

// durationOf reads a positive duration of a request; 0 where none is given.
func durationOf(field, text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, invalid(field, text, errors.New("a positive duration is a number and its unit, such as 90m or 168h"))
	}
	return d, nil
}

func isArchitecture(name string) bool {
	_, known := incus.Canonical(name)
	return known
}

func errNoArchitecture() error {
	return fmt.Errorf("an architecture is one of %s, or a synonym that Incus knows, such as x86_64", strings.Join(incus.Architectures(), ", "))
}
