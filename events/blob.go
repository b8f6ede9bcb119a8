package events

// Blob is immutable bytes in the content-addressed store.
type Blob struct {
	Digest    Digest `json:"digest"`
	Size      int64  `json:"size"` // bytes
	MediaType string `json:"media_type"`
	// Damage is there while the bytes are not: see [BlobDamaged].
	Damage *Damage `json:"damage,omitempty"`
}

// BlobPromoted says that the bytes are in the store, complete and synced.
type BlobPromoted struct{ Blob }

// BlobFact is any fact of a blob.
type BlobFact interface {
	Fact
	BlobState() Blob
}

// BlobState is the blob after the fact.
func (b Blob) BlobState() Blob { return b }

// Entity names the blob.
func (b Blob) Entity() Entity { return BlobEntity(b.Digest) }

// Type names the fact's type.
func (BlobPromoted) Type() Type { return "imgsrv.blob.promoted.v1" }

// FoldBlob is the blob after one more fact.
func FoldBlob(state Blob, fact Fact) Blob {
	if f, ok := fact.(BlobFact); ok {
		return f.BlobState()
	}
	return state
}

// PromoteBlob decides to record a promotion; no change where it is recorded already. seen is the blob's last fact as it was
// before the bytes were promoted. Where damage was known by then, the bytes have taken the place of the bad ones, and the
// blob is repaired; where it was found since, it is refused with [CodeDamagedMeanwhile].
func PromoteBlob(b Blob, current Current[Blob], seen Sequence) ([]Change, error) {
	switch {
	case current.Sequence == 0:
		return []Change{{Fact: BlobPromoted{b}}}, nil
	case current.State.Damage != nil && current.Sequence != seen:
		return nil, Refuse(CodeDamagedMeanwhile, "blob %s was found damaged while its bytes were promoted", b.Digest)
	}
	return RepairBlob(current), nil
}
