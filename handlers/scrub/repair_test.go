package scrub_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/store/blob"
)

func TestAnUploadOfTheSameBytesRepairs(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	data := []byte("uploaded twice")
	d := w.put(data)
	for name, spoil := range map[string]func(){
		"flipped": func() { w.rot(d) },
		"gone": func() {
			if err := os.Remove(w.Path(d)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		spoil()
		s, _ := w.node(nil)
		if r := w.fsck(s, scrub.Options{}); r.Found != 1 {
			t.Fatalf("%s: %+v", name, r)
		}
		_, store := w.node(nil)
		if err := w.promote(store, data); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, store = w.node(nil)
		if w.damage(d) != nil || !w.served(store, d) {
			t.Errorf("%s: it isn't repaired", name)
		}
	}
	// Nobody has noticed that the file has lost a byte: whoever brings the bytes does.
	if err := os.Truncate(w.Path(d), 3); err != nil {
		t.Fatal(err)
	}
	_, store := w.node(nil)
	if err := w.promote(store, data); err != nil {
		t.Fatal(err)
	}
	if _, store = w.node(nil); !w.served(store, d) {
		t.Error("it isn't repaired by who found it")
	}
	want := []events.Type{promoted, damaged, repaired, damaged, repaired, damaged, repaired}
	if diff := cmp.Diff(want, w.facts(d)); diff != "" {
		t.Error(diff)
	}
}

// elsewhere is a source that has some bytes under each digest, in the order in which it gives them.
type elsewhere map[events.Digest][][]byte

func (e elsewhere) Fetch(ctx context.Context, wanted []events.Blob, take scrub.Take) error {
	for _, b := range wanted {
		for i, data := range e[b.Digest] {
			if take(ctx, b, fmt.Sprint("server ", i), bytes.NewReader(data)) == nil {
				break
			}
		}
	}
	return nil
}

func TestRepairTakesOnlyTheRightBytes(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	data := []byte("mirrored")
	mirrored, lost := w.put(data), w.put([]byte("lost"))
	metadata := []byte("metadata that imgsrv made")
	made, upload := w.put(metadata), uuid.NewString()
	w.Append(events.UploadInitiated{Upload: events.Upload{ID: upload, Image: "image", Version: "1", Variants: []events.UploadVariant{{
		Variant:  events.Variant{Architecture: "amd64", Type: events.Container, Flavour: "default"},
		Metadata: &events.MadeFile{Format: events.FormatMetadata, Digest: made, Data: metadata}}}}})
	w.publish("1", upload, events.ManifestFormat{Format: events.FormatMetadata, Digest: made, Size: int64(len(metadata)), Origin: events.OriginMade},
		events.ManifestFormat{Format: "rootfs.squashfs", Digest: mirrored, Size: int64(len(data))})
	for _, d := range []events.Digest{mirrored, lost, made} {
		w.rot(d)
	}
	s, store := w.node(func(cfg *scrub.Config) {
		cfg.Sources = []scrub.Source{elsewhere{mirrored: {[]byte("mirroreD"), []byte("mirrored and more"), []byte("mir"), data}, lost: {[]byte("lust")}}}
	})
	report := w.fsck(s, scrub.Options{Repair: true})
	from := map[events.Digest]string{}
	for _, f := range report.Repaired {
		from[f.Digest] = f.From
	}
	if diff := cmp.Diff(map[events.Digest]string{mirrored: "server 3", made: "the event log"}, from); diff != "" {
		t.Error(diff)
	}
	if len(report.Damaged) != 1 || report.Damaged[0].Digest != lost {
		t.Errorf("still damaged: %+v", report.Damaged)
	}
	if !w.served(store, mirrored) || !w.served(store, made) || w.served(store, lost) {
		t.Error("served is not what is whole")
	}
	if left, err := filepath.Glob(filepath.Join(w.Root, "cas", "tmp", "*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Whatever meets: no wrong bytes are served once damage is known, and what the log says is so.
func TestUploadsAndChecksOfOneBlobAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	a, storeA := w.node(nil)
	_, storeB := w.node(nil)
	for i := range 40 {
		data := fmt.Appendf(nil, "blob %d", i)
		d := w.put(data)
		w.rot(d)
		var at sync.WaitGroup
		at.Go(func() {
			if _, err := a.Fsck(t.Context(), scrub.Options{}, func(int64, int64) {}); err != nil {
				t.Error(err)
			}
		})
		for _, store := range []*blob.Store{storeA, storeB} {
			at.Go(func() {
				if err := w.promote(store, data); err != nil {
					t.Error(err)
				}
			})
		}
		at.Wait()
		fresh, store := w.node(nil)
		if w.damage(d) == nil {
			// The uploads may have come before the finding, and have met a file that looked fine.
			w.fsck(fresh, scrub.Options{})
		}
		if known := w.damage(d) != nil; known == w.served(store, d) {
			t.Errorf("round %d: damaged is %t, and so is served", i, known)
		}
		if err := w.promote(store, data); err != nil { // leaves nothing for the next round to find
			t.Fatal(err)
		}
	}
}
