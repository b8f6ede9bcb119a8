package streams_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections/streams"
)

func private(names ...string) []streams.Image {
	images := public(names...)
	for i := range images {
		images[i].Visibility = events.Private
	}
	return images
}

func documentsFor(t testing.TB, products []streams.Product, aliases []streams.Alias, images []streams.Image, readable ...string) documentSet {
	t.Helper()
	set, err := allDocumentsFor(products, aliases, images, func(image string) bool { return slices.Contains(readable, image) })
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// Clients keep what they have by the bytes' tag, and two nodes of different releases serve the same remote. The files were
// written by the release before there were documents for readers of private images.
func TestPublicDocumentsAreByteForByteWhatTheyWere(t *testing.T) {
	t.Parallel()
	products := []streams.Product{
		product(1, "deb", "12.4.0", "amd64", vm, "default"), product(2, "deb", "12.5.0", "x86_64", vm, "default"),
		product(2, "deb", "12.5.0", "arm64", container, "cloud"), product(3, "secret", "1", "amd64", vm, "default"),
	}
	same := product(4, "other", "1", "amd64", vm, "default")
	same.Fingerprint = products[0].Fingerprint
	hidden := product(5, "secret", "2", "amd64", vm, "default")
	hidden.Fingerprint = products[1].Fingerprint
	products = append(products, same, hidden)
	aliases := []streams.Alias{alias("deb", "latest", "12.5.0"), alias("secret", "latest", "2"), alias("other", "stable", "1")}
	set := documents(t, products, aliases, append(public("deb", "other"), private("secret")...))
	for name, got := range map[string][]byte{"index.json": set.Index, "images.json": set.Images} {
		want, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestReadersSeeTheirPrivateImagesBesideThePublicOnes(t *testing.T) {
	t.Parallel()
	open, mine, other := product(1, "deb", "1", "amd64", vm, "default"), product(2, "team-a", "1", "amd64", vm, "default"), product(3, "team-b", "1", "amd64", vm, "default")
	openToo := product(4, "deb", "2", "amd64", vm, "default")
	mineFirst, openAfter := product(5, "team-a", "2", "amd64", vm, "default"), product(6, "deb", "3", "amd64", vm, "default")
	mineAfter := product(7, "team-a", "3", "amd64", vm, "default")
	openAfter.Fingerprint = mineFirst.Fingerprint
	mineAfter.Fingerprint = openToo.Fingerprint
	products := []streams.Product{open, mine, other, openToo, mineFirst, openAfter, mineAfter}
	aliases := []streams.Alias{alias("deb", "latest", "3"), alias("team-a", "latest", "3"), alias("team-b", "latest", "1")}
	images := append(public("deb"), private("team-a", "team-b")...)

	type names = map[string][]string
	everybody := names{open.Fingerprint: {"deb/1"}, openToo.Fingerprint: {"deb/2"}, openAfter.Fingerprint: {"deb", "deb/3", "deb/latest"}}
	for reader, test := range map[string]struct {
		readable []string
		want     names
	}{
		"everybody":                    {nil, everybody},
		"a reader of what isn't there": {[]string{"team-c", "deb"}, everybody},
		"a reader of team-b": {[]string{"team-b"}, names{open.Fingerprint: {"deb/1"}, openToo.Fingerprint: {"deb/2"},
			openAfter.Fingerprint: {"deb", "deb/3", "deb/latest"}, other.Fingerprint: {"team-b", "team-b/1", "team-b/latest"}}},
		"a reader of team-a": {[]string{"team-a"}, names{open.Fingerprint: {"deb/1"}, mine.Fingerprint: {"team-a/1"},
			openToo.Fingerprint:   {"deb/2", "team-a", "team-a/3", "team-a/latest"},
			mineFirst.Fingerprint: {"deb", "deb/3", "deb/latest", "team-a/2"}}},
	} {
		set := documentsFor(t, products, aliases, images, test.readable...)
		for _, dialect := range dialects() {
			if diff := cmp.Diff(test.want, shortNames(read(t, set, dialect))); diff != "" {
				t.Errorf("%s, names for %s (-want +got):\n%s", reader, dialect, diff)
			}
		}
		for _, image := range []string{"team-a", "team-b"} {
			if shows := strings.Contains(string(set.Images)+string(set.Index), image); shows != slices.Contains(test.readable, image) {
				t.Errorf("%s: a word of %s in the documents: %t", reader, image, shows)
			}
		}
		if reader == "everybody" {
			if diff := cmp.Diff(documents(t, products, aliases, images), set); diff != "" {
				t.Errorf("who may read nothing gets other documents than the public:\n%s", diff)
			}
		}
	}
}

// For its readers a private image is as if it were public, and for others as if there were none.
func TestAnyReaderSeesWhatWouldBePublished(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all := []string{"a", "b", "c", "d"}
		name := rapid.SampledFrom(all)
		readable := rapid.SliceOfDistinct(name, rapid.ID[string]).Draw(t, "readable")
		var products []streams.Product
		for i := range rapid.IntRange(0, 12).Draw(t, "products") {
			p := product(i+1, name.Draw(t, "image"), string(rune('1'+i)), "amd64", vm, "default")
			if rapid.Bool().Draw(t, "shared fingerprint") {
				p.Fingerprint = digest(rapid.SampledFrom([]string{"x", "y"}).Draw(t, "bytes"))
			}
			products = append(products, p)
		}
		var aliases []streams.Alias
		var images, opened []streams.Image
		var known []streams.Product
		for _, image := range all {
			aliases = append(aliases, alias(image, "latest", rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "latest")))
			i := public(image)[0]
			i.Visibility = rapid.SampledFrom([]events.Visibility{events.Public, events.Private}).Draw(t, "visibility")
			images = append(images, i)
			if i.Visibility == events.Private && !slices.Contains(readable, image) {
				continue
			}
			i.Visibility = events.Public
			opened = append(opened, i)
			for _, p := range products {
				if p.Image == image {
					known = append(known, p)
				}
			}
		}
		set, err := allDocumentsFor(products, aliases, images, func(image string) bool { return slices.Contains(readable, image) })
		if err != nil {
			t.Fatal(err)
		}
		want, err := allDocuments(known, aliases, opened)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want.Images), string(set.Images)); diff != "" || !slices.Equal(want.Index, set.Index) {
			t.Fatalf("a reader of %v of %v (-as if public +got):\n%s", readable, images, diff)
		}
		for _, dialect := range dialects() {
			read(t, set, dialect)
		}
	})
}

func TestTablesAreReadWithARevisionThatChangesWithThem(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	applied := 0
	state := func() *streams.Tables {
		t.Helper()
		if err := db.apply(t.Context(), h.events[applied:]...); err != nil {
			t.Fatal(err)
		}
		applied = len(h.events)
		tables, err := streams.ReadTables(t.Context(), db.pool, nil)
		if err != nil {
			t.Fatal(err)
		}
		alone, err := streams.ReadRevision(t.Context(), db.pool)
		if err != nil || alone != tables.Revision {
			t.Fatalf("revision %v, of the tables %v: %v", alone, tables.Revision, err)
		}
		return tables
	}
	names := func(tables *streams.Tables) map[string][]string {
		return shortNames(read(t, shownTo(t, tables, func(string) bool { return true }), clientrules.Incus))
	}
	if tables := state(); len(tables.Private()) != 0 || len(names(tables)) != 0 {
		t.Errorf("before anything: %+v", tables)
	}
	if _, err := db.pool.Exec(t.Context(), `INSERT INTO streams.position (sequence, stream, updated_at) VALUES (0, 's', now())`); err != nil {
		t.Fatal(err)
	}
	seen := map[streams.Revision]string{state().Revision: "nothing"}
	h.publish(events.Upload{Image: "secret", Version: "1", Visibility: events.Private, Variants: []events.UploadVariant{variant(vm, "default", "one")}})
	tables := state()
	if of, twice := seen[tables.Revision]; twice || len(names(tables)) != 1 || !slices.Equal(tables.Private(), []string{"secret"}) {
		t.Errorf("a private version: the revision of %s, %v", of, names(tables))
	}
	seen[tables.Revision] = "a private version"
	h.moveAlias("secret", "stable", "1")
	tables = state()
	if of, twice := seen[tables.Revision]; twice || !slices.Contains(names(tables)[digest("one")], "secret/stable") {
		t.Errorf("an alias: the revision of %s, %v", of, names(tables))
	}
	seen[tables.Revision] = "an alias"
	// What bears on nothing moves the position alone.
	if _, err := db.pool.Exec(t.Context(), `UPDATE streams.position SET sequence = sequence + 1, updated_at = now()`); err != nil {
		t.Fatal(err)
	}
	if got := state().Revision; got != tables.Revision {
		t.Error("a moved position is another revision")
	}
	// A rebuild: other tables of the same content in the place of these.
	if err := migrations.Apply(t.Context(), db.pool, "streams_next", streams.New().Migrations()); err != nil {
		t.Fatal(err)
	}
	err := pgx.BeginFunc(t.Context(), db.pool, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), `
INSERT INTO streams_next.position SELECT * FROM streams.position;
ALTER SCHEMA streams RENAME TO streams_old;
ALTER SCHEMA streams_next RENAME TO streams`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	rebuilt := state()
	if of, twice := seen[rebuilt.Revision]; twice || len(names(rebuilt)) != 0 {
		t.Errorf("tables of a rebuild have the revision of %s, and %v", of, names(rebuilt))
	}
}

// The live way and the rebuild's both tell readers.
func TestLoadingChangesTheRevisionToo(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	if _, err := db.pool.Exec(t.Context(), `INSERT INTO streams.position (sequence, stream, updated_at) VALUES (0, 's', now())`); err != nil {
		t.Fatal(err)
	}
	before, err := streams.ReadRevision(t.Context(), db.pool)
	if err != nil {
		t.Fatal(err)
	}
	h.publish(events.Upload{Image: "deb", Version: "1", Variants: []events.UploadVariant{variant(vm, "default", "one")}})
	err = pgx.BeginFunc(t.Context(), db.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(t.Context(), `SET LOCAL search_path = streams`); err != nil {
			return err
		}
		return streams.New().Load(t.Context(), tx, h.events)
	})
	if err != nil {
		t.Fatal(err)
	}
	if after, err := streams.ReadRevision(t.Context(), db.pool); err != nil || after == before {
		t.Errorf("revision %v after %v: %v", after, before, err)
	}
}
