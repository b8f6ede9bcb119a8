package api

import (
	"cmp"
	"context"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/story"
)

type historyInput struct {
	Image   string `path:"image" example:"debian-bookworm"`
	Version string `query:"version" doc:"Only what concerns this version" example:"12.5.0"`
}

type historyOutput struct{ Body historyPage }

type historyPage struct {
	Image  string         `json:"image" example:"debian-bookworm"`
	Events []historyEvent `json:"events" nullable:"false" doc:"Oldest first"`
}

type historyEvent struct {
	Sequence uint64    `json:"sequence"`
	Time     time.Time `json:"time"`
	Type     string    `json:"type" example:"imgsrv.alias.moved.v2"`
	Actor    string    `json:"actor,omitempty" doc:"Who did it: a principal, or imgsrv for what follows by itself"`
	Who      string    `json:"who,omitempty" doc:"The principal behind it: the actor, or whoever opened the session that it follows from"`
	Version  string    `json:"version,omitempty" doc:"The version that it is about"`
	Text     string    `json:"text" doc:"What happened, for people" example:"alias latest moved 12.4.0 → 12.5.0"`
}

// sessionsAtOnce bounds the subjects of one read.
const sessionsAtOnce = 50

// history registers GET /api/images/{image}/history: 200 the image's story, 401, 404, 503.
func (s *server) history() {
	read(s, huma.Operation{
		OperationID: "get-history", Path: pathHistory, Tags: []string{tagImages}, Summary: "Tell what happened to an image",
		Description: "From the events of the image, and of the upload sessions and jobs that made its versions: oldest first. Without a token only what was published, and aliases.",
		Errors:      []int{http.StatusNotFound},
	}, nil, s.getHistory)
}

func (s *server) getHistory(ctx context.Context, in *historyInput) (*historyOutput, error) {
	gone := missing("there is no image %q", in.Image)
	if events.CheckImageName(in.Image) != nil || in.Version != "" && events.CheckVersionName(in.Version) != nil {
		return nil, gone
	}
	head, err := s.Events.Head(ctx)
	if err != nil {
		return nil, err
	}
	audience := newAudience(s.Events, access.From(ctx))
	var found []events.Event
	keep := func(event events.Event) error {
		visible, err := audience.maySee(ctx, event)
		if visible {
			found = append(found, event)
		}
		return err
	}
	subjects := events.SubjectsAbout(events.KindAlias, in.Image)
	if in.Version == "" {
		subjects = append(subjects, events.ImageEntity(in.Image).Subject())
		subjects = append(subjects, events.SubjectsAbout(events.KindVersion, in.Image)...)
		subjects = append(subjects, events.SubjectsAbout(events.KindDerived, in.Image)...)
	} else {
		subjects = append(subjects, events.VersionEntity(in.Image, in.Version).Subject(), events.SubjectOfDerived(in.Image, in.Version))
	}
	if err := s.readPast(ctx, head, subjects, keep); err != nil {
		return nil, err
	}
	if audience.sessionsOf(in.Image) {
		for sessions := range slices.Chunk(sessionsOf(found), sessionsAtOnce) {
			var subjects []string
			for _, id := range sessions {
				subjects = append(subjects, events.UploadEntity(id).Subject(), events.JobEntity(events.JobIDFor(id)).Subject())
			}
			if err := s.readPast(ctx, head, subjects, keep); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(found, func(a, b events.Event) int { return cmp.Compare(a.Sequence, b.Sequence) })
	behind := principalsBehind(found)
	out := &historyOutput{Body: historyPage{Image: in.Image, Events: []historyEvent{}}}
	for _, line := range story.Tell(found) {
		if in.Version != "" && line.Version != in.Version && line.From != in.Version {
			continue
		}
		out.Body.Events = append(out.Body.Events, historyEvent{Sequence: uint64(line.Sequence), Time: line.Time, Type: string(line.Type),
			Actor: line.Actor, Who: behind[line.Sequence], Version: line.Version, Text: line.Text})
	}
	if len(out.Body.Events) == 0 {
		return nil, gone
	}
	return out, nil
}

// principalsBehind names, for each event, whose doing it is in the end.
func principalsBehind(found []events.Event) map[events.Sequence]string {
	opened := map[string]string{} // by correlation, which is the session's id
	for _, event := range found {
		switch fact := event.Fact.(type) {
		case events.UploadFact:
			opened[event.Correlation] = fact.After().InitiatedBy
		case events.VersionPublished:
			opened[event.Correlation] = fact.Manifest.PublishedBy
		}
	}
	behind := map[events.Sequence]string{}
	for _, event := range found {
		behind[event.Sequence] = event.Actor
		if by := opened[event.Correlation]; event.Actor == byItself && by != "" {
			behind[event.Sequence] = by
		}
	}
	return behind
}

// byItself is the actor of what nobody asked for at that moment.
const byItself = "imgsrv"

// sessionsOf are the upload sessions that held or made the versions among some events.
func sessionsOf(found []events.Event) []string {
	ids := map[string]bool{}
	for _, event := range found {
		if fact, ok := event.Fact.(events.VersionFact); ok {
			ids[fact.After().UploadID] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}
