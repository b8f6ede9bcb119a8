package api

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/store/catalog"
	"github.com/imgsrv/imgsrv/store/past"
)

// AtInput asks for an answer as it was.
type AtInput struct {
	At string `query:"at" doc:"Answer as the catalog stood then: the sequence of an event, or a time (RFC 3339)" example:"2026-01-31T12:00:00Z"`
}

// AtHeader says which moment the answer is as of.
type AtHeader struct {
	AtSequence string `header:"Imgsrv-At-Sequence" doc:"With at: the last event that the answer knows"`
}

// moment reads an at: the sequence of the last event that had happened. What lies in the future, or is neither
// a sequence nor a time, is a 400.
func (s *server) moment(ctx context.Context, at string) (events.Sequence, error) {
	if number, err := strconv.ParseUint(at, 10, 64); err == nil {
		head, err := s.Events.Head(ctx)
		if err != nil {
			return 0, err
		}
		if number < 1 || events.Sequence(number) > head {
			return 0, problem.New(problem.CodeBadRequest, fmt.Sprintf("at is %d, and the events go from 1 to %d", number, head))
		}
		return events.Sequence(number), nil
	}
	// A '+' that wasn't escaped has become a space.
	then, err := time.Parse(time.RFC3339Nano, strings.ReplaceAll(at, " ", "+"))
	if err != nil {
		return 0, problem.New(problem.CodeBadRequest, "at is the sequence of an event, or a time such as 2026-01-31T12:00:00Z (RFC 3339)")
	}
	if then.After(s.Clock()) {
		return 0, problem.New(problem.CodeBadRequest, "at lies in the future")
	}
	return s.Events.SequenceAt(ctx, then)
}

// pastOf is the catalog of one image as it stood. Only the events of that image are read. Whoever may not see
// the image now, sees nothing of its past.
func (s *server) pastOf(ctx context.Context, image, at string) (*past.Catalog, events.Sequence, error) {
	sequence, err := s.moment(ctx, at)
	if err != nil {
		return nil, 0, err
	}
	gone := missing("there was no image %q at event %d", image, sequence)
	if events.CheckImageName(image) != nil {
		return nil, 0, gone
	}
	now, err := s.Events.Image(ctx, image)
	if err != nil {
		return nil, 0, err
	}
	if now.Sequence == 0 || !maySee(ctx, image, now.State.Visibility) {
		return nil, 0, gone
	}
	then, err := s.fold(ctx, sequence, past.Subjects(image))
	if err != nil {
		return nil, 0, err
	}
	if found, ok := then.Image(image); !ok || !maySee(ctx, image, found.Visibility) {
		return nil, 0, gone
	}
	return then, sequence, nil
}

// pastOfAll is the whole catalog as it stood. It reads the events of all images, so it takes a token.
func (s *server) pastOfAll(ctx context.Context, at string) (*past.Catalog, events.Sequence, error) {
	if access.From(ctx).Name == "" {
		return nil, 0, problem.New(problem.CodeUnauthorized, "the list of all images as it was needs a token; a single image's past does not")
	}
	sequence, err := s.moment(ctx, at)
	if err != nil {
		return nil, 0, err
	}
	then, err := s.fold(ctx, sequence, past.Subjects())
	return then, sequence, err
}

func (s *server) fold(ctx context.Context, sequence events.Sequence, subjects []string) (*past.Catalog, error) {
	then := past.New()
	err := s.readPast(ctx, sequence, subjects, then.Apply)
	return then, err
}

// readPast reads events in turn with others who do: each read takes a consumer of the stream, which has a
// bounded number.
func (s *server) readPast(ctx context.Context, upTo events.Sequence, subjects []string, each func(events.Event) error) error {
	select {
	case s.pastReads <- struct{}{}:
		defer func() { <-s.pastReads }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Events.Read(ctx, upTo, subjects, each)
}

func (s *server) pastImages(ctx context.Context, in *imagesInput) (images []catalog.Image, next string, at AtHeader, err error) {
	then, sequence, err := s.pastOfAll(ctx, in.At)
	if err != nil {
		return nil, "", at, err
	}
	images, next = then.Images(in.After, in.Limit, func(i catalog.Image) bool { return maySee(ctx, i.Name, i.Visibility) })
	return images, next, asOf(sequence), nil
}

func (s *server) pastImage(ctx context.Context, name, at string) (catalog.Image, AtHeader, error) {
	then, sequence, err := s.pastOf(ctx, name, at)
	if err != nil {
		return catalog.Image{}, AtHeader{}, err
	}
	image, _ := then.Image(name) // pastOf has looked
	return image, asOf(sequence), nil
}

func (s *server) pastVersions(ctx context.Context, in *versionsInput) (rows []catalog.VersionRow, next string, at AtHeader, err error) {
	then, sequence, err := s.pastOf(ctx, in.Image, in.At)
	if err != nil {
		return nil, "", at, err
	}
	rows, next, _, err = then.Versions(in.Image, in.After, in.Limit)
	return rows, next, asOf(sequence), err
}

func (s *server) pastVersion(ctx context.Context, image, version, at string) (row catalog.VersionRow, as AtHeader, err error) {
	then, sequence, err := s.pastOf(ctx, image, at)
	if err != nil {
		return row, as, err
	}
	row, ok := then.Version(image, version)
	if !ok {
		return row, as, catalog.ErrNotFound
	}
	return row, asOf(sequence), nil
}

func asOf(sequence events.Sequence) AtHeader {
	return AtHeader{AtSequence: strconv.FormatUint(uint64(sequence), 10)}
}
