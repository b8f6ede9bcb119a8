package streams_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/incus/clientrules"
	"github.com/imgsrv/imgsrv/projections/streams"
)

// stream is facts as they come from the log, applied to a database, with the position.
type stream struct {
	database
	t    testing.TB
	last events.Sequence
}

func newStream(t testing.TB) *stream {
	t.Helper()
	s := &stream{newDatabase(t), t, 0}
	if _, err := s.pool.Exec(t.Context(), `INSERT INTO streams.position (sequence, stream, updated_at) VALUES (0, 's', now())`); err != nil {
		t.Fatal(err)
	}
	return s
}

// append applies facts in one batch and moves the position behind them.
func (s *stream) append(facts ...events.Fact) {
	s.t.Helper()
	var batch []events.Event
	for _, fact := range facts {
		s.last++
		batch = append(batch, events.Event{Meta: events.Meta{Time: noon(int(s.last))}, Sequence: s.last, Fact: fact})
	}
	err := pgx.BeginFunc(s.t.Context(), s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(s.t.Context(), `SET LOCAL search_path = streams`); err != nil {
			return err
		}
		if _, err := tx.Exec(s.t.Context(), `UPDATE position SET sequence = $1`, int64(s.last)); err != nil {
			return err
		}
		return streams.New().Apply(s.t.Context(), tx, batch)
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) read(earlier *streams.Tables) *streams.Tables {
	s.t.Helper()
	tables, err := streams.ReadTables(s.t.Context(), s.pool, earlier)
	if err != nil {
		s.t.Fatal(err)
	}
	return tables
}

// published is the fact of a version with one virtual machine; bytes are told apart by the text.
func published(image, version, bytes string, visibility events.Visibility, at int) events.VersionPublished {
	v := events.Variant{Architecture: "amd64", Type: vm, Flavour: "default"}
	return events.VersionPublished{Version: events.Version{Image: image, Version: version, State: events.StatePublished, Manifest: &events.Manifest{
		Image: image, Version: version, OS: "debian", Release: "bookworm", Visibility: visibility, PublishedAt: noon(at),
		Variants: []events.ManifestVariant{{Variant: v, Fingerprint: digest(bytes), Root: "disk.qcow2", Formats: []events.ManifestFormat{
			{Format: events.FormatMetadata, Digest: events.Digest("sha256:" + digest("metadata of "+bytes)), Size: 700},
			{Format: "disk.qcow2", Digest: events.Digest("sha256:" + digest("root of "+bytes)), Size: 196608},
		}}},
	}}}
}

func show(t testing.TB, view *streams.View, tables *streams.Tables, elsewhere *streams.Shown) *streams.Shown {
	t.Helper()
	shown, err := view.Show(tables, elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	return shown
}

// Documents that were made of those before are, byte for byte and piece for piece, what is made of all rows.
func TestAViewThatIsKeptShowsWhatAFreshOneShows(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			s := newStream(t)
			versions := map[string][]string{}
			publish := func(visibility events.Visibility) events.Fact {
				image := fmt.Sprintf("image-%d", random.IntN(8))
				version := fmt.Sprintf("%d.0", len(versions[image]))
				versions[image] = append(versions[image], version)
				bytes := image + version
				if random.IntN(5) == 0 {
					bytes = fmt.Sprint(random.IntN(9)) // the same as others'
				}
				return published(image, version, bytes, visibility, int(s.last)+1)
			}
			var facts []events.Fact
			for range 300 {
				facts = append(facts, publish([]events.Visibility{events.Public, events.Private}[random.IntN(2)]))
			}
			s.append(facts...)

			mine := func(image string) bool { return image == "image-1" || image == "image-2" }
			nobodys := func(string) bool { return false }
			everybody, reader := streams.NewView(nobodys), streams.NewView(mine)
			var tables *streams.Tables
			seen := map[string]string{} // documents by their tags
			for step := range 60 {
				image := fmt.Sprintf("image-%d", random.IntN(8))
				version := versions[image][random.IntN(len(versions[image]))]
				base := versions[image][random.IntN(len(versions[image]))]
				row := events.Image{Name: image, OS: []string{"debian", "other"}[random.IntN(2)], Visibility: []events.Visibility{events.Public, events.Private}[random.IntN(2)]}
				derived := events.Derived{Image: image, Version: version, Variant: "amd64.virtual-machine.default", Format: "disk.qcow2.from-" + base + ".vcdiff",
					Kind: events.DerivedDelta, State: events.DerivedIsMade, Digest: events.Digest("sha256:" + digest(base+version)), Size: int64(random.IntN(900)), BaseVersion: base,
					BaseDigest: events.Digest("sha256:" + digest("root of "+image+base)),
					From:       &events.DerivedSource{Format: "disk.qcow2", Digest: events.Digest("sha256:" + digest("root of "+image+version))}}
				switch random.IntN(9) {
				case 0, 1:
					s.append(publish(row.Visibility), publish(row.Visibility))
				case 2:
					s.append(events.AliasMoved{Alias: events.Alias{Image: image, Alias: []string{"latest", "stable", "1.0"}[random.IntN(3)], Version: version}})
				case 3:
					s.append(events.AliasRemoved{Alias: events.Alias{Image: image, Alias: "latest"}})
				case 4:
					s.append(events.ImageVisibilityChanged{Image: row})
				case 5:
					s.append(events.ImageDescribed{Image: row})
				case 6:
					s.append(events.VersionWithdrawn{Version: events.Version{Image: image, Version: version}})
				case 7:
					s.append(events.VersionRestored{Version: events.Version{Image: image, Version: version}})
				case 8:
					s.append(events.DerivedMade{Derived: derived})
				}
				if step == 30 { // as when the log was replaced: emptied, and further than before when it is looked at
					if _, err := s.pool.Exec(t.Context(), `TRUNCATE streams.images, streams.versions, streams.products, streams.aliases, streams.deltas`); err != nil {
						t.Fatal(err)
					}
					s.append(publish(events.Public))
				}
				if random.IntN(4) == 0 {
					continue // two changes at once
				}
				tables = s.read(tables)
				fresh := s.read(nil)
				all := show(t, everybody, tables, nil)
				for name, pair := range map[string][2]*streams.Shown{
					"everybody": {all, show(t, streams.NewView(nobodys), fresh, nil)},
					"a reader":  {show(t, reader, tables, all), show(t, streams.NewView(mine), fresh, nil)},
				} {
					kept, want := pair[0], pair[1]
					if diff := cmp.Diff(string(want.Images.Bytes()), string(kept.Images.Bytes())); diff != "" {
						t.Fatalf("step %d: images.json for %s (-fresh +kept):\n%s", step, name, diff)
					}
					if diff := cmp.Diff(string(want.Index.Bytes()), string(kept.Index.Bytes())); diff != "" || want.Changed.Sequence != kept.Changed.Sequence {
						t.Fatalf("step %d: index.json for %s, changed at %d, fresh %d (-fresh +kept):\n%s", step, name, kept.Changed.Sequence, want.Changed.Sequence, diff)
					}
					if kept.Images.Tag() != want.Images.Tag() || kept.Index.Tag() != want.Index.Tag() {
						t.Fatalf("step %d: the same documents for %s are cut otherwise", step, name)
					}
					if before, known := seen[kept.Images.Tag()]; known && before != string(kept.Images.Bytes()) {
						t.Fatalf("step %d: one tag for two documents", step)
					}
					seen[kept.Images.Tag()] = string(kept.Images.Bytes())
					set := documentSet{Index: kept.Index.Bytes(), Images: kept.Images.Bytes()}
					read(t, set, clientrules.Incus)
				}
			}
		})
	}
}

// One publication among many costs the pieces that it stands in.
func TestAPublicationLeavesMostPiecesAlone(t *testing.T) {
	t.Parallel()
	s := newStream(t)
	var facts []events.Fact
	for i := range 2000 {
		facts = append(facts, published(fmt.Sprintf("image-%d", i%20), fmt.Sprintf("%d.0", i), fmt.Sprint(i), events.Public, i))
	}
	s.append(facts...)
	view := streams.NewView(func(string) bool { return false })
	tables := s.read(nil)
	before := show(t, view, tables, nil)
	s.append(published("image-7", "new", "new", events.Public, 5000))
	tables = s.read(tables)
	after := show(t, view, tables, nil)
	if !strings.Contains(string(after.Images.Bytes()), "image-7:new:") || len(before.Images) < 15 {
		t.Fatalf("%d pieces, or the new version isn't in them", len(before.Images))
	}
	others := 0
	for _, piece := range slices.Concat(after.Images, after.Index) {
		if !slices.Contains(before.Images, piece) && !slices.Contains(before.Index, piece) {
			others++
		}
	}
	// In each document: what stands before and after the products, with the time, and the chunk that has the version in it; the chunk
	// is two if the version begins one.
	if others > 8 {
		t.Errorf("%d of %d pieces are others", others, len(after.Images)+len(after.Index))
	}
	// And a reader of private images takes all from what everybody sees, where there are none.
	reader := show(t, streams.NewView(func(string) bool { return true }), tables, after)
	own := reader.OwnBytes(after)
	if all := int(reader.Images.Len()); own > all/2 {
		t.Errorf("documents of %d bytes that are the same as others take %d bytes", all, own)
	}
}
