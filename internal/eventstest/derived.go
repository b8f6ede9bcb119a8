package eventstest

import (
	"time"

	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
)

// Derived is like [History.Upload].
func (h *History) Derived(image, version, variant, format string) events.Current[events.Derived] {
	return current[events.Derived](h, events.DerivedEntity(image, version, variant, format))
}

// Derive asks for a format of a published version's variant.
func (h *History) Derive(tb TB, image, version, variant, format string, optional bool) error {
	tb.Helper()
	return h.decide(tb)(events.Derive(events.RequestDerived{Image: image, Name: version, Variant: variant, Format: format, Kind: events.DerivedFormat,
		Optional: optional, Version: h.Version(image, version), By: "publisher", At: h.now}, h.Derived(image, version, variant, format)))
}

// MakeDerived records a format as made from disk.qcow2, with the promotion of its bytes.
func (h *History) MakeDerived(tb TB, image, version, variant, format string) error {
	tb.Helper()
	name := image + " " + version + " " + variant + " " + format
	made := events.Derived{Image: image, Version: version, Variant: variant, Format: format, Kind: events.DerivedFormat,
		Digest: Digest(name), Size: 70, MediaType: "application/octet-stream", MadeAt: h.now,
		From: &events.DerivedSource{Format: "disk.qcow2", Digest: Digest("disk of " + name)},
		How:  &events.DerivedHow{Tool: "qemu-img", ToolVersion: "10.0.0", Arguments: "convert disk.qcow2 " + format, Verified: "qemu-img compare"}}
	if format == "disk.vcdiff" {
		made.Kind, made.BaseVersion, made.BaseDigest = events.DerivedDelta, "0", Digest("base of "+name)
	}
	changes, err := events.RecordDerived(made, h.Version(image, version), h.Derived(image, version, variant, format))
	if len(changes) > 0 {
		blob := events.Blob{Digest: made.Digest, Size: made.Size, MediaType: made.MediaType}
		changes = append(events.PromoteBlob(blob, h.Blob(made.Digest)), changes...)
	}
	return h.decide(tb)(changes, err)
}

// derived lets one thing happen to a derived file of a published version, if there is one.
func (h *History) derived(t *rapid.T, image, version string) error {
	v := h.Version(image, version)
	if v.State.Manifest == nil {
		return nil
	}
	variant := v.State.Manifest.Variants[0].Name()
	format := rapid.SampledFrom([]string{"disk.vmdk", "disk.vcdiff"}).Draw(t, "format")
	current := h.Derived(image, version, variant, format)
	// What can be neither kept nor skipped has to be asked for first.
	if !current.State.Pending() {
		ignoreRefusal(t, h.Derive(t, image, version, variant, format, rapid.Bool().Draw(t, "optional")))
		current = h.Derived(image, version, variant, format)
	}
	// An error of a tool may hold anything, also what PostgreSQL can't.
	failed := events.Problem{Code: "tool-failed", Detail: "disk \x00 full \\u0000"}
	switch rapid.SampledFrom([]string{"request", "make", "fail", "give up", "skip", "remove"}).Draw(t, "derived") {
	case "make":
		return h.MakeDerived(t, image, version, variant, format)
	case "fail":
		return h.decide(t)(events.FailDerived(current, failed, h.now.Add(time.Minute)), nil)
	case "give up":
		return h.decide(t)(events.FailDerived(current, failed, time.Time{}), nil)
	case "skip":
		return h.decide(t)(events.SkipDerived(current, failed), nil)
	case "remove":
		return h.decide(t)(events.RemoveDerived(current, "test", h.now))
	}
	return h.Derive(t, image, version, variant, format, true)
}
