package events

import "time"

// Damage says that a blob's bytes are not what its digest names. Nobody is given any of them until it is repaired.
type Damage struct {
	FoundAt time.Time    `json:"found_at"`
	Reason  DamageReason `json:"reason"`
	Detail  string       `json:"detail,omitempty"` // for operators
	// Quarantined is the name of the bad file in the quarantine folder; "" where there was none, or it couldn't be moved.
	Quarantined string `json:"quarantined,omitempty"`
}

// DamageReason is a kind of damage.
type DamageReason string

// The kinds of damage.
const (
	DamageDigest     DamageReason = "digest"     // the bytes have another SHA-256
	DamageSize       DamageReason = "size"       // the file has another length
	DamageMissing    DamageReason = "missing"    // there is no file
	DamageUnreadable DamageReason = "unreadable" // the disk or the file system doesn't give the bytes
)

// DamageBlob decides to record damage, of a blob as its last fact, or, where it has none, a manifest describes it. No
// change where damage is recorded already: the first finding stands; nor where the bytes are garbage, on their way out or gone.
func DamageBlob(b Blob, current Current[Blob], damage Damage) []Change {
	if current.Sequence != 0 {
		b = current.State
	}
	if b.Damage != nil || b.State != BlobIsPresent {
		return nil
	}
	b.Damage = &damage
	return []Change{{Fact: BlobDamaged{b}, Expect: current.Sequence}}
}

// RepairBlob decides to record that a damaged blob's bytes are there again; no change where it isn't damaged.
func RepairBlob(current Current[Blob]) []Change {
	b := current.State
	if b.Damage == nil {
		return nil
	}
	b.Damage = nil
	return []Change{{Fact: BlobRepaired{b}, Expect: current.Sequence}}
}
