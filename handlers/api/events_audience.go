package api

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// audience decides which events somebody may see: of versions, what is made from them, images and aliases, what the catalog shows too;
// of upload sessions and jobs, and of versions that aren't published, who publishes or operates that image; of
// blobs, webhooks and projections operators; and of access administrators.
type audience struct {
	log    *jetstream.Log
	who    access.Principal
	all    bool
	images map[string]shown // as far as they were asked for
}

// shown says whether an image is public, as of an event.
type shown struct {
	public bool
	asOf   events.Sequence
}

func newAudience(log *jetstream.Log, who access.Principal) *audience {
	return &audience{log: log, who: who, all: who.MayServer(events.RoleAdmin), images: map[string]shown{}}
}

// mayHearOf says whether the audience may see some fact of a kind of entity.
func (a *audience) mayHearOf(kind string) bool {
	switch {
	case a.all || kind == events.KindVersion || kind == events.KindImage || kind == events.KindAlias || kind == events.KindDerived:
		return true
	case events.IsAboutAccess(kind):
		return false
	case kind == events.KindUpload || kind == events.KindJob:
		return a.who.MaySomewhere(events.RolePublisher) || a.who.MaySomewhere(events.RoleOperator)
	}
	return a.who.MayServer(events.RoleOperator)
}

// sessionsOf says whether the audience may see how versions of an image come to be.
func (a *audience) sessionsOf(image string) bool {
	return a.who.May(events.RolePublisher, image) || a.who.May(events.RoleOperator, image)
}

// maySee also keeps the images' visibility up to date, so that it is to be called for each event in turn.
func (a *audience) maySee(ctx context.Context, event events.Event) (bool, error) {
	if a.all {
		return true, nil
	}
	if !a.mayHearOf(events.KindOf(event.Type)) {
		return false, nil
	}
	var name string
	var own events.Visibility // what the fact itself says of its image; "" for nothing
	ofVersion := false
	switch fact := event.Fact.(type) {
	case events.VersionFact:
		v := fact.After()
		if v.State == events.StateReserved || v.State == events.StateReleased || v.Manifest == nil {
			return a.sessionsOf(v.Image), nil // who is going to publish what is nobody else's business
		}
		name, own, ofVersion = v.Image, v.Manifest.Visibility, true
	case events.ImageFact:
		name, own = fact.After().Name, fact.After().Visibility
	case events.AliasFact:
		name = fact.After().Image
	case events.DerivedMade:
		name = fact.Image
	case events.DerivedRemoved:
		name = fact.Image
	case events.DerivedFact:
		return a.sessionsOf(fact.After().Image), nil // what isn't there is nobody else's business
	case events.UploadFact, events.JobFact:
		return a.sessionsOf(events.ImageOf(fact)), nil
	default:
		return true, nil // of those that mayHearOf lets through
	}
	if a.who.May(events.RoleReader, name) {
		return true, nil
	}
	now, known := a.images[name]
	if !known {
		current, err := a.log.Image(ctx, name)
		if err != nil {
			return false, err
		}
		now = shown{public: current.State.Visibility == events.Public, asOf: current.Sequence}
	}
	// The first publication stands before the description of its image in their batch, and decides it. Later ones
	// say only what they were decided on.
	if own != "" && event.Sequence > now.asOf && (!ofVersion || now.asOf == 0) {
		now = shown{public: own == events.Public, asOf: event.Sequence}
	}
	a.images[name] = now
	return now.public && (ofVersion || own != events.Private), nil
}

// eventFilter says which events a reader wants.
type eventFilter struct {
	images []string
	types  []string // exact, or a prefix and '*'
}

// maxFilters bounds the names in a filter: the server compares each event with each.
const maxFilters = 100

// filterOf reads the parameters image and type; each may be given several times, or as a list with commas.
func filterOf(r *http.Request) (eventFilter, error) {
	f := eventFilter{images: listParameter(r, "image"), types: listParameter(r, "type")}
	if len(f.images) > maxFilters || len(f.types) > maxFilters {
		return f, problem.New(problem.CodeBadRequest, "a filter has at most 100 images and 100 types")
	}
	for _, image := range f.images {
		if err := events.CheckImageName(image); err != nil {
			return f, problem.New(problem.CodeBadRequest, "image: "+err.Error())
		}
	}
	for _, t := range f.types {
		if !slices.ContainsFunc(events.Types(), func(known events.Type) bool { return matches(t, known) }) {
			return f, problem.New(problem.CodeBadRequest, "type: there is no type of event "+t+"; one is imgsrv.version.published.v1, and imgsrv.version.* stands for all of a version")
		}
	}
	return f, nil
}

func listParameter(r *http.Request, name string) []string {
	var out []string
	for _, value := range r.URL.Query()[name] {
		for part := range strings.SplitSeq(value, ",") {
			if part = strings.TrimSpace(part); part != "" && !slices.Contains(out, part) {
				out = append(out, part)
			}
		}
	}
	return out
}

func matches(pattern string, t events.Type) bool {
	prefix, isPrefix := strings.CutSuffix(pattern, "*")
	return isPrefix && strings.HasPrefix(string(t), prefix) || pattern == string(t)
}

// wants compares an event with the filter. What can't be decoded has no image.
func (f eventFilter) wants(event events.Event) bool {
	if len(f.types) > 0 && !slices.ContainsFunc(f.types, func(p string) bool { return matches(p, event.Type) }) {
		return false
	}
	return len(f.images) == 0 || event.Fact != nil && slices.Contains(f.images, events.ImageOf(event.Fact))
}

// subjects are those that the server has to send for the filter: nil for all of them, none at all when nothing
// that the reader may see can match.
func (f eventFilter) subjects(a *audience) (subjects []string, some bool) {
	if a.all && len(f.images) == 0 && len(f.types) == 0 {
		return nil, true
	}
	wanted := map[string]bool{}
	for _, t := range events.Types() {
		if len(f.types) == 0 || slices.ContainsFunc(f.types, func(p string) bool { return matches(p, t) }) {
			wanted[events.KindOf(t)] = true
		}
	}
	kinds := []string{}
	for kind := range wanted {
		ofImages := slices.Contains([]string{events.KindVersion, events.KindImage, events.KindAlias, events.KindDerived, events.KindUpload, events.KindJob}, kind)
		if a.mayHearOf(kind) && (len(f.images) == 0 || ofImages) {
			kinds = append(kinds, kind)
		}
	}
	if len(kinds) == 0 {
		return nil, false
	}
	if !a.all && !wanted[events.KindImage] {
		kinds = append(kinds, events.KindImage) // tells which images are public
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		subjects = append(subjects, events.SubjectsAbout(kind, f.images...)...)
	}
	return subjects, true
}
