package eventstest

import (
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
)

// Damage records that a blob's bytes are lost.
func (h *History) Damage(tb TB, digest events.Digest, reason events.DamageReason) error {
	tb.Helper()
	current := h.Blob(digest)
	return h.decide(tb)(events.DamageBlob(events.Blob{Digest: digest}, current, events.Damage{FoundAt: h.now, Reason: reason, Detail: "found \x00 by a test"}), nil)
}

// Repair records that they are there again.
func (h *History) Repair(tb TB, digest events.Digest) error {
	tb.Helper()
	return h.decide(tb)(events.RepairBlob(h.Blob(digest)), nil)
}

// damage lets a blob be found bad, or repairs one that is, where there are blobs.
func (h *History) damage(t *rapid.T) error {
	var good, bad []events.Digest
	for _, event := range h.Events {
		fact, ok := event.Fact.(events.BlobFact)
		if !ok || h.last[fact.Entity()].Sequence != event.Sequence {
			continue
		}
		if b := fact.After(); b.State != events.BlobIsPresent {
			continue
		} else if b.Damage == nil {
			good = append(good, b.Digest)
		} else {
			bad = append(bad, b.Digest)
		}
	}
	if len(bad) > 0 && rapid.Bool().Draw(t, "repair") {
		return h.Repair(t, rapid.SampledFrom(bad).Draw(t, "bad blob"))
	}
	if len(good) == 0 {
		return nil
	}
	reasons := []events.DamageReason{events.DamageDigest, events.DamageSize, events.DamageMissing, events.DamageUnreadable}
	return h.Damage(t, rapid.SampledFrom(good).Draw(t, "good blob"), rapid.SampledFrom(reasons).Draw(t, "reason"))
}
