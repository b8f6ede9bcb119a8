package events

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSkippingAnEvent(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 9, 30, 0, 0, time.UTC)
	seven := SkippedEvent{Sequence: 7, EventType: "imgsrv.alias.moved.v1", Reason: "broken", By: "admin", At: at}
	nine := SkippedEvent{Sequence: 9, EventType: "imgsrv.alias.moved.v1", Reason: "broken too", By: "admin", At: at}
	listed := Current[Projection]{State: Projection{Name: "catalog", Skipped: []SkippedEvent{seven}}, Sequence: 8}
	spaced := nine
	spaced.Reason = "  broken too\n"
	blank := nine
	blank.Reason = " \t"
	beyond := nine
	beyond.Sequence = 11
	none := nine
	none.Sequence = 0
	for _, c := range []struct {
		name    string
		current Current[Projection]
		skip    SkippedEvent
		want    []SkippedEvent
		code    Code
	}{
		{"the first of a projection", Current[Projection]{}, seven, []SkippedEvent{seven}, ""},
		{"one more keeps those before", listed, spaced, []SkippedEvent{seven, nine}, ""},
		{"the same again", listed, seven, nil, CodeSkippedAlready},
		{"without a reason", listed, blank, nil, CodeInvalid},
		{"beyond the log's head", listed, beyond, nil, CodeNotFound},
		{"before the first event", listed, none, nil, CodeNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			changes, err := SkipEvent(c.current, "catalog", c.skip, 10)
			if c.code != "" {
				var refusal *Error
				if !errors.As(err, &refusal) || refusal.Code != c.code {
					t.Fatalf("error %v, want code %s", err, c.code)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := Fold(c.current.State, changes[0].Fact)
			if diff := cmp.Diff(Projection{Name: "catalog", Skipped: c.want}, got); diff != "" {
				t.Errorf("projection (-want +got):\n%s", diff)
			}
			if changes[0].Expect != c.current.Sequence {
				t.Errorf("expects %d, want %d", changes[0].Expect, c.current.Sequence)
			}
			if !got.Skips(c.skip.Sequence) || got.Skips(8) {
				t.Error("the list doesn't say what is skipped")
			}
		})
	}
	if len(listed.State.Skipped) != 1 {
		t.Error("a rule changed the state that it was given")
	}
}
