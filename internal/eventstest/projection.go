package eventstest

import "github.com/imgsrv/imgsrv/events"

// Projection is the current state of a projection's list of skipped events.
func (h *History) Projection(name string) events.Current[events.Projection] {
	return current[events.Projection](h, events.ProjectionEntity(name))
}

// SkipEvent lets a projection leave an event out.
func (h *History) SkipEvent(tb TB, projection string, sequence events.Sequence) error {
	tb.Helper()
	return h.decide(tb)(events.SkipEvent(h.Projection(projection), projection, events.SkippedEvent{Sequence: sequence, EventType: "imgsrv.test.v1",
		Reason: "a test", By: "test", At: h.now}, h.Head()))
}
