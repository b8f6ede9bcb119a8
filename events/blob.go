package events

// BlobState is where a blob stands.
type BlobState string

// A blob is present from its promotion on. Collecting is short: its bytes are on their way out, and come back where
// somebody else's fact comes between. Collected ones are gone, until they are promoted again.
const (
	BlobIsPresent    BlobState = ""
	BlobIsCollecting BlobState = "collecting"
	BlobIsCollected  BlobState = "collected"
)

// Blob is immutable bytes in the content-addressed store.
type Blob struct {
	Digest    Digest    `json:"digest"`
	Size      int64     `json:"size"` // bytes
	MediaType string    `json:"media_type"`
	State     BlobState `json:"state,omitempty"` // absent: present
	// Damage is there while the bytes are not those of the digest: see [BlobDamaged].
	Damage *Damage `json:"damage,omitempty"`
}

// The facts of a blob. Whatever begins to need a blob has one of it, decided on the state that it was found in: so
// garbage collection, which decides on that state too, and whoever needs the blob can't both succeed.
type (
	// BlobPromoted says that the bytes are in the store, complete and synced.
	BlobPromoted struct{ Blob }
	// BlobRetained says that somebody else needs the bytes too: a session that was told of them, a publication of the
	// same bytes, a derived file that came out the same. It also undoes a collection that couldn't be done.
	BlobRetained struct{ Blob }
	// BlobDamaged says that the blob's bytes are lost, and that reads of them fail from now on.
	BlobDamaged struct{ Blob }
	// BlobRepaired says that the right bytes are in the store again.
	BlobRepaired struct{ Blob }
	// BlobCollecting says that nobody needs the bytes, and that they are about to be removed.
	BlobCollecting struct{ Blob }
	// BlobCollected says that they are gone.
	BlobCollected struct{ Blob }
)

// BlobFact is any fact of a blob.
type BlobFact = FactOf[Blob]

// After is the blob after the fact.
func (b Blob) After() Blob { return b }

// Entity names the blob.
func (b Blob) Entity() Entity { return BlobEntity(b.Digest) }

// Type names the fact's type.
func (BlobPromoted) Type() Type { return "imgsrv.blob.promoted.v1" }

// Type names the fact's type.
func (BlobRetained) Type() Type { return "imgsrv.blob.retained.v1" }

// Type names the fact's type.
func (BlobDamaged) Type() Type { return "imgsrv.blob.damaged.v1" }

// Type names the fact's type.
func (BlobRepaired) Type() Type { return "imgsrv.blob.repaired.v1" }

// Type names the fact's type.
func (BlobCollecting) Type() Type { return "imgsrv.blob.collecting.v1" }

// Type names the fact's type.
func (BlobCollected) Type() Type { return "imgsrv.blob.collected.v1" }

// PromoteBlob decides to record that a blob's bytes are in the store and needed. Where that is recorded already, by
// whomever, they are needed once more. The order is: read current, see to it that the bytes are in the store, from a
// source that stays, append; again from the beginning on a conflict. That is right in any state: the facts of a
// collection that runs meet the conflict instead, and its bytes come back. The bytes of a damaged blob take the place of the
// bad ones, and repair it; damage that is found meanwhile is a conflict too.
func PromoteBlob(b Blob, current Current[Blob]) []Change {
	switch {
	case current.Sequence == 0 || current.State.State != BlobIsPresent:
	case current.State.Damage != nil:
		return RepairBlob(current)
	default:
		return RetainBlob(current)
	}
	b.State = BlobIsPresent
	return []Change{{Fact: BlobPromoted{b}, Expect: current.Sequence}}
}

// RetainBlob decides that somebody else needs a blob that has facts and isn't collected.
func RetainBlob(current Current[Blob]) []Change {
	next := current.State
	next.State = BlobIsPresent
	return []Change{{Fact: BlobRetained{next}, Expect: current.Sequence}}
}

// BeginCollecting decides that a blob is garbage. current is its state from before it was found that nobody needs it;
// without facts, or collected already, b is a file that lies in the store without anybody's saying so.
func BeginCollecting(b Blob, current Current[Blob]) []Change {
	if current.Sequence != 0 {
		b = current.State
	}
	if b.State == BlobIsCollecting {
		return nil
	}
	b.State = BlobIsCollecting
	return []Change{{Fact: BlobCollecting{b}, Expect: current.Sequence}}
}

// EndCollecting decides that a blob's bytes are out of the store; nothing, where they aren't on their way out.
func EndCollecting(current Current[Blob]) []Change {
	next := current.State
	if current.Sequence == 0 || next.State != BlobIsCollecting {
		return nil
	}
	next.State = BlobIsCollected
	return []Change{{Fact: BlobCollected{next}, Expect: current.Sequence}}
}
