package events

// Blob is immutable bytes in the content-addressed store.
type Blob struct {
	Digest    Digest `json:"digest"`
	Size      int64  `json:"size"` // bytes
	MediaType string `json:"media_type"`
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

// PromoteBlob decides to record a promotion; no change where it is recorded already.
func PromoteBlob(b Blob, current Current[Blob]) []Change {
	if current.Sequence != 0 {
		return nil
	}
	return []Change{{Fact: BlobPromoted{b}}}
}
