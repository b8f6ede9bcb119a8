package scrub_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/scrub"
	"github.com/imgsrv/imgsrv/internal/workstest"
)

func TestTheBackgroundFindsAndRepairs(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	data := []byte("mirrored")
	d := w.put(data)
	w.rot(d)
	s, _ := w.node(func(cfg *scrub.Config) {
		cfg.Rate, cfg.Sources = 1<<30, []scrub.Source{elsewhere{d: {data}}}
	})
	workstest.Run(t, s.Run)
	w.await(d, repaired)
	if current, err := w.Log.Blob(t.Context(), d); err != nil || current.State.Damage != nil || current.State.MediaType != "text/plain" {
		t.Errorf("%+v, %v", current.State, err)
	}
	if _, store := w.node(nil); !w.served(store, d) {
		t.Error("it isn't served")
	}
}

// Each blob is looked at once in a pass, also where a restart comes between.
func TestABackgroundPassGoesOnAfterARestart(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	var all []events.Digest
	for i := range 20 {
		all = append(all, w.put(fmt.Appendf(nil, "blob %d", i)))
	}
	slices.Sort(all)
	stateFile := filepath.Join(t.TempDir(), "scrub.json")
	w.rot(all[3])  // behind where the pass is
	w.rot(all[15]) // before it
	began := time.Now().Add(-time.Hour).UTC()
	if err := os.WriteFile(stateFile, fmt.Appendf(nil, `{"started_at": %q, "after": %q, "blobs": 10}`, began.Format(time.RFC3339), all[9].Hex()), 0o600); err != nil {
		t.Fatal(err)
	}
	config := func(cfg *scrub.Config) { cfg.Rate, cfg.StateFile, cfg.Every = 1<<30, stateFile, 2*time.Hour }
	s, _ := w.node(config)
	if at := s.Status().Position; at != all[9].Hex() {
		t.Errorf("it goes on at %q", at)
	}
	stop := workstest.Run(t, s.Run)
	w.await(all[15], damaged)
	waitFor(t, func() bool { return !s.Status().LastPass.IsZero() })
	stop()
	if w.damage(all[3]) != nil {
		t.Error("the pass has begun anew")
	}
	// The pass began an hour ago, so that the next is due in an hour: not now.
	s, _ = w.node(config)
	if s.Status().LastPass.IsZero() || s.Status().Position != "" {
		t.Errorf("after the pass: %+v", s.Status())
	}
	s, _ = w.node(func(cfg *scrub.Config) { config(cfg); cfg.Every = time.Minute })
	workstest.Run(t, s.Run)
	w.await(all[3], damaged)

	if err := os.WriteFile(stateFile+".torn", []byte(`{"after`), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, _ = w.node(func(cfg *scrub.Config) { cfg.StateFile = stateFile + ".torn" }); s.Status().Position != "" {
		t.Error("a torn state is taken up")
	}
}

// waitFor polls what makes no event.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it doesn't come")
		}
	}
}

func TestASuspectIsLookedAtAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorks(t)
	d, fine := w.put([]byte("suspect")), w.put([]byte("innocent"))
	w.rot(d)
	s, _ := w.node(nil) // no rate: nothing is read unasked
	workstest.Run(t, s.Run)
	for _, hexed := range []string{fine.Hex(), strings.Repeat("0", 64), "nonsense", d.Hex(), d.Hex()} {
		s.Suspect(hexed)
	}
	w.await(d, damaged)
	if w.damage(fine) != nil {
		t.Error("the innocent one is damaged")
	}
}
