package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/handlers/backup"
	"github.com/imgsrv/imgsrv/handlers/garbage"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/handlers/promotion"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/natstest"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	catalogprojection "github.com/imgsrv/imgsrv/projections/catalog"
	jobsprojection "github.com/imgsrv/imgsrv/projections/jobs"
	streamsprojection "github.com/imgsrv/imgsrv/projections/streams"
	"github.com/imgsrv/imgsrv/store/blob"
	"github.com/imgsrv/imgsrv/store/catalog"
	"github.com/imgsrv/imgsrv/store/postgres"
)

const adminToken = "imgsrv_test"

// node is the API over real parts. Nothing takes files in or publishes: tests append these facts themselves.
type node struct {
	t      testing.TB
	url    string
	events *jetstream.Log
	blobs  *blob.Store
	pool   *pgxpool.Pool
	logged *syncBuffer
	stream natsjs.Stream // what the events are kept in

	catalog, jobs, streams *projections.Runner
}

// intakes is how far the intakes of a store are.
type intakes struct{ store *blob.Store }

func (i intakes) Offset(session string, n int) (int64, error) {
	intake, err := i.store.OpenIntake(session, n)
	if err != nil {
		return 0, err
	}
	return intake.Offset(), nil
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newNode starts the API with projections that run.
func newNode(t testing.TB, change ...func(*api.Config)) *node {
	t.Helper()
	n := newStoppedNode(t, change...)
	n.run(n.catalog, n.jobs, n.streams)
	return n
}

// run lets projections run until the test ends.
func (n *node) run(runners ...*projections.Runner) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, runner := range runners {
		running.Go(func() {
			if err := runner.Run(ctx); err != nil {
				n.t.Errorf("run a projection: %v", err)
			}
		})
	}
	n.t.Cleanup(func() { cancel(); running.Wait() })
}

// newStoppedNode starts the API with projections that stand still at 0.
func newStoppedNode(t testing.TB, change ...func(*api.Config)) *node {
	t.Helper()
	cfg, n := parts(t)
	cfg.Operations = operations.NewRunner(slog.New(slog.DiscardHandler), time.Now)
	t.Cleanup(cfg.Operations.Close)
	cfg.Backups = &backup.Config{Log: cfg.Events, Blobs: cfg.Blobs, Logger: cfg.Log}
	var err error
	if cfg.Garbage, err = garbage.New(garbage.Config{Log: cfg.Events, Store: cfg.Blobs, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}}); err != nil {
		t.Fatal(err)
	}
	if cfg.Scrub, err = scrub.New(scrub.Config{Log: cfg.Events, Store: cfg.Blobs, Logger: cfg.Log, Meter: cfg.Meter}); err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(&cfg)
	}
	handler, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	handler.Get("/panic/now", func(http.ResponseWriter, *http.Request) { panic("out of cheese") })
	handler.Get("/panic/late", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "half of it")
		panic("out of cheese")
	})
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	n.url = server.URL
	return n
}

func parts(t testing.TB) (api.Config, *node) {
	t.Helper()
	stream, nc := natstest.LogAndConn(t)
	n := &node{t: t, events: stream, logged: &syncBuffer{}}
	js, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if n.stream, err = js.Stream(t.Context(), jetstream.StreamName); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(n.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if n.blobs, err = blob.Open(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if n.pool, err = postgres.Open(t.Context(), pgtest.URL(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.pool.Close)
	runner := func(p projections.Projector) *projections.Runner {
		if err := migrations.Apply(t.Context(), n.pool, p.Name(), p.Migrations()); err != nil {
			t.Fatal(err)
		}
		r, err := projections.NewRunner(n.pool, n.events, p, projections.Config{Log: slog.New(slog.DiscardHandler), Meter: noop.Meter{}})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	directory := access.NewDirectory(access.DirectoryConfig{Log: n.events, Logger: slog.New(slog.DiscardHandler)})
	directory.AddBuiltIn(adminToken)
	following, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { _ = directory.Run(following) })
	t.Cleanup(func() { stop(); done.Wait() })
	n.catalog, n.jobs, n.streams = runner(catalogprojection.New()), runner(jobsprojection.New()), runner(streamsprojection.New())
	return api.Config{
		Log: log, Meter: noop.Meter{}, Guard: directory.Guard(nil), Events: n.events, Catalog: catalog.New(n.pool, n.catalog.Edition), Blobs: n.blobs,
		Offsets: intakes{n.blobs}, CatalogProjection: n.catalog, JobsProjection: n.jobs, StreamsProjection: n.streams, PingPostgres: n.pool.Ping,
	}, n
}

// answer is a response, read to its end.
type answer struct {
	*http.Response
	body []byte
}

type option func(*http.Request)

func withToken(token string) option {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }
}

func withHeader(name, value string) option {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

// do makes a request as the admin, unless options say otherwise. A body that is no string is sent as JSON.
func (n *node) do(method, path string, body any, options ...option) answer {
	n.t.Helper()
	var from io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		from = strings.NewReader(b)
	default:
		encoded, err := json.Marshal(b)
		if err != nil {
			n.t.Fatal(err)
		}
		from = bytes.NewReader(encoded)
	}
	if !strings.HasPrefix(path, "http") {
		path = n.url + path
	}
	req, err := http.NewRequestWithContext(n.t.Context(), method, path, from)
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adminToken)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, o := range options {
		o(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	return readAll(n.t, resp)
}

func readAll(t testing.TB, resp *http.Response) answer {
	t.Helper()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", resp.Request.Method, resp.Request.URL, err)
	}
	return answer{Response: resp, body: got}
}

func anonymous(r *http.Request) { r.Header.Del("Authorization") }

// want checks the status and decodes the body into a generic document.
func (n *node) want(a answer, status int) map[string]any {
	n.t.Helper()
	if a.StatusCode != status {
		n.t.Fatalf("%s %s: status %d, want %d; body: %s", a.Request.Method, a.Request.URL.Path, a.StatusCode, status, a.body)
	}
	if len(a.body) == 0 {
		return nil
	}
	var doc map[string]any
	if err := json.Unmarshal(a.body, &doc); err != nil {
		n.t.Fatalf("%s %s: body is no JSON object: %v: %s", a.Request.Method, a.Request.URL.Path, err, a.body)
	}
	return doc
}

// problem checks that an answer is a problem document of a code.
func (n *node) problem(a answer, status int, code string) map[string]any {
	n.t.Helper()
	doc := n.want(a, status)
	if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
		n.t.Errorf("%s %s: content type %q", a.Request.Method, a.Request.URL.Path, got)
	}
	if a.Header.Get("Cache-Control") != "no-store" {
		n.t.Errorf("%s %s: a problem may be cached: %q", a.Request.Method, a.Request.URL.Path, a.Header.Get("Cache-Control"))
	}
	if doc["code"] != code || doc["status"] != float64(status) || !strings.HasSuffix(doc["type"].(string), "/"+code) {
		n.t.Fatalf("%s %s: problem %s, want code %s", a.Request.Method, a.Request.URL.Path, a.body, code)
	}
	return doc
}

func sha(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// session is the body that opens a session for one virtual machine of one file.
func session(image, version string, data []byte, aliases ...string) map[string]any {
	return map[string]any{"image": image, "version": version, "os": "debian", "release": "bookworm", "aliases": append([]string{}, aliases...),
		"variants": []any{map[string]any{"architecture": "x86_64", "type": "virtual-machine",
			"files": []any{map[string]any{"format": "disk.qcow2", "size": len(data)}}}}}
}

const variantName = "amd64.virtual-machine.default"

// append decides with a rule and appends.
func (n *node) append(decide func(context.Context) ([]events.Change, error)) events.Sequence {
	n.t.Helper()
	sequence, err := n.events.Decide(n.t.Context(), jetstream.Cause{Actor: "test"}, decide)
	if err != nil {
		n.t.Fatal(err)
	}
	return sequence
}

func (n *node) upload(id string) events.Current[events.Upload] {
	n.t.Helper()
	upload, err := n.events.Upload(n.t.Context(), id)
	if err != nil {
		n.t.Fatal(err)
	}
	return upload
}

// handOver lets all pending files of a session arrive with these bytes and hands it to its job.
func (n *node) handOver(id string, data []byte) {
	n.t.Helper()
	upload := n.upload(id).State
	for ref, f := range upload.Files() {
		if f.State != events.FilePending {
			continue
		}
		name := ref.Variant + "." + ref.Format
		if err := n.blobs.WriteIngress(upload.JobID, name, data); err != nil {
			n.t.Fatal(err)
		}
		n.append(func(context.Context) ([]events.Change, error) {
			return events.Complete(events.CompleteFile{File: ref, Size: int64(len(data)),
				Digest: events.Digest("sha256:" + sha(data)), Ingress: name, At: time.Now()}, n.upload(id))
		})
	}
	n.append(func(context.Context) ([]events.Change, error) { return events.CompleteUpload(n.upload(id), time.Now()) })
}

func (n *node) job(id string) events.Current[events.Job] {
	n.t.Helper()
	job, err := n.events.Job(n.t.Context(), id)
	if err != nil {
		n.t.Fatal(err)
	}
	return job
}

func (n *node) version(image, version string) events.Current[events.Version] {
	n.t.Helper()
	v, err := n.events.Version(n.t.Context(), image, version)
	if err != nil {
		n.t.Fatal(err)
	}
	return v
}

func (n *node) startStep(id string, step events.Step) {
	n.t.Helper()
	n.append(func(context.Context) ([]events.Change, error) { return events.StartStep(n.job(id), step, time.Now()) })
}

// finish takes a job to its end: its files become blobs, its version is published.
func (n *node) finish(id string) events.Sequence {
	n.t.Helper()
	for _, step := range events.Steps() {
		n.startStep(id, step)
		if step == events.StepPublish {
			break
		}
		files := append([]events.JobFile(nil), n.job(id).State.Files...)
		for i, f := range files {
			files[i].MediaType = "application/x-qemu-disk"
			if step == events.StepPromote && f.Ingress != "" {
				b := events.Blob{Digest: f.Digest, Size: f.Size, MediaType: files[i].MediaType}
				n.append(func(ctx context.Context) ([]events.Change, error) {
					return promotion.Blob(ctx, n.events, n.blobs, b, func(ctx context.Context, _ events.Blob) error {
						return n.blobs.Admit(ctx, id, f.Ingress, f.Digest.Hex(), f.Size)
					})
				})
			}
		}
		n.append(func(context.Context) ([]events.Change, error) {
			return events.CompleteStep(n.job(id), step, files, time.Now())
		})
	}
	return n.append(func(ctx context.Context) ([]events.Change, error) {
		job := n.job(id)
		upload := n.upload(job.State.UploadID).State
		image, err := n.events.Image(ctx, upload.Image)
		if err != nil {
			return nil, err
		}
		aliases := map[string]events.Current[events.Alias]{}
		for _, alias := range upload.Aliases {
			if aliases[alias], err = n.events.Alias(ctx, upload.Image, alias); err != nil {
				return nil, err
			}
		}
		return events.Publish(events.PublishVersion{Job: job, Upload: upload, Version: n.version(upload.Image, upload.Version), Image: image, Aliases: aliases, At: time.Now()})
	})
}

// publish opens a session over HTTP, lets its bytes arrive and publishes it; it waits until reads see it.
func (n *node) publish(body map[string]any, data []byte) string {
	n.t.Helper()
	opened := n.want(n.do(http.MethodPost, "/api/images", body), http.StatusCreated)
	id := opened["upload_session_id"].(string)
	n.handOver(id, data)
	sequence := n.finish(events.JobIDFor(id))
	for _, runner := range []*projections.Runner{n.catalog, n.jobs, n.streams} {
		if err := runner.WaitFor(n.t.Context(), sequence); err != nil {
			n.t.Fatal(err)
		}
	}
	return id
}
