package scrub

import (
	"context"
	"slices"

	"github.com/imgsrv/imgsrv/events"
)

// maxNames is how many names of one blob are told.
const maxNames = 10

// reference is what names a blob, and what that says of it.
type reference struct {
	size      int64 // bytes
	mediaType string
	names     []string // image/version/variant/format, maxNames at most
	more      int      // names that aren't told
	made      []madeFile
}

// madeFile is where the log keeps the bytes of metadata that imgsrv has made.
type madeFile struct{ upload, variant string }

func (r *reference) name(name string) {
	switch {
	case slices.Contains(r.names, name):
	case len(r.names) == maxNames:
		r.more++
	default:
		r.names = append(r.names, name)
	}
}

// references reads from the log which blobs the versions that were ever published, and the files derived from them, name, as far
// as wanted says yes to the digest. versions is how many of them there are.
func (s *Scrubber) references(ctx context.Context, wanted func(events.Digest) bool) (found map[events.Digest]*reference, versions int, err error) {
	head, err := s.Log.Head(ctx)
	if err != nil {
		return nil, 0, err
	}
	found = map[events.Digest]*reference{}
	refer := func(digest events.Digest, size int64, mediaType, name string) *reference {
		if !wanted(digest) {
			return &reference{}
		}
		r := found[digest]
		if r == nil {
			r = &reference{size: size, mediaType: mediaType}
			found[digest] = r
		}
		r.name(name)
		return r
	}
	published := map[events.Entity]bool{}
	derived := map[events.Entity]events.Derived{}
	err = s.Log.Read(ctx, head, slices.Concat(events.SubjectsAbout(events.KindVersion), events.SubjectsAbout(events.KindDerived)), func(event events.Event) error {
		switch fact := event.Fact.(type) {
		case events.VersionFact:
			v := fact.After()
			if v.Manifest == nil || published[fact.Entity()] {
				return nil // a manifest never changes
			}
			published[fact.Entity()] = true
			for _, variant := range v.Manifest.Variants {
				for _, f := range variant.Formats {
					r := refer(f.Digest, f.Size, f.MediaType, v.Image+"/"+v.Version+"/"+variant.Name()+"/"+f.Format)
					if f.Origin == events.OriginMade {
						r.made = append(r.made, madeFile{v.Manifest.UploadID, variant.Name()})
					}
				}
			}
			for _, a := range v.Manifest.Attachments {
				refer(a.Digest, a.Size, a.MediaType, v.Image+"/"+v.Version+"/"+events.AttachmentVariant+"/"+a.Name)
			}
		case events.DerivedFact:
			if d := fact.After(); d.State == events.DerivedIsMade && wanted(d.Digest) {
				derived[fact.Entity()] = d
			} else {
				delete(derived, fact.Entity())
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	for _, d := range derived {
		refer(d.Digest, d.Size, d.MediaType, d.Image+"/"+d.Version+"/"+d.Variant+"/"+d.Format)
	}
	return found, len(published), nil
}

// namedBy are the names of a blob, for people; nothing where the log doesn't answer.
func (s *Scrubber) namedBy(ctx context.Context, digest events.Digest) []string {
	found, _, err := s.references(ctx, func(d events.Digest) bool { return d == digest })
	if err != nil || found[digest] == nil {
		return nil
	}
	return found[digest].names
}
