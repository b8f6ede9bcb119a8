package known_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	catalogprojection "github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/store/catalog"
	"github.com/imgsrv/imgsrv/store/known"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// What is known in memory after a random history is what the tables say, for whoever asks.
func TestWhatIsKnownIsWhatTheTablesSay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool, err := postgres.Open(ctx, pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	projector := catalogprojection.New()
	if err := migrations.Apply(ctx, pool, projector.Name(), projector.Migrations()); err != nil {
		t.Fatal(err)
	}
	tables := catalog.New(pool, nil)
	var found, foundPrivate, foundDerived, foundWithdrawn, byAlias int
	rapid.Check(t, func(t *rapid.T) {
		if _, err := pool.Exec(ctx, `TRUNCATE catalog.images, catalog.versions, catalog.formats, catalog.attachments, catalog.aliases, catalog.derived CASCADE`); err != nil {
			t.Fatalf("%v", err)
		}
		drawn := eventstest.Draw(t, 40)
		drawn.Publish(t, eventstest.Session("more", "1", "latest"))
		for _, v := range drawn.Version("more", "1").State.Manifest.Variants {
			if err := errors.Join(drawn.Derive(t, "more", "1", v.Name(), "disk.raw.zst", false), drawn.MakeDerived(t, "more", "1", v.Name(), "disk.raw.zst")); err != nil {
				t.Fatalf("derive: %v", err)
			}
		}
		history := drawn.Events
		files := known.New()
		for _, event := range history {
			files.Apply(event)
		}
		files.Whole()
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL search_path = catalog`); err != nil {
				return err
			}
			return projector.Apply(ctx, tx, history)
		})
		if err != nil {
			t.Fatalf("apply the history to the tables: %v", err)
		}
		for _, digest := range digests(history) {
			for _, reader := range [][]string{nil, {"debian"}, {"*"}} {
				readable := catalog.ReadableBy([][]string{reader})
				want, err := tables.Blob(ctx, digest, readable)
				got, ok := files.Blob(digest, func(image string) bool { return slices.Contains(reader, "*") || slices.Contains(reader, image) })
				if diff := cmp.Diff(want, got); ok != (err == nil) || err != nil && !errors.Is(err, catalog.ErrNotFound) || diff != "" {
					t.Fatalf("blob %s for a reader of %v: known %v, tables %v (-tables +known):\n%s", digest, reader, ok, err, diff)
				}
				if ok {
					found++
				}
				if ok && !got.Public {
					foundPrivate++
				}
			}
		}
		for _, key := range formats(history) {
			want, err := tables.Format(ctx, key[0], key[1], key[2], key[3])
			got, ok := files.Format(key[0], key[1], key[2], key[3])
			if diff := cmp.Diff(want, got); ok != (err == nil) || err != nil && !errors.Is(err, catalog.ErrNotFound) || diff != "" {
				t.Fatalf("format %v: known %v, tables %v (-tables +known):\n%s", key, ok, err, diff)
			}
			if got.Derived {
				foundDerived++
			}
			if got.Withdrawn != nil {
				foundWithdrawn++
			}
			if got.ByAlias {
				byAlias++
			}
		}
	})
	t.Logf("blobs %d, of them private %d; derived files %d, withdrawn %d, by alias %d", found, foundPrivate, foundDerived, foundWithdrawn, byAlias)
	if found == 0 || foundPrivate == 0 || foundDerived == 0 || foundWithdrawn == 0 || byAlias == 0 {
		t.Error("the histories miss a case")
	}
}

// digests are all that a history names for some file.
func digests(history []events.Event) []events.Digest {
	seen := map[events.Digest]bool{}
	var all []events.Digest
	add := func(d events.Digest) {
		if d != "" && !seen[d] {
			seen[d] = true
			all = append(all, d)
		}
	}
	for _, event := range history {
		switch fact := event.Fact.(type) {
		case events.VersionPublished:
			for _, v := range fact.Manifest.Variants {
				for _, f := range v.Formats {
					add(f.Digest)
				}
			}
			for _, a := range fact.Manifest.Attachments {
				add(a.Digest)
			}
		case events.DerivedFact:
			add(fact.After().Digest)
		}
	}
	return all
}

// formats are image, version or alias, variant and format of all that a history names.
func formats(history []events.Event) [][4]string {
	seen := map[[4]string]bool{}
	var all [][4]string
	add := func(image, version, variant, format string) {
		for _, name := range []string{version, "latest", "stable", "edge"} {
			if key := [4]string{image, name, variant, format}; !seen[key] {
				seen[key] = true
				all = append(all, key)
			}
		}
	}
	for _, event := range history {
		switch fact := event.Fact.(type) {
		case events.VersionPublished:
			for _, v := range fact.Manifest.Variants {
				for _, f := range v.Formats {
					add(fact.Image, fact.Version.Version, v.Name(), f.Format)
				}
			}
			for _, a := range fact.Manifest.Attachments {
				add(fact.Image, fact.Version.Version, events.AttachmentVariant, a.Name)
			}
		case events.DerivedFact:
			d := fact.After()
			add(d.Image, d.Version, d.Variant, d.Format)
		}
	}
	return all
}

// What a newer release has said may be that a file is withdrawn: then nothing is known any more.
func TestAnEventThatCannotBeReadEndsWhatIsKnown(t *testing.T) {
	t.Parallel()
	files := known.New()
	history := eventstest.New()
	history.Publish(t, eventstest.Session("debian", "1", "latest"))
	for _, event := range history.Events {
		files.Apply(event)
	}
	digest := digests(history.Events)[0]
	nobody := func(string) bool { return false }
	// An event that is yet to come may make the image private.
	variant := history.Version("debian", "1").State.Manifest.Variants[0]
	if _, ok := files.Blob(digest, nobody); ok {
		t.Error("a blob is known before all that has happened is")
	}
	if _, ok := files.Format("debian", "1", variant.Name(), variant.Formats[0].Format); ok {
		t.Error("a file is known before all that has happened is")
	}
	files.Whole()
	if _, ok := files.Blob(digest, nobody); !ok || files.Blind() != "" {
		t.Fatalf("a published blob is not known (%q)", files.Blind())
	}
	files.Apply(events.Event{Meta: events.Meta{}, Sequence: history.Head() + 1})
	if _, ok := files.Blob(digest, nobody); ok || files.Blind() == "" {
		t.Errorf("after an event that can't be read a blob is known still (%q)", files.Blind())
	}
}
