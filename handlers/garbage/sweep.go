package garbage

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/operations"
	"github.com/imgsrv/imgsrv/store/blob"
)

// finishPatience bounds what is done with a blob once it is begun, whatever becomes of who asked for it.
const finishPatience = 30 * time.Second

// mostFailures is how many blobs may resist their removal in one run. More are the storage's trouble, not theirs.
const mostFailures = 10

// failures are what single blobs resisted with: one bad file must not keep all others from being collected, now and at each later run.
type failures []error

// add says whether to stop, with what was met.
func (f *failures) add(ctx context.Context, err error) error {
	*f = append(*f, err)
	if ctx.Err() != nil || errors.Is(err, jetstream.ErrUnavailable) || blob.IsAway(err) || len(*f) >= mostFailures {
		return errors.Join(*f...)
	}
	return nil
}

// candidate is a blob that is garbage as of the mark.
type candidate struct {
	digest events.Digest
	known  knownBlob
	size   int64 // bytes
	reason string
}

// sweep collects the blobs that aren't needed.
func (r *run) sweep(ctx context.Context, m *mark) error {
	if err := r.finishBegun(ctx, m); err != nil {
		return err
	}
	candidates := r.unneeded(m)
	orphans, err := r.orphans(ctx, m)
	if err != nil {
		return err
	}
	candidates = append(candidates, orphans...)
	slices.SortFunc(candidates, func(a, b candidate) int { return strings.Compare(string(a.digest), string(b.digest)) })
	for i, c := range candidates {
		if err := ctx.Err(); err != nil {
			return err
		}
		if i%50 == 0 {
			r.report(operations.Progress{Stage: "sweep", Done: int64(i), Total: int64(len(candidates)), Unit: "blobs"})
		}
		if r.request.DryRun {
			if there, err := r.Store.HasBlob(c.digest.Hex(), c.size); err != nil || !there {
				c.size = 0
			}
			r.result.add(Item{Kind: ItemBlob, Name: string(c.digest), Bytes: c.size, Reason: c.reason})
			continue
		}
		freed, gone, err := r.collect(ctx, c)
		switch {
		case err != nil:
			if err := r.failed.add(ctx, err); err != nil {
				return err
			}
		case gone:
			r.result.add(Item{Kind: ItemBlob, Name: string(c.digest), Bytes: freed, Reason: c.reason})
		default:
			r.result.Kept++
		}
	}
	return nil
}

// finishBegun ends collections that a dead process began, and whose file it hadn't moved yet.
func (r *run) finishBegun(ctx context.Context, m *mark) error {
	for digest, known := range m.blobs {
		if known.state.State != events.BlobIsCollecting || r.request.DryRun {
			continue
		}
		freed, gone, err := r.finish(ctx, known.current())
		if err != nil {
			if err := r.failed.add(ctx, err); err != nil {
				return err
			}
		}
		if gone {
			r.result.add(Item{Kind: ItemBlob, Name: string(digest), Bytes: freed, Reason: "its collection was interrupted"})
		}
	}
	return nil
}

// unneeded are the blobs in the log that nothing needs.
func (r *run) unneeded(m *mark) []candidate {
	var found []candidate
	for digest, known := range m.blobs {
		// A fact from after the picture's moment may be of somebody whose need isn't in the picture.
		if known.state.State != events.BlobIsPresent || known.sequence > m.head || !r.over(m, digest, known.at) {
			continue
		}
		since := known.at
		if until, named := m.needed[digest]; named && until.After(since) {
			since = until
		}
		found = append(found, candidate{digest, known, known.state.Size, "nothing names it since " + since.UTC().Format(time.RFC3339)})
	}
	return found
}

// over says whether the last need of a blob, and the last thing that happened to it, are long enough ago.
func (r *run) over(m *mark, digest events.Digest, last time.Time) bool {
	until, named := m.needed[digest]
	return (!named || !until.After(r.now)) && !last.Add(r.request.Grace).After(r.now)
}

// orphans are files in the store that no fact speaks of: a process ended between the bytes and the fact.
func (r *run) orphans(ctx context.Context, m *mark) ([]candidate, error) {
	var found []candidate
	err := r.Store.Blobs(ctx, func(file blob.File) error {
		digest := events.Digest("sha256:" + file.SHA256)
		known := m.blobs[digest]
		if known.sequence != 0 && known.state.State != events.BlobIsCollected || known.sequence > m.head {
			return nil
		}
		last := file.Changed
		if known.at.After(last) {
			last = known.at
		}
		if r.over(m, digest, last) {
			if known.sequence == 0 {
				known.state = events.Blob{Digest: digest, Size: file.Size, MediaType: "application/octet-stream"}
			}
			found = append(found, candidate{digest, known, file.Size, "no event names it; in the store since " + file.Changed.Format(time.RFC3339)})
		}
		return nil
	})
	return found, err
}

// collect takes a blob from its state of the mark to collected. It isn't gone where somebody began to need it.
func (r *run) collect(ctx context.Context, c candidate) (freed int64, gone bool, err error) {
	r.Reached("begin", c.digest)
	changes := events.BeginCollecting(c.known.state, c.known.current())
	sequence, err := r.Log.Append(ctx, jetstream.Cause{Actor: byItself}, changes...)
	if errors.Is(err, jetstream.ErrConflict) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	return r.finish(ctx, events.Current[events.Blob]{State: events.Fold(c.known.state, changes[0].Fact), Sequence: sequence})
}

// finish takes a blob that is being collected to its end: its file into the trash, the fact, and the file away.
func (c *Collector) finish(ctx context.Context, current events.Current[events.Blob]) (freed int64, gone bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishPatience)
	defer cancel()
	digest := current.State.Digest
	c.Reached("collecting", digest)
	if err := c.Store.Discard(digest.Hex()); err != nil {
		_, undone := c.Log.Append(ctx, jetstream.Cause{Actor: byItself}, events.RetainBlob(current)...)
		if errors.Is(undone, jetstream.ErrConflict) {
			undone = nil // somebody needs it, which says the same
		}
		return 0, false, errors.Join(err, undone)
	}
	c.Reached("discarded", digest)
	_, err = c.Log.Append(ctx, jetstream.Cause{Actor: byItself}, events.EndCollecting(current)...)
	if errors.Is(err, jetstream.ErrConflict) {
		return c.settle(ctx, digest)
	}
	if err != nil {
		return 0, false, err // perhaps it is recorded: the trash is looked through at the next start, and before the next run
	}
	c.Reached("collected", digest)
	freed, err = c.Store.Destroy(digest.Hex())
	return freed, err == nil, err
}

// settle does with a file in the trash what the blob's last fact says.
func (c *Collector) settle(ctx context.Context, digest events.Digest) (freed int64, gone bool, err error) {
	current, err := c.Log.Blob(ctx, digest)
	if err != nil {
		return 0, false, err
	}
	switch {
	case current.Sequence != 0 && current.State.State == events.BlobIsCollecting:
		return c.finish(ctx, current)
	case current.Sequence != 0 && current.State.State == events.BlobIsCollected:
		freed, err = c.Store.Destroy(digest.Hex())
		return freed, err == nil, err
	}
	return 0, false, c.Store.Recover(digest.Hex())
}

// Recover ends, or undoes, what a process that is no more had begun. [ErrRunning] where a collection runs, which does so too.
func (c *Collector) Recover(ctx context.Context) (err error) {
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	var failed failures
	if err := c.emptyTrash(ctx, &failed); err != nil {
		return err
	}
	begun, err := c.begun(ctx)
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	for _, current := range begun {
		if _, _, err := c.finish(ctx, current); err != nil {
			if err := failed.add(ctx, err); err != nil {
				return err
			}
		}
	}
	return errors.Join(failed...)
}

// begun are the blobs whose collection has begun and not ended. All their events are read: to find the last of each, of very many,
// keeps the server from everything else for seconds (nats-server 2.15, fileStore.MultiLastSeqs under the stream's lock), and this is
// part of each start.
func (c *Collector) begun(ctx context.Context) (map[events.Digest]events.Current[events.Blob], error) {
	head, err := c.Log.Head(ctx)
	if err != nil {
		return nil, err
	}
	begun := map[events.Digest]events.Current[events.Blob]{}
	err = c.Log.Read(ctx, head, events.SubjectsAbout(events.KindBlob), func(event events.Event) error {
		fact, ok := event.Fact.(events.BlobFact)
		if !ok {
			return nil
		}
		if b := fact.After(); b.State == events.BlobIsCollecting {
			begun[b.Digest] = events.Current[events.Blob]{State: b, Sequence: event.Sequence}
		} else {
			delete(begun, b.Digest)
		}
		return nil
	})
	return begun, err
}

// emptyTrash does with what lies in the trash what its last fact says.
func (c *Collector) emptyTrash(ctx context.Context, failed *failures) error {
	discarded, err := c.Store.Discarded()
	if err != nil {
		return err
	}
	for _, hex := range discarded {
		if _, _, err := c.settle(ctx, events.Digest("sha256:"+hex)); err != nil {
			if err := failed.add(ctx, err); err != nil {
				return err
			}
		}
	}
	return nil
}
