package past_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/pgtest"
	"github.com/imgsrv/imgsrv/migrations"
	catalogprojection "github.com/imgsrv/imgsrv/projections/catalog"
	"github.com/imgsrv/imgsrv/store/catalog"
	"github.com/imgsrv/imgsrv/store/past"
	"github.com/imgsrv/imgsrv/store/postgres"
)

// answers are all that a catalog says.
type answers struct {
	Images   []catalog.Image
	Versions map[string][]catalog.VersionRow
	ByName   map[string]catalog.VersionRow
}

var names = []string{"1", "2", "12.5.0", "3~rc1+b", "latest", "stable", "edge"}

// At every event of a random history the fold says what the tables said at that position.
func TestThePastIsWhatTheTablesWere(t *testing.T) {
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
	seenMany := false
	rapid.Check(t, func(t *rapid.T) {
		if _, err := pool.Exec(ctx, `TRUNCATE catalog.images, catalog.versions, catalog.formats, catalog.attachments, catalog.aliases, catalog.derived CASCADE`); err != nil {
			t.Fatalf("%v", err)
		}
		folded := past.New()
		for _, event := range eventstest.Draw(t, 25).Events {
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, `SET LOCAL search_path = catalog`); err != nil {
					return err
				}
				return projector.Apply(ctx, tx, []events.Event{event})
			})
			if err != nil {
				t.Fatalf("apply event %d to the tables: %v", event.Sequence, err)
			}
			if err := folded.Apply(event); err != nil {
				t.Fatalf("fold event %d: %v", event.Sequence, err)
			}
			switch event.Fact.(type) {
			case events.ImageFact, events.VersionFact, events.AliasFact, events.DerivedFact:
			default:
				continue // changes neither; asking the tables takes its time
			}
			live, then := ofTables(ctx, t, tables), ofPast(t, folded)
			if diff := cmp.Diff(live, then, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("after event %d, %s (-tables +past):\n%s", event.Sequence, event.Type, diff)
			}
			seenMany = seenMany || len(live.Images) > 1
		}
	})
	if !seenMany {
		t.Error("no history came to two images")
	}
}

func ofTables(ctx context.Context, t *rapid.T, c *catalog.Catalog) answers {
	images, _, err := c.Images(ctx, catalog.ImageFilter{Readable: catalog.Everything})
	if err != nil {
		t.Fatalf("%v", err)
	}
	out := answers{Images: images, Versions: map[string][]catalog.VersionRow{}, ByName: map[string]catalog.VersionRow{}}
	for _, image := range images {
		after := ""
		for { // in pages of one
			page, next, err := c.Versions(ctx, image.Name, after, 1)
			if err != nil {
				t.Fatalf("%v", err)
			}
			out.Versions[image.Name] = append(out.Versions[image.Name], page...)
			if after = next; next == "" {
				break
			}
		}
		for _, name := range names {
			if row, err := c.Version(ctx, image.Name, name); err == nil {
				out.ByName[image.Name+"/"+name] = row
			}
		}
	}
	return out
}

func ofPast(t *rapid.T, c *past.Catalog) answers {
	images, _ := c.Images("", 1000, func(catalog.Image) bool { return true })
	out := answers{Images: images, Versions: map[string][]catalog.VersionRow{}, ByName: map[string]catalog.VersionRow{}}
	for _, image := range images {
		after := ""
		for {
			page, next, ok, err := c.Versions(image.Name, after, 1)
			if err != nil || !ok {
				t.Fatalf("versions of %s after %q: %v, %v", image.Name, after, ok, err)
			}
			out.Versions[image.Name] = append(out.Versions[image.Name], page...)
			if after = next; next == "" {
				break
			}
		}
		for _, name := range names {
			if row, ok := c.Version(image.Name, name); ok {
				out.ByName[image.Name+"/"+name] = row
			}
		}
	}
	return out
}

func TestPagesOfTheImagesOfThePast(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	for _, name := range []string{"c", "a", "b"} {
		h.Publish(t, eventstest.Session(name, "1"))
	}
	c := past.New()
	for _, event := range h.Events {
		if err := c.Apply(event); err != nil {
			t.Fatal(err)
		}
	}
	all := func(catalog.Image) bool { return true }
	first, next := c.Images("", 2, all)
	rest, end := c.Images(next, 2, all)
	if len(first) != 2 || first[0].Name != "a" || next != "b" || len(rest) != 1 || rest[0].Name != "c" || end != "" {
		t.Errorf("pages %v then %v, cursors %q and %q", first, rest, next, end)
	}
	if page, next := c.Images("", 2, func(i catalog.Image) bool { return i.Name == "c" }); len(page) != 1 || next != "" {
		t.Errorf("one image is wanted, got %v and cursor %q", page, next)
	}
}
