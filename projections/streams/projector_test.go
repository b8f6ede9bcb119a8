package streams_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	"github.com/imgsrv/imgsrv/projections"
	"github.com/imgsrv/imgsrv/projections/streams"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// The runner takes it.
var _ projections.Projector = (*streams.Projector)(nil)

// database is a migrated schema that the projector fills.
type database struct {
	pool   *pgxpool.Pool
	schema string
}

func newDatabase(t testing.TB) database {
	t.Helper()
	pool, err := postgres.Open(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	db := database{pool, streams.Name}
	if err := db.migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

func (db database) migrate(ctx context.Context) error {
	return migrations.Apply(ctx, db.pool, db.schema, streams.New().Migrations())
}

// apply does what the runner does with one batch.
func (db database) apply(ctx context.Context, batch ...events.Event) error {
	return pgx.BeginFunc(ctx, db.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL search_path = `+pgx.Identifier{db.schema}.Sanitize()); err != nil {
			return err
		}
		return streams.New().Apply(ctx, tx, batch)
	})
}

// stored makes the documents of what is in the tables.
func (db database) stored(t testing.TB) documentSet {
	t.Helper()
	tables, err := streams.ReadTables(t.Context(), db.pool, nil)
	if err != nil {
		t.Fatal(err)
	}
	return shownTo(t, tables, func(string) bool { return false })
}

// shownTo makes the documents of those who may read some private images.
func shownTo(t testing.TB, tables *streams.Tables, mayRead func(image string) bool) documentSet {
	t.Helper()
	shown, err := streams.NewView(mayRead).Show(tables, nil)
	if err != nil {
		t.Fatal(err)
	}
	set := documentSet{Index: shown.Index.Bytes(), Images: shown.Images.Bytes(), Changed: shown.Changed}
	set.Changed.At = set.Changed.At.UTC()
	return set
}

// dump is every row of the tables that are derived from events alone.
func (db database) dump(ctx context.Context) (string, error) {
	text := ""
	for _, table := range []string{"images", "versions", "products", "aliases", "deltas"} {
		query := fmt.Sprintf(`SELECT coalesce(string_agg(line, E'\n' ORDER BY line), '') FROM (SELECT row_to_json(r)::text AS line FROM %s AS r) AS lines`,
			pgx.Identifier{db.schema, table}.Sanitize())
		var rows string
		if err := db.pool.QueryRow(ctx, query).Scan(&rows); err != nil {
			return "", err
		}
		text += table + "\n" + rows + "\n"
	}
	return text, nil
}

func TestPublicationIsListedUnderItsNames(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	h.publish(events.Upload{Image: "deb", Version: "12.4.0", OS: "debian", Release: "bookworm", Aliases: []string{"latest"},
		Variants: []events.UploadVariant{variant(vm, "default", "old vm")}})
	h.tick()
	h.publish(events.Upload{Image: "deb", Version: "12.5.0", Aliases: []string{"latest", "stable"},
		Variants: []events.UploadVariant{variant(vm, "default", "vm"), variant(container, "default", "container"), variant(vm, "cloud", "cloud vm")}})
	if err := db.apply(t.Context(), h.events...); err != nil {
		t.Fatal(err)
	}
	set := db.stored(t)
	for _, dialect := range dialects() {
		listed := read(t, set, dialect)
		want := map[string][]string{
			digest("old vm"):    {"deb/12.4.0"},
			digest("vm"):        {"deb", "deb/12.5.0", "deb/latest", "deb/stable"},
			digest("container"): {"deb", "deb/12.5.0", "deb/latest", "deb/stable"},
			digest("cloud vm"):  {"deb/12.5.0/cloud", "deb/cloud", "deb/latest/cloud", "deb/stable/cloud"},
		}
		if diff := cmp.Diff(want, shortNames(listed)); diff != "" {
			t.Errorf("names for %s (-want +got):\n%s", dialect, diff)
		}
		for _, image := range listed {
			if image.Properties["os"] != "debian" || image.Properties["release"] != "bookworm" {
				t.Errorf("a publication that was silent about os and release forgot them: %v", image.Properties)
			}
		}
	}
	if set.Changed.Sequence != events.Sequence(len(h.events)) || !set.Changed.At.Equal(h.now) {
		t.Errorf("the documents changed at %+v, want the last of %d events", set.Changed, len(h.events))
	}
}

func TestAliasesMoveAndGo(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	h.publish(events.Upload{Image: "deb", Version: "1", Variants: []events.UploadVariant{variant(vm, "default", "one")}})
	h.publish(events.Upload{Image: "deb", Version: "2", Aliases: []string{"latest"}, Variants: []events.UploadVariant{variant(vm, "default", "two")}})
	steps := []struct {
		name string
		do   func()
		want map[string][]string
	}{
		{"published", func() {}, map[string][]string{digest("one"): {"deb/1"}, digest("two"): {"deb", "deb/2", "deb/latest"}}},
		{"rolled back", func() { h.moveAlias("deb", "latest", "1") }, map[string][]string{digest("one"): {"deb", "deb/1", "deb/latest"}, digest("two"): {"deb/2"}}},
		{"removed", func() { h.removeAlias("deb", "latest") }, map[string][]string{digest("one"): {"deb/1"}, digest("two"): {"deb/2"}}},
		{"made again", func() { h.moveAlias("deb", "latest", "2") }, map[string][]string{digest("one"): {"deb/1"}, digest("two"): {"deb", "deb/2", "deb/latest"}}},
	}
	applied := 0
	for _, step := range steps {
		h.tick()
		step.do()
		if err := db.apply(t.Context(), h.events[applied:]...); err != nil {
			t.Fatal(err)
		}
		applied = len(h.events)
		set := db.stored(t)
		if diff := cmp.Diff(step.want, shortNames(read(t, set, clientrules.LXD))); diff != "" {
			t.Errorf("%s: names (-want +got):\n%s", step.name, diff)
		}
		if set.Changed.Sequence != events.Sequence(applied) {
			t.Errorf("%s: the documents changed at %d, want %d", step.name, set.Changed.Sequence, applied)
		}
	}
}

func TestPrivateVersionIsNeverListedAndTakesItsImageAway(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	h.publish(events.Upload{Image: "deb", Version: "1", Variants: []events.UploadVariant{variant(vm, "default", "one")}})
	h.publish(events.Upload{Image: "deb", Version: "2", Visibility: events.Private, Variants: []events.UploadVariant{variant(vm, "default", "two")}})
	// One event at a time: between the version's fact and the image's nothing private may show.
	for _, e := range h.events {
		if err := db.apply(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		_, published := e.Fact.(events.VersionPublished)
		if !published {
			continue
		}
		for _, image := range read(t, db.stored(t), clientrules.Incus) {
			if image.Fingerprint == digest("two") {
				t.Fatalf("after event %d the private version is listed", e.Sequence)
			}
		}
	}
	if images := read(t, db.stored(t), clientrules.Incus); len(images) != 0 {
		t.Errorf("a private image is listed: %+v", images)
	}
	before := db.stored(t)
	h.tick()
	h.publish(events.Upload{Image: "deb", Version: "3", OS: "other", Visibility: events.Private, Variants: []events.UploadVariant{variant(vm, "default", "three")}})
	h.moveAlias("deb", "stable", "1")
	if err := db.apply(t.Context(), h.events...); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, db.stored(t)); diff != "" {
		t.Errorf("a publication of a private image shows:\n%s", diff)
	}
	h.publish(events.Upload{Image: "deb", Version: "4", Variants: []events.UploadVariant{variant(vm, "default", "four")}})
	if err := db.apply(t.Context(), h.events...); err != nil {
		t.Fatal(err)
	}
	if images := read(t, db.stored(t), clientrules.Incus); len(images) != 4 {
		t.Errorf("of a public image with four versions clients see %d", len(images))
	}
}

func TestVersionKeysOfOneImageDifferInTheOrderOfEvents(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	publish := func(image, version string) {
		h.publish(events.Upload{Image: image, Version: version, Variants: []events.UploadVariant{variant(vm, "default", image+version)}})
	}
	publish("deb", "b")
	publish("deb", "a")
	publish("other", "1")
	h.tick() // its second is taken by a
	publish("deb", "c")
	publish("deb", "d")
	if err := db.apply(t.Context(), h.events...); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"deb b": "20261124_120000", "deb a": "20261124_120001", "other 1": "20261124_120000",
		"deb c": "20261124_120002", "deb d": "20261124_120003"}
	got := map[string]string{}
	for _, image := range read(t, db.stored(t), clientrules.Incus) {
		got[strings.Join(strings.Split(image.Product, ":")[:2], " ")] = image.Serial
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("version keys (-want +got):\n%s", diff)
	}
}

func TestFactsThatNothingListsLeaveTheDocumentsAlone(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	unlisted := variant(vm, "default", "raw")
	unlisted.Files = []events.UploadFile{{Format: "disk.raw.zst", Size: 1, State: events.FilePresent, Digest: events.Digest("sha256:" + digest("raw"))}}
	h.publish(events.Upload{Image: "deb", Version: "1", Variants: []events.UploadVariant{variant(vm, "default", "one"), variant(container, "default", "c")}})
	if err := db.apply(t.Context(), h.events...); err != nil {
		t.Fatal(err)
	}
	before := db.stored(t)
	h.tick()
	h.publish(events.Upload{Image: "deb", Version: "2", Variants: []events.UploadVariant{unlisted}})
	if err := db.apply(t.Context(), h.events...); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, db.stored(t)); diff != "" {
		t.Errorf("a version that clients can't use changed the documents:\n%s", diff)
	}
}

func TestAWithdrawnVersionIsNotListedUntilItIsRestored(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	h.publish(events.Upload{Image: "deb", Version: "1", Aliases: []string{"latest"}, Variants: []events.UploadVariant{variant(vm, "default", "one"), variant(vm, "cloud", "same")}})
	h.tick()
	h.publish(events.Upload{Image: "deb", Version: "2", Variants: []events.UploadVariant{variant(vm, "default", "two"), variant(vm, "cloud", "same")}})
	if err := db.apply(t.Context(), h.events...); err != nil {
		t.Fatal(err)
	}
	before := shortNames(read(t, db.stored(t), clientrules.Incus))
	keys := func(set documentSet) map[string]string {
		out := map[string]string{}
		for _, image := range read(t, set, clientrules.Incus) {
			out[image.Fingerprint] = image.Serial
		}
		return out
	}
	keysBefore := keys(db.stored(t))
	for _, step := range []struct {
		version string
		want    map[string][]string
	}{
		{"2", map[string][]string{digest("one"): {"deb", "deb/1", "deb/latest"}, digest("same"): {"deb/1/cloud", "deb/cloud", "deb/latest/cloud"}}},
		{"2", before},
		{"1", map[string][]string{digest("two"): {"deb/2"}, digest("same"): {"deb/2/cloud"}}},
	} {
		applied := len(h.events)
		h.tick()
		h.withdrawOrRestore("deb", step.version)
		if err := db.apply(t.Context(), h.events[applied:]...); err != nil {
			t.Fatal(err)
		}
		set := db.stored(t)
		if diff := cmp.Diff(step.want, shortNames(read(t, set, clientrules.Incus))); diff != "" {
			t.Errorf("names (-want +got):\n%s", diff)
		}
		if set.Changed.Sequence != events.Sequence(len(h.events)) {
			t.Errorf("the documents changed at %d, want %d", set.Changed.Sequence, len(h.events))
		}
	}
	// Back under the key that it had: clients compare versions by it.
	h.withdrawOrRestore("deb", "1")
	h.moveAlias("deb", "latest", "1")
	if err := db.apply(t.Context(), h.events...); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(keysBefore, keys(db.stored(t))); diff != "" {
		t.Errorf("keys (-before +after):\n%s", diff)
	}
}

// A publication and a change of visibility know nothing of each other.
func TestAPublicationDoesNotUndoAChangeOfVisibility(t *testing.T) {
	t.Parallel()
	for _, to := range []events.Visibility{events.Private, events.Public} {
		db, h := newDatabase(t), newHistory(t)
		from := map[events.Visibility]events.Visibility{events.Private: events.Public, events.Public: events.Private}[to]
		h.publish(events.Upload{Image: "deb", Version: "1", Visibility: from, Variants: []events.UploadVariant{variant(vm, "default", "one")}})
		h.publish(events.Upload{Image: "deb", Version: "2", Visibility: from, Variants: []events.UploadVariant{variant(vm, "default", "two")}})
		for i, e := range h.events { // as if the visibility had been changed between decision and append
			if fact, ok := e.Fact.(events.VersionPublished); ok && fact.Version.Version == "2" {
				image := last[events.Image](h, events.ImageEntity("deb")).State
				image.Visibility = to
				change := events.Event{Meta: e.Meta, Sequence: e.Sequence, Fact: events.ImageVisibilityChanged{Image: image}}
				h.events = append(append(append([]events.Event(nil), h.events[:i]...), change), h.events[i:]...)
				break
			}
		}
		if err := db.apply(t.Context(), h.events...); err != nil {
			t.Fatal(err)
		}
		want := map[events.Visibility]int{events.Private: 0, events.Public: 2}[to]
		if images := read(t, db.stored(t), clientrules.Incus); len(images) != want {
			t.Errorf("of an image that has become %s %d versions are listed", to, len(images))
		}
	}
}

func TestFailedBatchLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	db, h := newDatabase(t), newHistory(t)
	h.publish(events.Upload{Image: "deb", Version: "1", Variants: []events.UploadVariant{variant(vm, "default", "one")}})
	// NUL is no character to PostgreSQL, and no rule lets it into a name.
	bad := events.Event{Sequence: 99, Fact: events.AliasMoved{Alias: events.Alias{Image: "deb\x00", Alias: "latest", Version: "1"}}}
	if err := db.apply(t.Context(), append(h.events, bad)...); err == nil {
		t.Fatal("a batch with a name that the database refuses was applied")
	}
	got, err := db.dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := "images\n\nversions\n\nproducts\n\naliases\n\ndeltas\n\n"; got != want {
		t.Errorf("rows are left:\n%s", got)
	}
}

// A rebuilt projection equals the live one, however the events were cut into batches.
func TestAnyBatchesGiveTheSameRows(t *testing.T) {
	t.Parallel()
	live := newDatabase(t)
	rebuilt := database{live.pool, "rebuilt"}
	for _, db := range []database{live, rebuilt} {
		if err := db.migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	rapid.Check(t, func(rt *rapid.T) {
		h := randomHistory(t, rt)
		for _, db := range []database{live, rebuilt} {
			tables := ""
			for _, table := range []string{"images", "versions", "products", "aliases", "deltas"} {
				tables += "DELETE FROM " + pgx.Identifier{db.schema, table}.Sanitize() + ";"
			}
			if _, err := db.pool.Exec(ctx, tables); err != nil {
				rt.Fatal(err)
			}
		}
		for _, e := range h.events {
			if err := live.apply(ctx, e); err != nil {
				rt.Fatal(err)
			}
		}
		for rest := h.events; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(rt, "batch")
			if err := rebuilt.apply(ctx, rest[:n]...); err != nil {
				rt.Fatal(err)
			}
			rest = rest[n:]
		}
		want, err := live.dump(ctx)
		if err != nil {
			rt.Fatal(err)
		}
		got, err := rebuilt.dump(ctx)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("rows differ (-one event at a time +batches):\n%s\nafter\n%s", diff, h)
		}
	})
}

func randomHistory(t testing.TB, rt *rapid.T) *history {
	h := newHistory(t)
	published := map[string][]string{}
	for i := range rapid.IntRange(1, 8).Draw(rt, "steps") {
		image := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "image")
		if rapid.Bool().Draw(rt, "time passes") {
			h.tick()
		}
		if len(published[image]) > 0 && rapid.IntRange(0, 3).Draw(rt, "withdraw") == 0 {
			h.withdrawOrRestore(image, rapid.SampledFrom(published[image]).Draw(rt, "version"))
			continue
		}
		if len(published[image]) > 0 && rapid.Bool().Draw(rt, "alias") {
			if last[events.Alias](h, events.AliasEntity(image, "latest")).State.Version != "" && rapid.Bool().Draw(rt, "remove") {
				h.removeAlias(image, "latest")
			} else {
				to := rapid.SampledFrom(published[image]).Draw(rt, "to")
				if last[events.Version](h, events.VersionEntity(image, to)).State.State == events.StatePublished {
					h.moveAlias(image, "latest", to)
				}
			}
			continue
		}
		if versions := published[image]; len(versions) > 1 && rapid.Bool().Draw(rt, "delta") {
			base, target := versions[0], versions[len(versions)-1]
			if last[events.Version](h, events.VersionEntity(image, target)).State.State != events.StatePublished {
				continue // withdrawn; the base may be
			}
			h.makeDelta(image, base, target, vm)
			if rapid.Bool().Draw(rt, "remove delta") {
				h.removeDelta(image, base, target, vm)
			}
			continue
		}
		version := fmt.Sprintf("v%d", i)
		published[image] = append(published[image], version)
		h.publish(events.Upload{Image: image, Version: version,
			Visibility: rapid.SampledFrom([]events.Visibility{events.Public, events.Public, events.Private}).Draw(rt, "visibility"),
			OS:         rapid.SampledFrom([]string{"", "debian"}).Draw(rt, "os"),
			Aliases:    rapid.SampledFrom([][]string{nil, {"latest"}}).Draw(rt, "aliases"),
			Variants: []events.UploadVariant{
				variant(vm, "default", rapid.SampledFrom([]string{"same", image + version}).Draw(rt, "bytes")),
				variant(container, "cloud", image+version+"container"),
			}})
	}
	return h
}
