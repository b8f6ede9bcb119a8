// Package api serves imgsrv's JSON API, the bytes of its images and its health over HTTP. A handler parses,
// authorises, makes one call and writes the answer; the rules stand in package events, the queries in
// store/catalog. It must not know how bytes are received (handlers/tus) nor how versions are made
// (handlers/publication).
package api

import (
	"context"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/access/oidc"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/handlers/limits"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/handlers/web"
	"github.com/imgsrv/imgsrv/internal/kept"
	"github.com/imgsrv/imgsrv/internal/provenance"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/catalog"
	"github.com/imgsrv/imgsrv/store/known"
)

// Offsets tells how far an upload has come.
type Offsets interface {
	// Offset is how many bytes of a session's n-th file (events.Upload.Index) are safe. The error wraps
	// fs.ErrNotExist when no upload of it has been created.
	Offset(session string, n int) (int64, error)
}

// Config is what New needs. All parts are required unless they say otherwise.
type Config struct {
	Log     *slog.Logger
	Meter   metric.Meter
	Tracer  trace.Tracer // nil: no traces; a client's goes on all the same
	Guard   *access.Guard
	Events  *jetstream.Log
	Catalog *catalog.Catalog
	// Known, optional, finds files for downloads while the Catalog is away.
	Known   *known.Files
	Blobs   *blob.Store
	Offsets Offsets

	// The projections that reads wait for: Catalog's tables, the jobs', the simplestreams documents.
	CatalogProjection *projections.Runner
	JobsProjection    *projections.Runner
	StreamsProjection *projections.Runner

	// Webhooks, optional, knows targets and secrets; without it there are no routes for webhooks.
	Webhooks Webhooks

	// TrustRules, optional, are those for OIDC tokens, and OIDC checks such tokens; without them there are no
	// routes for trust rules.
	TrustRules *oidc.Rules
	OIDC       *oidc.Verifier
	// SigningKey, optional, signs the checksums of versions; without it there are no signatures.
	SigningKey *provenance.Key
	// SignedStreams says that the simplestreams documents are there clear-signed too, for the OpenAPI document.
	SignedStreams bool

	// Mirrors, optional, knows where mirrors may lead; without it there are no routes for them.
	Mirrors Mirrors
	// Subscribers, optional, knows who may read events over NATS; without it there are no routes for them.
	Subscribers *jetstream.Subscribers

	// Operators are what /api/projections is about, one for each projection; without them there is none to see.
	Operators []*projections.Operator

	// Load, optional, limits how many requests are served at once, on all that is mounted on the router too.
	Load *limits.Load
	// Operations, optional, carries out what operators ask for and takes long; without it there are no routes for it.
	Operations *operations.Runner
	// Garbage, optional, collects garbage on request; without it there is no route for that.
	Garbage *garbage.Collector
	// Backups, optional as Operations, is what backups are made of.
	Backups *backup.Config

	// Requests, optional, limits how many requests a client may make, on all that is mounted on the router too.
	Requests *limits.Requests
	// Intake, optional, admits upload sessions; without it they are held against the free space of the storage only.
	Intake *limits.Intake

	// Scrub, optional, looks at blobs that couldn't be read, and is shown by /readyz.
	Scrub *scrub.Scrubber
	// Deltas, optional, is shown by /readyz.
	Deltas *Deltas
	// PingPostgres is asked by /readyz.
	PingPostgres func(context.Context) error
	// ExpiresAt, optional, tells when an idle session is going to expire.
	ExpiresAt func(uploadID string) (time.Time, bool)

	// Version of the program, for the OpenAPI document; "" means "dev".
	Version string
	// MaxUploadBytes bounds each declared file; 0: no bound.
	MaxUploadBytes int64
	// MinSequenceWait bounds the wait of a read with Imgsrv-Min-Sequence; 0 means 5 s.
	MinSequenceWait time.Duration
	// VisibleWait bounds how long a read of a succeeded publication waits until its version can be queried;
	// 0 means 1 s.
	VisibleWait time.Duration
	// EventHeartbeat is how often a follower of the events hears that the connection lives; 0 means 15 s.
	EventHeartbeat time.Duration
	// EventPatience is how long one piece of the events may take to be sent: a follower that takes longer is told so
	// and cut, one that takes nothing for three times as long is just cut. 0 means 10 s.
	EventPatience time.Duration
	// Clock, optional, is time.Now.
	Clock func() time.Time
}

const (
	defaultMinSequenceWait = 5 * time.Second
	defaultVisibleWait     = time.Second
)

type server struct {
	Config
	api              huma.API
	html             *web.Pages
	storageCheck     chan struct{} // held by the one check of the storage that runs
	pastReads        chan struct{} // bounds reads of the log's past
	eventClients     seats         // of followers of the events
	packing          chan struct{} // bounds the metadata tarballs that are made at once
	tables           tables        // how those are that downloads are found in
	versionDocuments *kept.Answers // of versions, as CatalogProjection's tables say
}

// versionDocumentBytes bounds the documents of versions that are kept.
const versionDocumentBytes = 8 << 20

// New makes the router with all routes of the package and the middlewares that every request passes:
// withScope, traced, accessLog, measured, recovered and the limits of requests. Other handlers may be mounted on it; they then have the same
// middlewares and problem documents for what isn't routed.
func New(cfg Config) (chi.Router, error) {
	if cfg.MinSequenceWait == 0 {
		cfg.MinSequenceWait = defaultMinSequenceWait
	}
	if cfg.VisibleWait == 0 {
		cfg.VisibleWait = defaultVisibleWait
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Version == "" {
		cfg.Version = "dev"
	}
	if cfg.Intake == nil {
		cfg.Intake = limits.NewIntake(limits.IntakeConfig{Events: cfg.Events, Store: cfg.Blobs, Clock: cfg.Clock})
	}
	metrics, err := measured(cfg.Meter)
	if err != nil {
		return nil, err
	}
	router := chi.NewRouter()
	router.Use(withScope, traced(cfg.Tracer), accessLog(cfg.Log), metrics, recovered(cfg.Log), limits.DrainBodies, cfg.Load.Middleware, cfg.Requests.Middleware(cfg.Guard.Authenticate), middleware.GetHead)
	router.NotFound(func(w http.ResponseWriter, r *http.Request) {
		problem.Write(w, r, cfg.Log, access.NothingHere())
	})
	router.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		if allowMethods(w, r, router); w.Header().Get("Allow") == "" { // a method that chi doesn't know, on a path that nobody does
			problem.Write(w, r, cfg.Log, access.NothingHere())
			return
		}
		problem.Write(w, r, cfg.Log, problem.New(problem.CodeMethod, r.Method+" is not possible on this path; the Allow header says what is"))
	})

	html, err := web.New()
	if err != nil {
		return nil, err
	}
	s := &server{Config: cfg, html: html, api: newHuma(router, cfg.Version), storageCheck: make(chan struct{}, 1),
		versionDocuments: kept.New(cfg.CatalogProjection.Edition, versionDocumentBytes),
		pastReads:        make(chan struct{}, maxPastReads), packing: make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))}
	s.health()
	s.images()
	s.versions()
	s.aliases()
	s.derived()
	s.withdrawals()
	s.policies()
	s.initiate()
	s.uploads()
	s.jobs()
	s.status()
	s.events(router)
	s.history()
	if s.Webhooks != nil {
		s.webhooks()
	}
	if s.Mirrors != nil {
		s.mirrors()
	}
	if s.TrustRules != nil {
		s.trustRules()
	}
	if s.Subscribers != nil {
		s.subscribers()
	}
	s.projectionRoutes()
	if s.Operations != nil {
		s.operations(router)
		if s.Garbage != nil {
			s.garbage()
		}
		if s.Scrub != nil {
			s.fsck()
		}
		s.backups()
	}
	s.principals()
	s.tokens()
	s.bytes(router)
	s.document(router)
	return router, nil
}

// allowMethods says in the Allow header which methods the path has (RFC 9110 15.5.6).
func allowMethods(w http.ResponseWriter, r *http.Request, routes chi.Routes) {
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		if routes.Match(chi.NewRouteContext(), method, path) {
			w.Header().Add("Allow", method)
			if method == http.MethodGet {
				w.Header().Add("Allow", http.MethodHead)
			}
		}
	}
}
