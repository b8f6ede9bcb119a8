package eventstest

import (
	"time"

	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
)

// Mirror is like [History.Upload].
func (h *History) Mirror(name string) events.Current[events.Mirror] {
	return current[events.Mirror](h, events.MirrorEntity(name))
}

// mirror lets one thing happen to one of few mirrors.
func (h *History) mirror(t *rapid.T) error {
	name := rapid.SampledFrom([]string{"upstream", "other"}).Draw(t, "mirror")
	before := h.Mirror(name)
	switch rapid.SampledFrom([]string{"add", "sync", "sync", "end", "end", "remove"}).Draw(t, "of the mirror") {
	case "add":
		m := events.Mirror{Name: name, URL: "https://upstream.example", Keep: 2, EverySeconds: 3600, Lifetime: events.Lifetime{AddedBy: "test", AddedAt: h.now}}
		return h.decide(t)(events.AddMirror(m, before))
	case "sync":
		return h.decide(t)(events.RequestSync(before, name, "test", h.now))
	case "end":
		run := events.MirrorRun{StartedAt: h.now, EndedAt: h.now, Matched: 1, Failed: rapid.IntRange(0, 1).Draw(t, "failed"), FetchedBytes: 1000, SavedBytes: 500}
		h.Append(t, events.CompleteSync(before, events.EndSync{Request: before.Sequence, Run: run, NextAt: h.now.Add(time.Hour)})...)
		return nil
	}
	return h.decide(t)(events.RemoveMirror(before, name, "test", h.now))
}
