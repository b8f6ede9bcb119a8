package scrub

import (
	"context"
	"encoding/hex"
	"maps"
	"slices"
	"sync"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/blob"
)

// index is which blobs there should be, folded from the log. It tells the store which of them are damaged.
type index struct {
	log      *jetstream.Log
	follower *jetstream.Follower
	store    *blob.Store
	whole    chan struct{} // closed once all that has happened is known

	mu      sync.Mutex
	blobs   [256]map[string]int64      // size by hex digits, apart by their first byte
	damaged map[string]events.Blob     // by hex digits
	last    map[string]events.Sequence // of those that are, or were, damaged: what this node has recorded itself comes again
}

func newIndex(log *jetstream.Log, store *blob.Store) *index {
	x := &index{log: log, store: store, whole: make(chan struct{}), damaged: map[string]events.Blob{}, last: map[string]events.Sequence{}}
	for i := range x.blobs {
		x.blobs[i] = map[string]int64{}
	}
	x.follower = log.Follow(func(_ context.Context, e events.Event) { x.apply(e) }, events.SubjectOfKind(events.KindBlob))
	store.AskDamage(x.tell)
	x.follower.WhenCaughtUp(func() {
		store.AskDamage(nil)
		close(x.whole)
	})
	return x
}

// tell tells the store of one blob what the log says, while the index isn't whole.
func (x *index) tell(hexed string) error {
	current, err := x.log.Blob(context.Background(), digestOf(hexed)) // bounded there
	if err == nil && current.State.Damage != nil && current.State.State != events.BlobIsCollected {
		x.store.SetDamage(hexed, uint64(current.Sequence), string(current.State.Damage.Reason))
	}
	return err
}

// wait returns once all that has happened is known.
func (x *index) wait(ctx context.Context) error {
	select {
	case <-x.whole:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (x *index) apply(event events.Event) {
	fact, ok := event.Fact.(events.BlobFact)
	if !ok {
		return
	}
	b := fact.After()
	hexed := b.Digest.Hex()
	gone, reason := b.State == events.BlobIsCollected, ""
	if b.Damage != nil && !gone {
		reason = string(b.Damage.Reason)
	}
	x.store.SetDamage(hexed, uint64(event.Sequence), reason)
	x.mu.Lock()
	defer x.mu.Unlock()
	first, ok := firstByte(hexed)
	if !ok {
		return
	}
	last, known := x.last[hexed]
	if known && event.Sequence < last {
		return
	}
	if gone {
		delete(x.blobs[first], hexed)
	} else {
		x.blobs[first][hexed] = b.Size
	}
	if known || b.Damage != nil {
		x.last[hexed] = event.Sequence
	}
	if b.Damage != nil && !gone {
		x.damaged[hexed] = b
	} else {
		delete(x.damaged, hexed)
	}
}

func firstByte(hexed string) (byte, bool) {
	if len(hexed) != 64 {
		return 0, false
	}
	first, err := hex.DecodeString(hexed[:2])
	if err != nil {
		return 0, false
	}
	return first[0], true
}

// under are the blobs whose digest begins with a byte, a copy.
func (x *index) under(first byte) map[string]int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return maps.Clone(x.blobs[first])
}

func (x *index) size(hexed string) (bytes int64, known bool) {
	first, ok := firstByte(hexed)
	if !ok {
		return 0, false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	bytes, known = x.blobs[first][hexed]
	return bytes, known
}

// isDamaged tells what the log says.
func (x *index) isDamaged(hexed string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, ok := x.damaged[hexed]
	return ok
}

// damage is what the log says of a damaged blob; nil for another.
func (x *index) damage(hexed string) *events.Damage {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.damaged[hexed].Damage
}

func (x *index) damagedCount() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.damaged)
}

// damagedBlobs are in the order of their digests.
func (x *index) damagedBlobs() []events.Blob {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []events.Blob
	for _, hexed := range slices.Sorted(maps.Keys(x.damaged)) {
		out = append(out, x.damaged[hexed])
	}
	return out
}
