package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/mirrors"
	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/incus"
)

// Paths of mirrors.
const (
	pathMirrors    = "/api/mirrors"
	pathMirror     = pathMirrors + "/{name}"
	pathMirrorSync = pathMirror + "/sync"
)

// defaultMirrorEvery is between the runs of a mirror that names no time.
const defaultMirrorEvery = time.Hour

// Mirrors is what the API has to know beyond their events.
type Mirrors interface {
	// CheckTarget refuses a URL that leads where mirrors may not.
	CheckTarget(ctx context.Context, url string) error
	// List are those there are.
	List(ctx context.Context) ([]events.Mirror, error)
	// Keep writes an address that no event may have down, and names it; Forget undoes that.
	Keep(address string) (id string, err error)
	Forget(id string) error
}

type addMirrorInput struct {
	Body struct {
		Name          string   `json:"name" doc:"Lower-case letters, digits, '_' and '-'" example:"linuxcontainers"`
		URL           string   `json:"url" doc:"The simplestreams server's address, as clients have it: below it is streams/v1/index.json. User and password in it, and the token of /r/TOKEN, are kept by the server and shown to nobody" example:"https://images.linuxcontainers.org"`
		SecretPath    bool     `json:"secret_path,omitempty" doc:"Whether the URL's path is as secret as a password"`
		Filters       []string `json:"filters,omitempty" nullable:"false" doc:"Patterns of upstream's aliases, or of the keys of its products with slashes for colons; * stands for any characters. None: all" example:"[\"debian/*\"]"`
		Architectures []string `json:"architectures,omitempty" nullable:"false" doc:"None: all" example:"[\"amd64\"]"`
		Keep          int      `json:"keep,omitempty" doc:"How many of the newest versions of each image are mirrored; absent: 1" example:"2"`
		ImageName     string   `json:"image_name,omitempty" doc:"Template of the images' names, with the fields {os}, {release}, {variant}, {arch} and {type}. Absent: {os}-{release}-{variant}-{arch}, and of another imgsrv the names it has there" example:"{os}-{release}-{variant}-{arch}"`
		UpstreamKey   string   `json:"upstream_key,omitempty" doc:"OpenPGP public keys in armored form, one of which has to have signed upstream's documents (.sjson). Absent: the documents are believed as TLS brings them"`
		Visibility    string   `json:"visibility,omitempty" enum:"public,private" doc:"Of images that aren't here yet. Absent: private where the server keeps credentials for the mirror, else public"`
		Every         string   `json:"every,omitempty" doc:"Time between the end of a run and the next, such as 30m; absent: an hour" example:"1h"`
	}
}

type mirrorInput struct {
	Name string `path:"name" example:"linuxcontainers"`
}

type mirrorOutput struct {
	Location string `header:"Location" doc:"The mirror"`
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the mirror's last event"`
	Body     mirrorStatus
}

type mirrorsOutput struct {
	Body struct {
		Mirrors []mirrorStatus `json:"mirrors" nullable:"false" doc:"In the order of their last events"`
	}
}

type mirrorStatus struct {
	Name          string           `json:"name"`
	URL           string           `json:"url" format:"uri"`
	Credentials   bool             `json:"credentials" doc:"Whether the server keeps a user and password, or a path, that aren't shown"`
	Filters       []string         `json:"filters" nullable:"false"`
	Architectures []string         `json:"architectures" nullable:"false"`
	Keep          int              `json:"keep"`
	ImageName     string           `json:"image_name,omitempty"`
	Signed        bool             `json:"signed" doc:"Whether upstream's documents have to be signed by a key that the mirror was given"`
	Visibility    string           `json:"visibility" enum:"public,private" doc:"Of images that the mirror makes"`
	Every         string           `json:"every" example:"1h0m0s"`
	AddedBy       string           `json:"added_by"`
	AddedAt       time.Time        `json:"added_at"`
	State         string           `json:"state" enum:"waiting,syncing" doc:"syncing: a run is wanted or going on"`
	RequestedAt   *time.Time       `json:"requested_at,omitempty" doc:"When the run was asked for"`
	RequestedBy   string           `json:"requested_by,omitempty"`
	NextAt        *time.Time       `json:"next_at,omitempty" doc:"When the next run is due"`
	LastSuccessAt *time.Time       `json:"last_success_at,omitempty" doc:"The end of the last run after which all that matches, and can be had, was here"`
	LagSeconds    int64            `json:"lag_seconds" doc:"Seconds since then, or since the mirror was added"`
	Behind        int              `json:"behind" doc:"Versions that the last run has found and that aren't here"`
	Failures      int              `json:"failures" doc:"Runs in a row since the last success"`
	FetchedBytes  int64            `json:"fetched_bytes" doc:"Bytes of upstream's files that all runs have fetched"`
	SavedBytes    int64            `json:"saved_bytes" doc:"Bytes that didn't have to be fetched, for they were made of upstream's deltas"`
	LastRun       *mirrorRunStatus `json:"last_run,omitempty"`
}

type mirrorRunStatus struct {
	StartedAt    time.Time `json:"started_at"`
	EndedAt      time.Time `json:"ended_at"`
	Unchanged    bool      `json:"unchanged" doc:"Upstream's documents were those of the last success"`
	Matched      int       `json:"matched" doc:"Versions that are wanted"`
	Published    int       `json:"published" doc:"By this run"`
	Present      int       `json:"present" doc:"Before it"`
	Refused      int       `json:"refused" doc:"That can't be had as upstream offers them; not tried again until it offers something else"`
	Failed       int       `json:"failed" doc:"That the next run tries again"`
	FetchedBytes int64     `json:"fetched_bytes"`
	SavedBytes   int64     `json:"saved_bytes"`
	Error        string    `json:"error,omitempty" doc:"Why the run ended early, or couldn't begin"`
	Problems     []string  `json:"problems" nullable:"false" doc:"What was refused, failed or passed over, and why; the first few"`
}

// mirrors registers, all for operators of the server, so each with 401, 403 and 503:
// GET /api/mirrors[/{name}]: 200; POST: 201 with Location and Imgsrv-Sequence, which takes the role publisher too, 409 the name
// is taken, 422 a broken rule or a target that mirrors may not have; DELETE /api/mirrors/{name}: 204 with Imgsrv-Sequence;
// POST /api/mirrors/{name}/sync: 202. Where there is no such mirror: 404.
func (s *server) mirrors() {
	operate(s, events.RoleOperator, huma.Operation{OperationID: "add-mirror", Method: http.MethodPost, Path: pathMirrors, DefaultStatus: http.StatusCreated,
		Summary: "Follow another simplestreams server",
		Description: "What matches there is published here, now and whenever it changes. Targets that are not public, or without TLS, are refused unless `--mirror-allow` of the server " +
			"names them. Takes the role publisher on the whole server too, since a mirror publishes.",
		Errors: []int{http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity}}, s.addMirror)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "list-mirrors", Method: http.MethodGet, Path: pathMirrors, Summary: "List mirrors, and how far they have come"}, s.listMirrors)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "get-mirror", Method: http.MethodGet, Path: pathMirror, Summary: "Look at a mirror"}, s.getMirror)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "remove-mirror", Method: http.MethodDelete, Path: pathMirror, DefaultStatus: http.StatusNoContent,
		Summary: "Follow a server no more", Description: "What was published stays."}, s.removeMirror)
	operate(s, events.RoleOperator, huma.Operation{OperationID: "sync-mirror", Method: http.MethodPost, Path: pathMirrorSync, DefaultStatus: http.StatusAccepted,
		Summary: "Look now", Description: "Asks for a run, unless one is wanted or going on already. The mirror is waiting again when it has ended."}, s.syncMirror)
}

func (s *server) addMirror(ctx context.Context, in *addMirrorInput) (*mirrorOutput, error) {
	// Whoever adds a mirror decides what is published.
	if err := access.Need(access.From(ctx), "", events.RolePublisher); err != nil {
		return nil, err
	}
	body := in.Body
	open, secret := mirrors.Split(strings.TrimRight(body.URL, "/"), body.SecretPath)
	mirror := events.Mirror{Name: body.Name, URL: open, Filters: orEmpty(body.Filters), Architectures: []string{}, Keep: body.Keep,
		ImageName: body.ImageName, UpstreamKey: body.UpstreamKey, Lifetime: events.Lifetime{AddedBy: access.From(ctx).Name, AddedAt: s.Clock().UTC()}}
	if mirror.Visibility = events.Visibility(body.Visibility); mirror.Visibility == "" && secret {
		mirror.Visibility = events.Private // what somebody guards
	}
	if mirror.Keep == 0 {
		mirror.Keep = 1
	}
	every := defaultMirrorEvery
	if body.Every != "" {
		var err error
		if every, err = time.ParseDuration(body.Every); err != nil {
			return nil, invalid("every", body.Every, fmt.Errorf("a time is a number and its unit, such as 90m or 6h"))
		}
	}
	mirror.EverySeconds = int64(every / time.Second)
	for i, name := range body.Architectures {
		canonical, known := incus.Canonical(name)
		if !known {
			return nil, invalid(fmt.Sprintf("architectures[%d]", i), name, fmt.Errorf("an architecture is one of %s, or a synonym that Incus knows, such as x86_64", strings.Join(incus.Architectures(), ", ")))
		}
		mirror.Architectures = append(mirror.Architectures, canonical)
	}
	if body.UpstreamKey != "" {
		if _, err := sjson.NewVerifier(body.UpstreamKey); err != nil {
			return nil, invalid("upstream_key", "", err)
		}
	}
	// The rule's words go before those about the target.
	if _, err := events.AddMirror(mirror, events.Current[events.Mirror]{}); err != nil {
		return nil, err
	}
	if err := s.Mirrors.CheckTarget(ctx, mirror.URL); err != nil {
		return nil, err
	}
	if secret {
		var err error
		if mirror.CredentialsID, err = s.Mirrors.Keep(strings.TrimRight(body.URL, "/")); err != nil {
			return nil, err
		}
	}
	if _, err := s.Events.Decide(ctx, jetstream.Cause{Actor: mirror.AddedBy}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Events.Mirror(ctx, mirror.Name)
		if err != nil {
			return nil, err
		}
		return events.AddMirror(mirror, current)
	}); err != nil {
		if refusal := (*events.Error)(nil); errors.As(err, &refusal) { // else the event may be there
			err = errors.Join(err, s.Mirrors.Forget(mirror.CredentialsID))
		}
		return nil, err
	}
	return s.mirrorOf(ctx, mirror.Name)
}

func (s *server) listMirrors(ctx context.Context, _ *struct{}) (*mirrorsOutput, error) {
	list, err := s.Mirrors.List(ctx)
	if err != nil {
		return nil, err
	}
	out := new(mirrorsOutput)
	out.Body.Mirrors = []mirrorStatus{}
	for _, mirror := range list {
		out.Body.Mirrors = append(out.Body.Mirrors, s.statusOfMirror(mirror))
	}
	return out, nil
}

func (s *server) getMirror(ctx context.Context, in *mirrorInput) (*mirrorOutput, error) {
	return s.mirrorOf(ctx, in.Name)
}

func (s *server) mirrorOf(ctx context.Context, name string) (*mirrorOutput, error) {
	current, err := s.Events.Mirror(ctx, name)
	if err != nil {
		return nil, err
	}
	if !current.State.Living() {
		return nil, missing("there is no mirror %q", name)
	}
	return &mirrorOutput{Location: base(ctx) + pathMirrors + "/" + name, Sequence: uint64(current.Sequence), Body: s.statusOfMirror(current.State)}, nil
}

func (s *server) removeMirror(ctx context.Context, in *mirrorInput) (*removedOutput, error) {
	who, credentials := access.From(ctx).Name, ""
	sequence, err := s.Events.Decide(ctx, jetstream.Cause{Actor: who}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Events.Mirror(ctx, in.Name)
		if err != nil {
			return nil, err
		}
		credentials = current.State.CredentialsID
		return events.RemoveMirror(current, in.Name, who, s.Clock().UTC())
	})
	if err != nil {
		return nil, err
	}
	if err := s.Mirrors.Forget(credentials); err != nil { // mirrors look for such files too
		s.Log.WarnContext(ctx, "the credentials of a removed mirror stay for now", "mirror", in.Name, "error", err)
	}
	return &removedOutput{Sequence: uint64(sequence)}, nil
}

func (s *server) syncMirror(ctx context.Context, in *mirrorInput) (*mirrorOutput, error) {
	who := access.From(ctx).Name
	_, err := s.Events.Decide(ctx, jetstream.Cause{Actor: who}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Events.Mirror(ctx, in.Name)
		if err != nil {
			return nil, err
		}
		return events.RequestSync(current, in.Name, who, s.Clock().UTC())
	})
	if err != nil {
		return nil, err
	}
	return s.mirrorOf(ctx, in.Name)
}

func (s *server) statusOfMirror(m events.Mirror) mirrorStatus {
	status := mirrorStatus{Name: m.Name, URL: m.URL, Credentials: m.CredentialsID != "", Filters: orEmpty(m.Filters), Architectures: orEmpty(m.Architectures), Keep: m.Keep, ImageName: m.ImageName,
		Signed: m.UpstreamKey != "", Visibility: string(cmp.Or(m.Visibility, events.Public)), Every: m.Every().String(), AddedBy: m.AddedBy, AddedAt: m.AddedAt.UTC(), State: "waiting", NextAt: timeOrNone(m.NextAt), LastSuccessAt: timeOrNone(m.LastSuccessAt),
		LagSeconds: int64(m.Lag(s.Clock()) / time.Second), Failures: m.Failures, FetchedBytes: m.FetchedBytes, SavedBytes: m.SavedBytes}
	if m.Request != nil {
		status.State, status.RequestedAt, status.RequestedBy, status.NextAt = "syncing", timeOrNone(m.Request.At), m.Request.By, nil
	}
	if last := m.LastRun; last != nil {
		status.Behind = max(0, last.Matched-last.Published-last.Present)
		status.LastRun = &mirrorRunStatus{StartedAt: last.StartedAt.UTC(), EndedAt: last.EndedAt.UTC(), Unchanged: last.Unchanged, Matched: last.Matched, Published: last.Published,
			Present: last.Present, Refused: last.Refused, Failed: last.Failed, FetchedBytes: last.FetchedBytes, SavedBytes: last.SavedBytes, Error: last.Error, Problems: orEmpty(last.Problems)}
	}
	return status
}
