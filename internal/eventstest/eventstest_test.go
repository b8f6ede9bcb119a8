package eventstest_test

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

func TestALogGivesAHistoryTheSameSequences(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	h.Publish(t, eventstest.Session("debian", "1", "latest"))
	h.Publish(t, eventstest.Session("debian", "2", "latest"))
	if err := h.RemoveAlias(t, "debian", "latest"); err != nil {
		t.Fatal(err)
	}
	log := natstest.Log(t)
	for _, batch := range h.Batches {
		if _, err := log.Append(t.Context(), jetstream.Cause{}, batch...); err != nil {
			t.Fatal(err)
		}
	}
	head, err := log.Head(t.Context())
	if err != nil || head != h.Head() {
		t.Fatalf("head is %d (%v), want %d", head, err, h.Head())
	}
	version, err := log.Version(t.Context(), "debian", "2")
	if err != nil || version.Sequence != h.Version("debian", "2").Sequence || version.State.State != events.StatePublished {
		t.Fatalf("version is %+v (%v)", version, err)
	}
}

// A generator that makes only trivial histories would let every property pass.
func TestRandomHistoriesMeetMostFacts(t *testing.T) {
	t.Parallel()
	seen, missing := map[events.Type]bool{}, []events.Type(nil)
	for range 20 { // some facts take three others, in this order; a hundred histories may not have one
		rapid.Check(t, func(t *rapid.T) {
			for _, event := range eventstest.Draw(t, 120).Events {
				seen[event.Type] = true
			}
		})
		missing = slices.DeleteFunc(events.Types(), func(typ events.Type) bool {
			// Old versions are in stored histories only.
			fact, err := events.Decode(typ, []byte("{}"))
			return seen[typ] || err != nil || fact.Type() != typ
		})
		if len(missing) == 0 {
			return
		}
	}
	t.Errorf("no history had %v", missing)
}

// Whatever order the decisions come in, an alias names a version that is published.
func TestNoAliasEverNamesAWithdrawnVersion(t *testing.T) {
	t.Parallel()
	withAliases := false
	rapid.Check(t, func(t *rapid.T) {
		h := eventstest.Draw(t, 80)
		states, aliases := map[string]events.VersionState{}, map[string]events.Alias{}
		for from, batch := 0, 0; batch < len(h.Batches); batch++ {
			to := from + len(h.Batches[batch])
			for _, event := range h.Events[from:to] {
				switch fact := event.Fact.(type) {
				case events.VersionFact:
					states[fact.Entity().ID] = fact.After().State
				case events.AliasFact:
					aliases[fact.Entity().ID] = fact.After()
				}
				if _, withdrawn := event.Fact.(events.VersionWithdrawn); withdrawn {
					withAliases = withAliases || to-from > 1
				}
			}
			from = to
			for id, alias := range aliases { // within a batch it may
				if state := states[alias.Image+"/"+alias.Version]; alias.Version != "" && state != events.StatePublished {
					t.Fatalf("after event %d alias %s names %s, which is %s", to, id, alias.Version, state)
				}
			}
		}
	})
	if !withAliases {
		t.Error("no withdrawal took aliases along")
	}
}
