package mirrors

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/streams/sjson"
	"github.com/imgsrv/imgsrv/internal/pause"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
)

// maxParallel is how many versions of a mirror are fetched at once, of different images: those of one image come in their order.
const maxParallel = 2

// errSuperseded ends a run whose mirror was removed, or whose end somebody else has recorded.
var errSuperseded = errors.New("the mirror has moved on")

// run is one run of a mirror.
type run struct {
	*Manager
	mirror    events.Mirror
	request   events.Sequence // of the fact that wants it
	publisher *publisher
	base      string            // upstream's address, with all that opens it
	signed    *sjson.Verifier   // of the documents; nil: they needn't be signed
	scrub     *strings.Replacer // takes what is secret in it out of texts

	mu      sync.Mutex
	result  events.MirrorRun
	refused []events.MirrorRefusal
}

// sync does what a mirror wants, and says what came of it. The error is that of a run that isn't over: the process ends, the
// log is away, or the mirror has moved on.
func (m *Manager) sync(ctx context.Context, mirror events.Mirror, request events.Sequence) (events.EndSync, error) {
	r := &run{Manager: m, mirror: mirror, request: request, result: events.MirrorRun{StartedAt: m.now().UTC()}}
	var err error
	var documents []events.MirrorDocument
	if r.base, err = m.address(mirror); err == nil {
		documents, err = r.do(ctx)
	}
	switch {
	case ctx.Err() != nil:
		return events.EndSync{}, context.Cause(ctx)
	case errors.Is(err, errSuperseded):
		return events.EndSync{}, err
	case err != nil:
		r.result.Error = r.clean(err.Error())
	}
	r.result.Problems = slices.Clone(r.result.Problems)
	for i, problem := range r.result.Problems { // what the documents say may repeat the address too
		r.result.Problems[i] = r.clean(problem)
	}
	r.result.EndedAt = m.now().UTC()
	end := events.EndSync{Request: request, Run: r.result, Documents: documents, Refused: r.refused}
	if failed := r.result.Error != "" || r.result.Failed > 0; failed {
		end.Documents = nil
		end.NextAt = r.result.EndedAt.Add(min(mirror.Every(), pause.About(m.retry<<min(mirror.Failures, 10))))
	} else {
		end.NextAt = r.result.EndedAt.Add(mirror.Every()).Add(pause.About(mirror.Every() / 20))
	}
	if r.result.Error != "" || r.result.Unchanged {
		end.Refused = mirror.Refused
	}
	return end, nil
}

// do reads upstream's documents, and publishes what is wanted of them.
func (r *run) do(ctx context.Context) ([]events.MirrorDocument, error) {
	if r.mirror.CredentialsID != "" {
		r.scrub = scrubber(r.base)
	}
	var err error
	if r.publisher, err = r.newPublisher(r); err != nil {
		return nil, err
	}
	if r.mirror.UpstreamKey != "" {
		if r.signed, err = sjson.NewVerifier(r.mirror.UpstreamKey); err != nil {
			return nil, fmt.Errorf("the key of upstream's documents: %w", err)
		}
	}
	documents, images, problems, err := r.read(ctx)
	if err != nil || images == nil {
		return documents, err
	}
	r.result.Problems = problems
	return documents, r.mirrorAll(ctx, images)
}

// clean makes a text fit for an event and a log.
func (r *run) clean(text string) string {
	if r.scrub == nil {
		return text
	}
	return r.scrub.Replace(text)
}

// read fetches upstream's documents. Images are nil where nothing has changed since all that matches was here.
func (r *run) read(ctx context.Context) (documents []events.MirrorDocument, images []simplestreams.Image, problems []string, err error) {
	if last := r.mirror.LastRun; len(r.mirror.Documents) > 0 && last != nil {
		unchanged, err := r.unchanged(ctx)
		if err != nil {
			return nil, nil, nil, err
		}
		if unchanged {
			r.result.Unchanged, r.result.Matched, r.result.Refused, r.result.Problems = true, last.Matched, last.Refused, last.Problems
			r.result.Present = last.Present + last.Published
			return r.mirror.Documents, nil, nil, nil
		}
	}
	data, document, err := r.document(ctx, simplestreams.IndexPath)
	if err != nil {
		return nil, nil, nil, err
	}
	documents = append(documents, document)
	listed, wrong, err := simplestreams.ParseIndex(data)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, p := range wrong {
		problems = append(problems, p.String())
	}
	if len(listed) >= events.MaxMirrorDocuments {
		return nil, nil, nil, fmt.Errorf("the index leads to %d documents, and a mirror reads at most %d", len(listed), events.MaxMirrorDocuments-1)
	}
	images = []simplestreams.Image{}
	for _, one := range listed {
		data, document, err := r.document(ctx, one.Path)
		if err != nil {
			return nil, nil, nil, err
		}
		documents = append(documents, document)
		found, wrong, err := simplestreams.ParseProducts(data)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("%s: %w", one.Path, err)
		}
		images = append(images, found...)
		for _, p := range wrong {
			problems = append(problems, p.String())
		}
	}
	return documents, images, problems, nil
}

// document reads one, signed where it has to be.
func (r *run) document(ctx context.Context, path string) ([]byte, events.MirrorDocument, error) {
	if r.signed == nil {
		return r.upstream.document(ctx, r.base, path, events.MirrorDocument{})
	}
	data, document, err := r.upstream.document(ctx, r.base, sjson.SignedPath(path), events.MirrorDocument{})
	if err == nil {
		data, err = r.signed.Open(data)
	}
	if err != nil {
		return nil, document, fmt.Errorf("%s: %w", path, err)
	}
	return data, document, nil
}

// unchanged asks whether each document is as it was.
func (r *run) unchanged(ctx context.Context) (bool, error) {
	for _, known := range r.mirror.Documents {
		if known.ETag == "" && known.LastModified == "" {
			return false, nil
		}
		data, _, err := r.upstream.document(ctx, r.base, known.Path, known)
		if err != nil || data != nil {
			return false, err
		}
	}
	return true, nil
}

// mirrorAll publishes what is wanted and isn't here. What is wrong with one version stands in the result, and the others go
// on; the error is one that concerns them all.
func (r *run) mirrorAll(ctx context.Context, images []simplestreams.Image) error {
	versions, problems := plan(r.mirror, images)
	// What concerns wanted images goes before what is wrong elsewhere in the documents.
	r.result.Problems = append(problems, r.result.Problems...)
	r.result.Matched = len(versions)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxParallel)
	for len(versions) > 0 {
		n := 1
		for n < len(versions) && versions[n].Image == versions[0].Image {
			n++
		}
		ofImage := versions[:n]
		versions = versions[n:]
		group.Go(func() error {
			for _, w := range ofImage {
				if err := r.mirrorOne(ctx, w); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// mirrorOne sees to one version.
func (r *run) mirrorOne(ctx context.Context, w wanted) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	current, err := r.log.Mirror(ctx, r.mirror.Name)
	if err != nil {
		return err
	}
	if current.Sequence != r.request {
		return errSuperseded
	}
	if before, ok := r.refusedBefore(w); ok {
		r.note(func(result *events.MirrorRun) { result.Refused++ }, fmt.Sprintf("%s: %s", w, before.Reason))
		r.remember(before)
		return nil
	}
	outcome, err := r.publisher.ensure(ctx, w)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var refused *refusedError
	var broken *upstreamError
	switch {
	case errors.As(err, &refused):
		r.logger.WarnContext(ctx, "a mirror can't have a version", "mirror", r.mirror.Name, "image", w.Image, "version", w.Version, "error", r.clean(err.Error()))
		r.note(func(result *events.MirrorRun) { result.Refused++ }, fmt.Sprintf("%s: %v", w, err))
		if refused.remember {
			r.remember(events.MirrorRefusal{Image: w.Image, Version: w.Version, Digest: w.digest(), Reason: err.Error()})
		}
	case errors.As(err, &broken) && !broken.gone:
		return fmt.Errorf("%s: %w", w, err) // upstream, or the way there: the others would meet the same
	case err != nil:
		r.logger.WarnContext(ctx, "a mirror couldn't publish a version; the next run tries again", "mirror", r.mirror.Name, "image", w.Image, "version", w.Version, "error", r.clean(err.Error()))
		r.note(func(result *events.MirrorRun) { result.Failed++ }, fmt.Sprintf("%s: %v", w, err))
	case outcome == published:
		r.note(func(result *events.MirrorRun) { result.Published++ }, "")
	default:
		r.note(func(result *events.MirrorRun) { result.Present++ }, "")
	}
	return nil
}

func (r *run) note(count func(*events.MirrorRun), problem string) {
	problem = r.clean(problem)
	r.mu.Lock()
	defer r.mu.Unlock()
	count(&r.result)
	if problem != "" {
		rest := r.result.Problems[:min(len(r.result.Problems), events.MaxMirrorProblems)] // more aren't kept
		r.result.Problems = append([]string{problem}, rest...)
	}
}

func (r *run) remember(refusal events.MirrorRefusal) {
	refusal.Reason = r.clean(refusal.Reason)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refused = append(r.refused, refusal)
}

// refusedBefore finds what an earlier run has found out about just this version, as upstream describes it.
func (r *run) refusedBefore(w wanted) (events.MirrorRefusal, bool) {
	for _, one := range r.mirror.Refused {
		if one.Image == w.Image && one.Version == w.Version && one.Digest == w.digest() {
			return one, true
		}
	}
	return events.MirrorRefusal{}, false
}
