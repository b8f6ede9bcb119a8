package eventstest

import (
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
)

// CollectVersion ends the time in which a withdrawn version can be restored. One that isn't withdrawn stays as it is.
func (h *History) CollectVersion(tb TB, image, version string) {
	tb.Helper()
	h.Append(tb, events.CollectVersion(h.Version(image, version), h.now)...)
}

// CollectBlob takes a blob one fact further on its way out.
func (h *History) CollectBlob(tb TB, digest events.Digest) {
	tb.Helper()
	current := h.Blob(digest)
	if current.State.State == events.BlobIsCollecting {
		h.Append(tb, events.EndCollecting(current)...)
		return
	}
	h.Append(tb, events.BeginCollecting(events.Blob{Digest: digest, Size: 7, MediaType: "application/octet-stream"}, current)...)
}

// collect lets garbage collection do something to some blob, whether that is needed or not, or to some withdrawn version.
func (h *History) collect(t *rapid.T, images, versions *rapid.Generator[string]) {
	if rapid.Bool().Draw(t, "a version") {
		image, version := h.drawVersion(t, events.StateWithdrawn, images, versions)
		h.CollectVersion(t, image, version)
		return
	}
	digest := Digest("shared")
	for range rapid.IntRange(1, 2).Draw(t, "facts of its collection") {
		h.CollectBlob(t, digest)
	}
}
