package api

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/projections"
)

// checkTimeout bounds each check of /readyz.
const checkTimeout = time.Second

type healthOutput struct {
	CacheControl string `header:"Cache-Control"`
	Body         struct {
		Status string `json:"status" example:"ok"`
	}
}

type readyOutput struct {
	Status       int
	CacheControl string `header:"Cache-Control"`
	Body         readiness
}

// readiness is what /readyz found.
type readiness struct {
	Ready       bool               `json:"ready"`
	NATS        partStatus         `json:"nats" doc:"The event log"`
	Postgres    partStatus         `json:"postgres"`
	Storage     storageStatus      `json:"storage"`
	Projections []projectionStatus `json:"projections" nullable:"false"`
	Scrub       *scrubStatus       `json:"scrub,omitempty" doc:"How the files in the storage are; with damaged ones the node is ready all the same"`
	Deltas      *Deltas            `json:"deltas,omitempty" doc:"What the node does about deltas; without them it is ready all the same"`
}

// Deltas says whether a node makes deltas of new versions.
type Deltas struct {
	Versions int    `json:"versions" doc:"How many earlier versions a new one gets deltas from; 0: none are made" example:"2"`
	Error    string `json:"error,omitempty" doc:"Why none are made all the same" example:"xdelta3 isn't installed"`
}

type scrubStatus struct {
	Damaged        int       `json:"damaged" doc:"Blobs that are damaged and not repaired yet; nobody is given their bytes" example:"0"`
	BytesPerSecond int64     `json:"bytes_per_second" doc:"How fast this node reads them again in the background; 0: it doesn't"`
	LastPassAt     time.Time `json:"last_pass_at,omitzero" doc:"When this node had last read all of them; absent: not yet"`
}

type partStatus struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

type storageStatus struct {
	Writable  bool   `json:"writable"`
	FreeBytes int64  `json:"free_bytes" doc:"On the fullest of the storage's file systems"`
	Error     string `json:"error,omitempty"`
}

type projectionStatus struct {
	Name          string  `json:"name" example:"catalog"`
	Position      uint64  `json:"position" doc:"Sequence of the last event applied"`
	Head          uint64  `json:"head" doc:"Sequence of the last event there is"`
	LagEvents     uint64  `json:"lag_events" doc:"Events not applied yet"`
	LagSeconds    float64 `json:"lag_seconds" doc:"Age of the oldest of them"`
	Active        bool    `json:"active" doc:"This node applies them; else another one"`
	Error         string  `json:"error,omitempty" doc:"What holds it up"`
	ErrorSequence uint64  `json:"error_sequence,omitempty" doc:"Sequence of the event that can't be applied"`
	ErrorType     string  `json:"error_type,omitempty" doc:"Type of that event"`
	Remedy        string  `json:"remedy,omitempty" doc:"What an operator can do about it"`
}

// health registers GET /healthz: 200 as long as the process answers; and GET /readyz: 200, or 503 with the same
// document when a part is away. A projection that lags or is held up by an event is shown and doesn't make
// the node unready: another node would have the same trouble, and uploads and downloads go on.
func (s *server) health() {
	register(s, huma.Operation{
		OperationID: "get-health", Method: http.MethodGet, Path: pathHealth, Tags: []string{tagOperate}, Summary: "Is the process alive?",
		Security: []map[string][]string{{}},
	}, func(context.Context, *struct{}) (*healthOutput, error) {
		out := &healthOutput{CacheControl: "no-store"}
		out.Body.Status = "ok"
		return out, nil
	})
	register(s, huma.Operation{
		OperationID: "get-readiness", Method: http.MethodGet, Path: pathReady, Tags: []string{tagOperate}, Summary: "Can this node serve?",
		Description: "Looks at the event log, the database and the storage, a second at most. A projection that lags is shown and is no reason to be unready. What exactly is wrong is told to operators of the whole server only.",
		Security:    []map[string][]string{{}, {securityBearer: {}}},
		Middlewares: huma.Middlewares{lift(s.whoever)},
		Responses: map[string]*huma.Response{"503": {Description: "A part is away; the document says which", Content: map[string]*huma.MediaType{
			"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/Readiness"}}}}},
	}, func(ctx context.Context, _ *struct{}) (*readyOutput, error) {
		out := &readyOutput{Status: http.StatusOK, CacheControl: "no-store", Body: s.readiness(ctx)}
		if !access.From(ctx).MayServer(events.RoleOperator) {
			out.Body.hideErrors()
		}
		if !out.Body.Ready {
			out.Status = http.StatusServiceUnavailable
		}
		return out, nil
	})
}

// whoever is Authenticate for what anybody may ask and nobody is refused: credentials that aren't good are none.
func (s *server) whoever(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p, err := s.Guard.Authenticate(r); err == nil {
			r = r.WithContext(access.With(r.Context(), p))
		}
		next.ServeHTTP(w, r)
	})
}

// forOperators stands in place of texts that may name hosts, users, folders or private images.
const forOperators = "only an operator's token is told why"

func (r *readiness) hideErrors() {
	for _, text := range []*string{&r.NATS.Error, &r.Postgres.Error, &r.Storage.Error} {
		if *text != "" {
			*text = forOperators
		}
	}
	for i := range r.Projections {
		if p := &r.Projections[i]; p.Error != "" {
			p.Error, p.Remedy = forOperators, ""
		}
	}
}

func (s *server) readiness(ctx context.Context) readiness {
	runners := []*projections.Runner{s.CatalogProjection, s.JobsProjection, s.StreamsProjection}
	out := readiness{Deltas: s.Deltas, Projections: make([]projectionStatus, len(runners))}
	var checks sync.WaitGroup
	checks.Go(func() {
		out.NATS = check(ctx, func(ctx context.Context) error { _, err := s.Events.Head(ctx); return err })
	})
	checks.Go(func() { out.Postgres = check(ctx, s.PingPostgres) })
	checks.Go(func() { out.Storage = s.checkStorage(ctx) })
	for i, runner := range runners {
		checks.Go(func() {
			status := runner.Status(ctx)
			out.Projections[i] = projectionStatus{Name: status.Name, Position: uint64(status.Position), Head: uint64(status.Head), LagEvents: status.LagEvents,
				LagSeconds: status.LagSeconds, Active: status.Active, Error: status.Error, ErrorSequence: uint64(status.ErrorSequence),
				ErrorType: string(status.ErrorType), Remedy: status.Remedy()}
		})
	}
	if s.Scrub != nil {
		status := s.Scrub.Status()
		out.Scrub = &scrubStatus{Damaged: status.Damaged, BytesPerSecond: status.Rate, LastPassAt: status.LastPass}
	}
	checks.Wait()
	out.Ready = out.NATS.OK && out.Postgres.OK && out.Storage.Writable
	return out
}

// checkStorage asks the file system, which heeds no context: one that hangs, as a network's can, is left hanging
// by one check at a time, and the others say so.
func (s *server) checkStorage(ctx context.Context) storageStatus {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	hangs := storageStatus{Error: "the storage did not answer in time"}
	select {
	case s.storageCheck <- struct{}{}:
	case <-ctx.Done():
		return hangs
	}
	answer := make(chan storageStatus, 1)
	go func() {
		defer func() { <-s.storageCheck }()
		written := check(ctx, s.Blobs.Check)
		status := storageStatus{Writable: written.OK, Error: written.Error}
		if free, err := s.Blobs.Free(); err == nil {
			status.FreeBytes = free
		}
		answer <- status
	}()
	select {
	case status := <-answer:
		return status
	case <-ctx.Done():
		return hangs
	}
}

func check(ctx context.Context, ask func(context.Context) error) partStatus {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := ask(ctx); err != nil {
		return partStatus{Error: err.Error()}
	}
	return partStatus{OK: true}
}
