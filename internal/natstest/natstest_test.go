package natstest_test

import (
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

func TestEachLogIsItsOwnStream(t *testing.T) {
	t.Parallel()
	one, two := natstest.Log(t), natstest.Log(t)
	if one.Identity() == two.Identity() {
		t.Fatalf("both logs are stream %s", one.Identity())
	}
	fact := events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: "latest", Version: "1"}}
	if _, err := one.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: fact}); err != nil {
		t.Fatal(err)
	}
	for want, log := range map[events.Sequence]*jetstream.Log{1: one, 0: two} {
		if head, err := log.Head(t.Context()); err != nil || head != want {
			t.Errorf("head is %d (%v), want %d", head, err, want)
		}
	}
}
