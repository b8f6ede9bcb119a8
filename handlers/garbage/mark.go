package garbage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/operations"
)

// always is until when a blob is needed whose need has no end that is known.
var always = time.Unix(1<<40, 0)

// mark is what the log says as of one moment. It grows with the number of blobs, derived files and withdrawn versions; of
// the other versions only the digests stay.
type mark struct {
	head   events.Sequence // all up to it is in the picture
	needed map[events.Digest]time.Time
	blobs  map[events.Digest]knownBlob
	due    []dueVersion
	gone   map[string]bool // versions that were collected, as image/version
	made   []madeFile
}

// knownBlob is a blob as of its last fact.
type knownBlob struct {
	sequence events.Sequence
	at       time.Time
	state    events.Blob
}

func (k knownBlob) current() events.Current[events.Blob] {
	return events.Current[events.Blob]{Sequence: k.sequence, State: k.state}
}

// dueVersion is a version that was withdrawn for long.
type dueVersion struct {
	image, version string
	withdrawn      time.Time
	digests        []events.Digest
}

// madeFile is a derived file that is there.
type madeFile struct {
	image, version, variant, format string
	base                            string // of a delta: the version
	digest                          events.Digest
}

func (m *mark) need(digest events.Digest, until time.Time) {
	if digest != "" && until.After(m.needed[digest]) {
		m.needed[digest] = until
	}
}

func versionKey(image, version string) string { return image + "/" + version }

// mark reads the last fact of each entity that may need a blob, or is one, and ends the needs that are over: of versions
// withdrawn for long, and of the files derived from them.
func (r *run) mark(ctx context.Context) (*mark, error) {
	head, err := r.Log.Head(ctx)
	if err != nil {
		return nil, err
	}
	m := &mark{head: head, needed: map[events.Digest]time.Time{}, blobs: map[events.Digest]knownBlob{}, gone: map[string]bool{}}
	subjects := []string{}
	for _, kind := range []string{events.KindUpload, events.KindJob, events.KindBlob, events.KindVersion, events.KindDerived} {
		subjects = append(subjects, events.SubjectsAbout(kind)...)
	}
	err = r.Log.EachLatest(ctx, subjects, func(event events.Event, total int) error {
		if r.result.Events++; r.result.Events%500 == 1 {
			r.report(operations.Progress{Stage: "mark", Done: r.result.Events, Total: int64(total), Unit: "events"})
		}
		return r.add(m, event)
	})
	if err != nil {
		return nil, err
	}
	if err := r.versions(ctx, m); err != nil {
		return nil, fmt.Errorf("give up withdrawn versions: %w", err)
	}
	if err := r.derived(ctx, m); err != nil {
		return nil, fmt.Errorf("remove derived files: %w", err)
	}
	return m, nil
}

// add takes up what one entity needs. Of an entity that comes twice both needs count.
func (r *run) add(m *mark, event events.Event) error {
	switch fact := event.Fact.(type) {
	case events.UploadFact:
		u := fact.After()
		if u.State != events.SessionOpen {
			return nil // its job needs the files from then on, or nobody
		}
		for _, f := range u.Files() {
			if f.State == events.FilePresent {
				m.need(f.Digest, always)
			}
		}
	case events.JobFact:
		j := fact.After()
		until, needs := r.jobNeeds(j)
		for i := range j.Files {
			if needs {
				m.need(j.Files[i].Digest, until)
			}
		}
	case events.VersionFact:
		r.addVersion(m, fact.After())
	case events.DerivedFact:
		d := fact.After()
		switch d.State {
		case events.DerivedIsMade:
			m.made = append(m.made, madeFile{d.Image, d.Version, d.Variant, d.Format, d.BaseVersion, d.Digest})
		case events.DerivedIsRemoved:
			m.need(d.Digest, d.RemovedAt.Add(r.request.Grace)) // clients may have it in their lists
		}
	case events.BlobFact:
		b := fact.After()
		m.blobs[b.Digest] = knownBlob{event.Sequence, event.Time, b}
	default:
		return fmt.Errorf("event %d is of type %s, which says nothing of what needs bytes here", event.Sequence, event.Type)
	}
	return nil
}

// jobNeeds says until when a job needs its files. Of one that has succeeded the version does.
func (r *run) jobNeeds(j events.Job) (until time.Time, needs bool) {
	switch {
	case j.State == events.JobStateQueued || j.State == events.JobStateRunning:
		return always, true
	case j.State == events.JobStateFailed && (j.Problem == nil || !j.Problem.Final):
		return j.EndedAt.Add(max(r.request.Grace, jobGrace)), true
	}
	return time.Time{}, false
}

func (r *run) addVersion(m *mark, v events.Version) {
	if v.Manifest == nil {
		return
	}
	withdrawn := v.State == events.StateWithdrawn && v.Withdrawal != nil
	switch {
	case withdrawn && !v.Withdrawal.CollectedAt.IsZero():
		m.gone[versionKey(v.Image, v.Version)] = true
	case withdrawn && !v.Withdrawal.At.Add(r.request.KeepWithdrawn).After(r.now):
		m.due = append(m.due, dueVersion{v.Image, v.Version, v.Withdrawal.At, digestsOf(v.Manifest)})
	default:
		for _, digest := range digestsOf(v.Manifest) {
			m.need(digest, always)
		}
	}
}

func digestsOf(manifest *events.Manifest) []events.Digest {
	var digests []events.Digest
	for _, v := range manifest.Variants {
		for _, f := range v.Formats {
			digests = append(digests, f.Digest)
		}
	}
	for _, a := range manifest.Attachments {
		digests = append(digests, a.Digest)
	}
	return digests
}

// versions gives up those that were withdrawn for long. One that somebody restores in this moment is needed as before.
func (r *run) versions(ctx context.Context, m *mark) error {
	for _, due := range m.due {
		gone := r.request.DryRun
		if !gone {
			_, err := r.Log.Decide(ctx, jetstream.Cause{Actor: byItself}, func(ctx context.Context) ([]events.Change, error) {
				current, err := r.Log.Version(ctx, due.image, due.version)
				if err != nil {
					return nil, err
				}
				w := current.State.Withdrawal
				gone = current.State.State == events.StateWithdrawn && w != nil && !w.At.Add(r.request.KeepWithdrawn).After(r.now)
				if !gone {
					return nil, nil
				}
				return events.CollectVersion(current, r.now), nil
			})
			if err != nil && !errors.Is(err, jetstream.ErrConflict) {
				return err
			}
			gone = gone && err == nil
		}
		if !gone {
			for _, digest := range due.digests {
				m.need(digest, always)
			}
			continue
		}
		m.gone[versionKey(due.image, due.version)] = true
		r.result.add(Item{Kind: ItemVersion, Name: versionKey(due.image, due.version), Reason: "withdrawn since " + due.withdrawn.Format(time.RFC3339)})
	}
	return nil
}

// derived takes files out of versions: all of those that are gone, and deltas from them. The lists of a version that is
// there lose the delta now, and its bytes stay for the grace time.
func (r *run) derived(ctx context.Context, m *mark) error {
	for _, d := range m.made {
		ofGone, fromGone := m.gone[versionKey(d.image, d.version)], d.base != "" && m.gone[versionKey(d.image, d.base)]
		if !ofGone && !fromGone {
			m.need(d.digest, always)
			continue
		}
		if !ofGone {
			m.need(d.digest, r.now.Add(r.request.Grace))
		}
		if !r.request.DryRun {
			removed, err := r.removeDerived(ctx, d)
			if err != nil {
				return err
			}
			if !removed {
				m.need(d.digest, always)
				continue
			}
		}
		reason := "its version can't be restored any more"
		if !ofGone {
			reason = "version " + d.base + ", which it starts from, can't be restored any more"
		}
		r.result.add(Item{Kind: ItemDerived, Name: events.DerivedEntity(d.image, d.version, d.variant, d.format).ID, Reason: reason})
	}
	return nil
}

func (r *run) removeDerived(ctx context.Context, d madeFile) (removed bool, err error) {
	_, err = r.Log.Decide(ctx, jetstream.Cause{Actor: byItself}, func(ctx context.Context) ([]events.Change, error) {
		current, err := r.Log.Derived(ctx, d.image, d.version, d.variant, d.format)
		removed = err == nil && current.State.State == events.DerivedIsMade && current.State.Digest == d.digest
		if !removed {
			return nil, err
		}
		return events.RemoveDerived(current, byItself, r.now)
	})
	if errors.Is(err, jetstream.ErrConflict) {
		return false, nil
	}
	return removed && err == nil, err
}
