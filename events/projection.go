package events

import (
	"slices"
	"strings"
	"time"
)

// Projection is what was decided about a projection by hand: the events that it leaves out.
type Projection struct {
	Name    string         `json:"name"`
	Skipped []SkippedEvent `json:"skipped"` // all there ever were, in the order in which they were skipped
}

// SkippedEvent is an event that a projection moves over without applying it.
type SkippedEvent struct {
	Sequence  Sequence  `json:"sequence"`
	EventType Type      `json:"event_type"` // as stored
	Reason    string    `json:"reason"`
	By        string    `json:"by"` // name of a principal
	At        time.Time `json:"at"`
}

// ProjectionEventSkipped tells a projection to leave one more event out, the last of the list.
type ProjectionEventSkipped struct{ Projection }

// ProjectionFact is any fact of a projection.
type ProjectionFact = FactOf[Projection]

// After is the projection after the fact.
func (p Projection) After() Projection { return p }

// Entity names the projection.
func (p Projection) Entity() Entity { return ProjectionEntity(p.Name) }

// Type names the fact's type.
func (ProjectionEventSkipped) Type() Type { return "imgsrv.projection.event_skipped.v1" }

// Skips says whether the projection leaves an event out.
func (p Projection) Skips(sequence Sequence) bool {
	return slices.ContainsFunc(p.Skipped, func(s SkippedEvent) bool { return s.Sequence == sequence })
}

// SkipEvent decides that a projection leaves an event out. head is the stream's last sequence. Whether the projection
// really stands at that event is not in the log: the caller looks.
func SkipEvent(current Current[Projection], name string, skip SkippedEvent, head Sequence) ([]Change, error) {
	skip.Reason = strings.TrimSpace(skip.Reason)
	switch {
	case skip.Reason == "":
		return nil, brokenRule("reason", "say why the event is skipped: the event stays in the log, and so does the reason", "")
	case skip.Sequence == 0 || skip.Sequence > head:
		return nil, Refuse(CodeNotFound, "there is no event %d: the last one is %d", skip.Sequence, head)
	case current.State.Skips(skip.Sequence):
		return nil, Refuse(CodeSkippedAlready, "projection %s skips event %d already", name, skip.Sequence)
	}
	next := Projection{Name: name, Skipped: append(slices.Clone(current.State.Skipped), skip)}
	return []Change{{Fact: ProjectionEventSkipped{next}, Expect: current.Sequence}}, nil
}
