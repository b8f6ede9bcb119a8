package mirrors

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/pause"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
	"github.com/imgsrv/imgsrv/store/blob"
)

// refusedError says that a version can't be had as upstream offers it.
type refusedError struct {
	err      error
	remember bool // it costs something to find that out: not again
}

func (e *refusedError) Error() string { return e.err.Error() }

func (e *refusedError) Unwrap() error { return e.err }

// chunkBytes is what is written, synced and noted at once: what a kill may cost.
const chunkBytes = 8 << 20

// outcome is what became of a version.
type outcome int

const (
	present   outcome = iota // it was here before
	published                // now
)

// publisher publishes for one mirror.
type publisher struct {
	log      *jetstream.Log
	api      *client.Client
	upstream *fetcher
	address  string       // upstream's
	store    *blob.Store  // nil: whole files alone
	tool     *vcdiff.Tool // as above
	mirror   events.Mirror
	now      func() time.Time

	fetched func(bytes int)   // of upstream's files
	saved   func(bytes int64) // that didn't have to be fetched
	noted   func(problem string)
}

func (m *Manager) newPublisher(r *run) (*publisher, error) {
	principal := access.NewPrincipal(r.mirror.Actor(), events.Grant{Role: events.RolePublisher})
	// Nobody listens at the address: inProcess leads to the node's own handler. Patience with upstream is remoteFile's business.
	api, err := client.New("http://mirror", "", client.Options{Transport: &inProcess{m.handler, principal}, UserAgent: "imgsrv-mirror", StallTimeout: time.Hour})
	if err != nil {
		return nil, err
	}
	return &publisher{log: m.log, api: api, upstream: m.upstream, address: r.base, store: m.store, tool: m.tool, mirror: r.mirror, now: m.now,
		fetched: func(n int) { r.note(func(run *events.MirrorRun) { run.FetchedBytes += int64(n) }, "") },
		saved: func(n int64) {
			m.savedBytes.Add(context.Background(), n)
			r.note(func(run *events.MirrorRun) { run.SavedBytes += n }, "")
		},
		noted: func(problem string) { r.note(func(*events.MirrorRun) {}, problem) }}, nil
}

// ensure makes a version be here, with its aliases. The error is a [*refusedError], an [*upstreamError], or another that may pass.
func (p *publisher) ensure(ctx context.Context, w wanted) (outcome, error) {
	current, err := p.log.Version(ctx, w.Image, w.Version)
	if err != nil {
		return present, err
	}
	if manifest := current.State.Manifest; manifest != nil {
		if err := same(w, manifest); err != nil || current.State.State != events.StatePublished {
			return present, err
		}
		return present, p.alias(ctx, w)
	}
	if err := p.publish(ctx, w); err != nil {
		return present, err
	}
	return published, p.alias(ctx, w)
}

// same says whether what is published is what is wanted.
func same(w wanted, manifest *events.Manifest) error {
	for _, v := range w.Variants {
		i := slices.IndexFunc(manifest.Variants, func(have events.ManifestVariant) bool { return have.Name() == v.Name() })
		switch {
		case i < 0:
			return &refusedError{err: fmt.Errorf("it is published without %s, and published versions never change", v.Name())}
		case manifest.Variants[i].Fingerprint != v.Fingerprint:
			return &refusedError{err: fmt.Errorf("it is published with the fingerprint %s for %s, upstream has %s now", manifest.Variants[i].Fingerprint, v.Name(), v.Fingerprint)}
		}
	}
	return nil
}

// alias lets the version's aliases lead to it, where they don't since its publication.
func (p *publisher) alias(ctx context.Context, w wanted) error {
	for _, alias := range w.Aliases {
		current, err := p.log.Alias(ctx, w.Image, alias)
		if err != nil {
			return err
		}
		if current.State.Version == w.Version {
			continue
		}
		if err := p.api.MoveAlias(ctx, w.Image, alias, w.Version); err != nil {
			return fmt.Errorf("move the alias %s: %w", alias, asRefusal(err, false))
		}
	}
	return nil
}

func (p *publisher) publish(ctx context.Context, w wanted) error {
	session, err := p.open(ctx, w)
	if err != nil {
		return err
	}
	for _, file := range session.Files {
		if file.Tus == nil {
			continue
		}
		if err := p.transfer(ctx, w, session, file); err != nil {
			return err
		}
	}
	return p.await(ctx, session.ID)
}

// await waits for the end of a session's job. It looks at the events, so that it goes on while the database is away.
func (p *publisher) await(ctx context.Context, session string) error {
	const longest = time.Second
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, longest) {
		upload, err := p.log.Upload(ctx, session)
		if err != nil {
			return err
		}
		if s := upload.State.State; s != events.SessionOpen && s != events.SessionCompleted {
			return fmt.Errorf("upload session %s is %s", session, s)
		}
		job, err := p.log.Job(ctx, upload.State.JobID)
		if err != nil {
			return err
		}
		switch job.State.State {
		case events.JobStateSucceeded:
			return nil
		case events.JobStateFailed, events.JobStateCancelled:
			return failure(job.State)
		}
		if err := pause.For(ctx, wait); err != nil {
			return err
		}
	}
}

func failure(job events.Job) error {
	if job.Problem == nil {
		return fmt.Errorf("job %s is %s", job.ID, job.State)
	}
	err := fmt.Errorf("%s: %s", job.Problem.Code, job.Problem.Detail)
	if job.Problem.Final {
		return &refusedError{err, true}
	}
	return err
}

// open opens the session of a version, or finds the one that an earlier run has opened.
func (p *publisher) open(ctx context.Context, w wanted) (*client.Session, error) {
	image := client.NewImage{Image: w.Image, Version: w.Version, OS: w.OS, Release: w.Release, Description: w.Description, Aliases: w.Aliases,
		Traits: client.Traits(w.Traits.At(p.now()))}
	if p.mirror.Visibility != "" {
		there, err := p.log.Image(ctx, w.Image)
		if err != nil {
			return nil, err
		}
		if there.Sequence == 0 { // later on it is as somebody has decided
			image.Visibility = string(p.mirror.Visibility)
		}
	}
	for _, v := range w.Variants {
		variant := client.NewVariant{Architecture: v.Architecture, Type: string(v.Type), Flavour: v.Flavour, Fingerprint: v.Fingerprint}
		for _, f := range v.Files {
			variant.Files = append(variant.Files, client.NewFile{Format: f.Format, Size: f.Size, SHA256: f.SHA256})
		}
		image.Variants = append(image.Variants, variant)
	}
	session, err := p.api.CreateUploadAs(ctx, image, w.key())
	if problem := inTheWay(err); problem != nil {
		// A session of ours for what upstream offered, or what its aliases were, before; or of a day when support hadn't ended.
		ended, abortErr := p.abortOwn(ctx, problem)
		if abortErr != nil {
			return nil, abortErr
		}
		if ended {
			session, err = p.api.CreateUploadAs(ctx, image, w.key())
		}
	}
	if err != nil {
		return nil, asRefusal(err, false)
	}
	return session, nil
}

// inTheWay is the problem of a session that holds the version for something else; nil for another error, or none.
func inTheWay(err error) *client.Problem {
	var problem *client.Problem
	if errors.As(err, &problem) && (problem.Code == client.CodeVersionInProgress || problem.Code == client.CodeIdempotencyReuse) {
		return problem
	}
	return nil
}

// abortOwn ends the session that stands in the way, if it is this mirror's and still takes files.
func (p *publisher) abortOwn(ctx context.Context, problem *client.Problem) (bool, error) {
	id := path.Base(problem.StatusURL)
	upload, err := p.log.Upload(ctx, id)
	if err != nil || upload.State.InitiatedBy != p.mirror.Actor() {
		return false, err
	}
	if upload.State.State != events.SessionOpen || upload.State.Complete {
		return false, nil // its job goes on; the next run sees what came of it
	}
	return true, p.api.AbortUpload(ctx, id)
}

// transfer brings a file into its upload: made of a delta where there is one for what is here, else as upstream has it.
func (p *publisher) transfer(ctx context.Context, w wanted, session *client.Session, file client.SessionFile) error {
	for _, v := range w.Variants {
		for _, f := range v.Files {
			if v.Name() != file.Variant || f.Format != file.Format {
				continue
			}
			upload := client.TusFile{Target: *file.Tus, Size: f.Size, ChunkBytes: chunkBytes, Status: func(ctx context.Context) (client.UploadFile, error) {
				upload, err := p.api.Upload(ctx, session.ID)
				if err != nil {
					return client.UploadFile{}, err
				}
				status, _ := upload.File(file.Variant, file.Format)
				return status, nil
			}}
			if len(v.deltas) > 0 && f.Path == v.root {
				done, err := p.transferDelta(ctx, w, v, f.File, upload)
				if done || err != nil {
					return err
				}
			}
			remote := p.remote(ctx, f.File)
			defer remote.close()
			upload.Content = remote
			return p.api.UploadFile(ctx, upload)
		}
	}
	return fmt.Errorf("the session wants %s %s, which nobody has declared", file.Variant, file.Format)
}

// transferDelta brings a root by a delta. Not done and no error: it has to come whole.
func (p *publisher) transferDelta(ctx context.Context, w wanted, v wantedVariant, root simplestreams.File, upload client.TusFile) (done bool, err error) {
	status, err := upload.Status(ctx)
	if err != nil {
		return false, err
	}
	missing := root.Size - status.Offset
	b, err := p.build(ctx, w, v, root, missing)
	switch {
	case ctx.Err() != nil:
		return false, context.Cause(ctx)
	case errors.Is(err, errNoDelta):
		return false, nil
	case err != nil:
		p.noted(fmt.Sprintf("%s: a delta is of no use, and the whole file is fetched: %v", w, err))
		return false, nil
	}
	defer b.close() //nolint:errcheck // a folder that stays is swept by the next start
	upload.Content = b.file
	if err := p.api.UploadFile(ctx, upload); err != nil {
		return false, err
	}
	p.saved(missing - b.fetched)
	return true, nil
}

func (p *publisher) remote(ctx context.Context, f simplestreams.File) *remoteFile {
	return &remoteFile{ctx: ctx, from: p.upstream, base: p.address, path: f.Path, size: f.Size, count: p.fetched}
}

// asRefusal tells what the rules say no to from what may pass: too many sessions, no room, a session of somebody else's.
func asRefusal(err error, remember bool) error {
	var problem *client.Problem
	if errors.As(err, &problem) && inTheWay(err) == nil &&
		(problem.Status == http.StatusConflict || problem.Status == http.StatusUnprocessableEntity || problem.Status == http.StatusRequestEntityTooLarge) {
		return &refusedError{err, remember}
	}
	return err
}
