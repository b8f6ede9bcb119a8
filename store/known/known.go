// Package known keeps in memory which files published versions have and which image they belong to, so that downloads go on
// while PostgreSQL is away. It gives the same rows as store/catalog does from the tables of the catalog projection, as far
// as it knows them, and knows neither where events come from nor who asks.
package known

import (
	"sync"
	"time"
	"unique"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// Subjects are those that the files of versions stand under.
func Subjects() []string {
	return []string{events.SubjectOfKind(events.KindImage), events.SubjectOfKind(events.KindVersion), events.SubjectOfKind(events.KindAlias), events.SubjectOfKind(events.KindDerived)}
}

// MaxFiles bounds what is kept, files: about 250 bytes each. Of a server with more nothing is known here.
const MaxFiles = 1_000_000

// Files is what is known. All its methods may be called at once from several goroutines.
type Files struct {
	mu       sync.RWMutex
	images   map[string]events.Visibility
	versions map[name]*version
	aliases  map[name]string // version that an alias names
	blobs    map[events.Digest][]*version
	files    int
	blind    string // why nothing is known; "" as long as something is
	whole    bool   // all that had happened at the start was applied
}

// name is one within an image.
type name struct{ image, name string }

type version struct {
	name
	publishedAt time.Time
	withdrawn   *events.Withdrawal
	published   bool
	files       []file
}

// file is small, since there are many: the few texts that most files share are kept once.
type file struct {
	variant, format, mediaType unique.Handle[string]
	digest                     events.Digest
	size                       int64
	madeAt                     time.Time // of a derived file; zero for what was published
	rank                       int8      // as catalog.Blob prefers them: formats, derived files, attachments
}

// New knows nothing yet.
func New() *Files {
	return &Files{images: map[string]events.Visibility{}, versions: map[name]*version{}, aliases: map[name]string{}, blobs: map[events.Digest][]*version{}}
}

// Whole says that all that had happened when the events were begun is applied. Before, nothing is given out: a file may have been
// withdrawn, or its image made private, by an event that is yet to come.
func (f *Files) Whole() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.whole = true
}

// Apply moves on by one event, in order. One whose fact this release can't read may say that a file is no longer to be
// had: nothing is known from then on.
func (f *Files) Apply(event events.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blind != "" {
		return
	}
	switch fact := event.Fact.(type) {
	case nil:
		f.forget("a newer release has written an event that this one can't read")
	case events.ImagePolicySet: // says nothing about who may read
	case events.ImageFact:
		f.images[fact.After().Name] = fact.After().Visibility
	case events.VersionFact:
		f.version(fact.After())
	case events.AliasFact:
		a := fact.After()
		if a.Version == "" {
			delete(f.aliases, name{a.Image, a.Alias})
			return
		}
		f.aliases[name{a.Image, a.Alias}] = a.Version
	case events.DerivedFact:
		f.derived(fact.After())
	}
	if f.files > MaxFiles {
		f.forget("there are more files than are kept in memory")
	}
}

func (f *Files) forget(why string) {
	blind := New()
	f.images, f.versions, f.aliases, f.blobs, f.files, f.blind = blind.images, blind.versions, blind.aliases, blind.blobs, 0, why
}

// Blind says why nothing is known; "" where something is.
func (f *Files) Blind() string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.blind
}

func (f *Files) of(image, of string) *version {
	k := name{image, of}
	v, ok := f.versions[k]
	if !ok {
		v = &version{name: k}
		f.versions[k] = v
	}
	return v
}

func (f *Files) version(state events.Version) {
	if state.State != events.StatePublished && state.State != events.StateWithdrawn {
		return // a name that a session holds, and perhaps lets go
	}
	v := f.of(state.Image, state.Version)
	v.withdrawn = state.Withdrawal
	if v.published || state.Manifest == nil { // a manifest never changes
		return
	}
	v.published, v.publishedAt = true, state.Manifest.PublishedAt
	for _, variant := range state.Manifest.Variants {
		for _, m := range variant.Formats {
			f.add(v, file{variant: unique.Make(variant.Name()), format: unique.Make(m.Format), mediaType: unique.Make(m.MediaType), digest: m.Digest, size: m.Size})
		}
	}
	for _, m := range state.Manifest.Attachments {
		f.add(v, file{variant: unique.Make(events.AttachmentVariant), format: unique.Make(m.Name), mediaType: unique.Make(m.MediaType), digest: m.Digest, size: m.Size, rank: 2})
	}
}

func (f *Files) derived(d events.Derived) {
	v := f.of(d.Image, d.Version)
	variant, format := unique.Make(d.Variant), unique.Make(d.Format)
	for i, have := range v.files {
		if have.rank == 1 && have.variant == variant && have.format == format {
			v.files = append(v.files[:i], v.files[i+1:]...)
			f.drop(v, have.digest)
			break
		}
	}
	if d.State == events.DerivedIsMade {
		f.add(v, file{variant: variant, format: format, mediaType: unique.Make(d.MediaType), digest: d.Digest, size: d.Size, madeAt: d.MadeAt, rank: 1})
	}
}

func (f *Files) add(v *version, added file) {
	f.files++
	for _, have := range v.files {
		if have.digest == added.digest {
			added.digest = have.digest // one text for both
			v.files = append(v.files, added)
			return
		}
	}
	v.files = append(v.files, added)
	f.blobs[added.digest] = append(f.blobs[added.digest], v)
}

// drop forgets that a version has a blob, unless another file of it still is that one.
func (f *Files) drop(v *version, digest events.Digest) {
	f.files--
	for _, have := range v.files {
		if have.digest == digest {
			return
		}
	}
	var others []*version
	for _, other := range f.blobs[digest] {
		if other != v {
			others = append(others, other)
		}
	}
	if f.blobs[digest] = others; len(others) == 0 {
		delete(f.blobs, digest)
	}
}

// Blob finds a blob that some published version names, of a public image or of one that mayRead allows, as catalog.Blob does;
// ok is false where none is known.
func (f *Files) Blob(digest events.Digest, mayRead func(image string) bool) (row catalog.BlobRow, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.whole {
		return row, false
	}
	best := int8(-1)
	for _, v := range f.blobs[digest] {
		visibility, described := f.images[v.image]
		if !v.published || v.withdrawn != nil || !described || visibility != events.Public && !mayRead(v.image) {
			continue
		}
		for _, have := range v.files {
			public := visibility == events.Public
			if have.digest != digest || ok && (row.Public && !public || row.Public == public && best <= have.rank) {
				continue
			}
			row, ok, best = catalog.BlobRow{Digest: digest, Size: have.size, MediaType: have.mediaType.Value(), Public: public}, true, have.rank
		}
	}
	return row, ok
}

// Format finds a file by its names, as catalog.Format does; who may see it is for the caller to ask, as it is there.
func (f *Files) Format(image, versionOrAlias, variant, format string) (row catalog.FormatRow, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if !f.whole {
		return row, false
	}
	visibility, described := f.images[image]
	v, byName := f.versions[name{image, versionOrAlias}]
	if byName = byName && v.published; !byName {
		v = f.versions[name{image, f.aliases[name{image, versionOrAlias}]}]
	}
	if v == nil || !v.published || !described {
		return row, false
	}
	for _, have := range v.files {
		if have.rank == 2 || have.variant.Value() != variant || have.format.Value() != format {
			continue
		}
		row = catalog.FormatRow{Image: image, Version: v.name.name, Variant: variant, Format: format, Digest: have.digest, Size: have.size, MediaType: have.mediaType.Value(),
			ByAlias: !byName, Derived: have.rank == 1, Visibility: visibility, PublishedAt: stored(v.publishedAt)}
		if row.Derived {
			row.PublishedAt = stored(have.madeAt)
		}
		if w := v.withdrawn; w != nil {
			row.Withdrawn = &events.Withdrawal{Reason: w.Reason, By: w.By, At: stored(w.At)}
		}
		return row, true
	}
	return row, false
}

// stored is a time as PostgreSQL's timestamptz keeps it: validators of downloads stay the same.
func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
