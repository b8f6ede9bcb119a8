// Package past answers the catalog's questions as they would have been answered at an earlier moment: it folds
// the events up to it. It gives the same rows as store/catalog does from the tables of the catalog projection,
// and knows neither the log that the events come from nor the tables.
package past

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/store/catalog"
)

// Subjects are those that an image's past stands under; no image means all images.
func Subjects(images ...string) []string {
	return slices.Concat(events.SubjectsAbout(events.KindImage, images...), events.SubjectsAbout(events.KindVersion, images...),
		events.SubjectsAbout(events.KindAlias, images...), events.SubjectsAbout(events.KindDerived, images...))
}

// Catalog is the catalog at the event that was applied last. The zero value isn't ready: see [New].
type Catalog struct {
	images map[string]*image
}

type image struct {
	described            *events.Image // nil until it is
	createdAt, updatedAt time.Time
	versions             map[string]version
	aliases              map[string]catalog.Alias
	derived              map[events.Entity]events.Derived
}

type version struct {
	manifest  *events.Manifest
	sequence  events.Sequence
	withdrawn *events.Withdrawal
}

// New makes the catalog before the first event.
func New() *Catalog { return &Catalog{images: map[string]*image{}} }

// Apply moves the catalog on by one event. Facts that are no business of a catalog change nothing.
func (c *Catalog) Apply(event events.Event) error {
	switch fact := event.Fact.(type) {
	case events.ImagePolicySet: // what is to come, not what there is
	case events.ImageFact:
		i := c.image(fact.After().Name)
		if i.described == nil {
			i.createdAt = stored(event.Time)
		}
		state := fact.After()
		i.described, i.updatedAt = &state, stored(event.Time)
	case events.VersionPublished:
		if fact.Manifest == nil {
			return fmt.Errorf("event %d: version %s of image %s is published without a manifest", event.Sequence, fact.Version.Version, fact.Image)
		}
		c.image(fact.Image).versions[fact.Version.Version] = version{manifest: fact.Manifest, sequence: event.Sequence}
	case events.DerivedFact:
		d := fact.After()
		if d.State == events.DerivedIsRemoved {
			delete(c.image(d.Image).derived, d.Entity())
			return nil
		}
		c.image(d.Image).derived[d.Entity()] = d
	case events.VersionWithdrawn:
		c.withdraw(fact.Version)
	case events.VersionRestored:
		c.withdraw(fact.Version)
	case events.AliasFact:
		alias := fact.After()
		if alias.Version == "" {
			delete(c.image(alias.Image).aliases, alias.Alias)
			return nil
		}
		c.image(alias.Image).aliases[alias.Alias] = catalog.Alias{Name: alias.Alias, Version: alias.Version, MovedAt: stored(event.Time)}
	}
	return nil
}

// withdraw takes over what a version's state says of its withdrawal.
func (c *Catalog) withdraw(state events.Version) {
	versions := c.image(state.Image).versions
	v, ok := versions[state.Version]
	if !ok {
		return
	}
	v.withdrawn = nil
	if w := state.Withdrawal; w != nil {
		v.withdrawn = &events.Withdrawal{Reason: w.Reason, By: w.By, At: stored(w.At)}
	}
	versions[state.Version] = v
}

func (c *Catalog) image(name string) *image {
	i, ok := c.images[name]
	if !ok {
		i = &image{versions: map[string]version{}, aliases: map[string]catalog.Alias{}, derived: map[events.Entity]events.Derived{}}
		c.images[name] = i
	}
	return i
}

// Image is an image with a published version; ok is false where there was none.
func (c *Catalog) Image(name string) (_ catalog.Image, ok bool) {
	i, found := c.images[name]
	if !found || i.described == nil {
		return catalog.Image{}, false
	}
	published := i.newestFirst()
	if len(published) == 0 {
		return catalog.Image{}, false
	}
	d, latest := i.described, published[0]
	out := catalog.Image{Name: name, OS: d.OS, Release: d.Release, Description: d.Description, Visibility: d.Visibility, Flavours: d.Flavours,
		CreatedAt: i.createdAt, UpdatedAt: i.updatedAt, Versions: len(published), Latest: latest.manifest.Version, LatestAt: stored(latest.manifest.PublishedAt)}
	for _, alias := range slices.Sorted(maps.Keys(i.aliases)) {
		out.Aliases = append(out.Aliases, i.aliases[alias])
	}
	return out, true
}

// Images lists a page of images by name, after one; next is "" on the last page.
func (c *Catalog) Images(after string, limit int, wanted func(catalog.Image) bool) (page []catalog.Image, next string) {
	for _, name := range slices.Sorted(maps.Keys(c.images)) {
		image, ok := c.Image(name)
		if name <= after || !ok || !wanted(image) {
			continue
		}
		if len(page) == limit {
			return page, page[limit-1].Name
		}
		page = append(page, image)
	}
	return page, ""
}

// Version is the version that a name means: the one of that very name, else the one that the alias names. A
// withdrawn one is found too.
func (c *Catalog) Version(image, nameOrAlias string) (_ catalog.VersionRow, ok bool) {
	i, found := c.images[image]
	if !found || i.described == nil {
		return catalog.VersionRow{}, false
	}
	by := catalog.ByVersion
	v, found := i.versions[nameOrAlias]
	if !found {
		by = catalog.ByAlias
		if v, found = i.versions[i.aliases[nameOrAlias].Version]; !found {
			return catalog.VersionRow{}, false
		}
	}
	return i.row(v, by), true
}

// Versions lists a page of an image's versions, newest first; ok is false where the image wasn't there. The
// cursor is opaque; one that no page gave is catalog.ErrBadCursor.
func (c *Catalog) Versions(name, after string, limit int) (page []catalog.VersionRow, next string, ok bool, err error) {
	if _, ok := c.Image(name); !ok {
		return nil, "", false, nil
	}
	i := c.images[name]
	all := i.newestFirst()
	if after != "" {
		sequence, err := strconv.ParseUint(after, 10, 64)
		at := slices.IndexFunc(all, func(v version) bool { return v.sequence == events.Sequence(sequence) })
		if err != nil || at < 0 {
			return nil, "", false, fmt.Errorf("list versions of image %q: %w", name, catalog.ErrBadCursor)
		}
		all = all[at+1:]
	}
	if len(all) > limit {
		all = all[:limit]
		next = strconv.FormatUint(uint64(all[limit-1].sequence), 10)
	}
	for _, v := range all {
		page = append(page, i.row(v, catalog.ByVersion))
	}
	return page, next, true, nil
}

// newestFirst are the versions that aren't withdrawn.
func (i *image) newestFirst() []version {
	all := slices.SortedFunc(maps.Values(i.versions), func(a, b version) int {
		return cmp.Or(stored(b.manifest.PublishedAt).Compare(stored(a.manifest.PublishedAt)), cmp.Compare(b.sequence, a.sequence))
	})
	return slices.DeleteFunc(all, func(v version) bool { return v.withdrawn != nil })
}

func (i *image) row(v version, by catalog.ResolvedBy) catalog.VersionRow {
	row := catalog.VersionRow{Image: v.manifest.Image, Version: v.manifest.Version, Visibility: i.described.Visibility,
		PublishedAt: stored(v.manifest.PublishedAt), Sequence: v.sequence, Manifest: *v.manifest, ResolvedBy: by, Withdrawn: v.withdrawn}
	for _, alias := range slices.Sorted(maps.Keys(i.aliases)) {
		if i.aliases[alias].Version == row.Version {
			row.Aliases = append(row.Aliases, alias)
		}
	}
	for _, d := range i.derived {
		if d.Version == row.Version {
			row.Derived = append(row.Derived, d)
		}
	}
	slices.SortFunc(row.Derived, func(a, b events.Derived) int {
		return cmp.Or(cmp.Compare(a.Variant, b.Variant), cmp.Compare(a.Format, b.Format))
	})
	return row
}

// stored is a time as PostgreSQL's timestamptz keeps it.
func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }
