package backup

import (
	"context"
	"maps"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// reference is a blob that something names.
type reference struct {
	digest events.Digest
	size   int64
}

// marks folds what events say of blobs: those that published versions, withdrawn ones while they can be restored, and their further
// files name. What a session or a job holds isn't among them: it is not published yet, and ends at a restore.
type marks struct {
	versions map[string][]reference // by subject
	derived  map[string]reference   // by subject
	states   map[events.Digest]events.BlobState
	damaged  map[events.Digest]bool
}

func newMarks() *marks {
	return &marks{versions: map[string][]reference{}, derived: map[string]reference{}, states: map[events.Digest]events.BlobState{}, damaged: map[events.Digest]bool{}}
}

func (m *marks) apply(e events.Event) {
	switch f := e.Fact.(type) {
	case events.VersionFact:
		delete(m.versions, e.Subject)
		v := f.After()
		if collected := v.Withdrawal != nil && !v.Withdrawal.CollectedAt.IsZero(); v.Manifest != nil && !collected {
			m.versions[e.Subject] = filesOf(v.Manifest)
		}
	case events.DerivedFact:
		delete(m.derived, e.Subject)
		if d := f.After(); d.State == events.DerivedIsMade {
			m.derived[e.Subject] = reference{d.Digest, d.Size}
		}
	case events.BlobFact:
		b := f.After()
		m.states[b.Digest] = b.State
		if delete(m.damaged, b.Digest); b.Damage != nil {
			m.damaged[b.Digest] = true
		}
	}
}

// isGarbage says whether nobody needs the bytes any more: they are gone, or on their way out.
func isGarbage(s events.BlobState) bool { return s != events.BlobIsPresent }

func filesOf(m *events.Manifest) []reference {
	var files []reference
	for _, v := range m.Variants {
		for _, f := range v.Formats {
			files = append(files, reference{f.Digest, f.Size})
		}
	}
	for _, a := range m.Attachments {
		files = append(files, reference{a.Digest, a.Size})
	}
	return files
}

// blobs are the marked ones, by digest and each once, with their sizes.
func (m *marks) blobs() []reference {
	sizes := map[events.Digest]int64{}
	add := func(r reference) {
		if !isGarbage(m.states[r.digest]) {
			sizes[r.digest] = r.size
		}
	}
	for _, files := range m.versions {
		for _, r := range files {
			add(r)
		}
	}
	for _, r := range m.derived {
		add(r)
	}
	list := make([]reference, 0, len(sizes))
	for _, digest := range slices.Sorted(maps.Keys(sizes)) {
		list = append(list, reference{digest, sizes[digest]})
	}
	return list
}

// unneeded are the blobs that there were, and that nothing published names: they are in no backup.
func (m *marks) unneeded() []events.Digest {
	needed := map[events.Digest]bool{}
	for _, r := range m.blobs() {
		needed[r.digest] = true
	}
	var list []events.Digest
	for _, digest := range slices.Sorted(maps.Keys(m.states)) {
		if m.states[digest] != events.BlobIsCollected && !needed[digest] {
			list = append(list, digest)
		}
	}
	return list
}

// mark reads from the log which blobs its events up to a sequence name.
func mark(ctx context.Context, log *jetstream.Log, upTo events.Sequence) ([]reference, error) {
	m := newMarks()
	// One kind after the other: a consumer that filters several at once is slow, and their order doesn't matter here.
	for _, kind := range []string{events.KindVersion, events.KindDerived, events.KindBlob} {
		err := log.Read(ctx, upTo, events.SubjectsAbout(kind), func(e events.Event) error {
			m.apply(e)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return m.blobs(), nil
}
