// Package promotion makes bytes blobs of the store: bytes first, fact after. It knows what to do where the blob that is there
// already is damaged: fresh bytes of the same digest take the place of the bad ones. It knows nothing of where bytes come from.
package promotion

import (
	"context"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/blob"
)

// tries is how often the blob that is there is looked at: a finding makes room for the bytes in the next try.
const tries = 3

// Blob sees to it that a blob's bytes are in the store, by admit, and decides the fact of it; it is called anew after each
// conflict, as [events.PromoteBlob] asks for. admit is told the blob as its last fact left it, and must leave its source where it
// is, as the store's own do.
func Blob(ctx context.Context, log *jetstream.Log, store *blob.Store, b events.Blob, admit func(ctx context.Context, known events.Blob) error) ([]events.Change, error) {
	for try := 1; ; try++ {
		current, err := log.SettledBlob(ctx, b.Digest)
		if err != nil {
			return nil, err
		}
		known := current.State
		if known.Damage != nil { // the store may not have heard of it yet
			store.SetDamage(b.Digest.Hex(), uint64(current.Sequence), string(known.Damage.Reason))
		}
		if current.Sequence != 0 && known.State == events.BlobIsPresent && known.Damage == nil && try < tries {
			// Our bytes are good, and are let go once the blob is said to be there: what lies in the store is looked at first.
			_, rot, err := store.VerifyBlob(ctx, b.Digest.Hex(), known.Size, unpaced)
			if err != nil {
				return nil, err
			}
			if rot != nil {
				if err := record(ctx, log, b, events.Damage{Reason: events.DamageReason(rot.Kind), Detail: "found by a promotion of the same bytes: " + rot.Detail}); err != nil {
					return nil, err
				}
				continue
			}
		}
		if err := admit(ctx, known); err != nil {
			return nil, err
		}
		return events.PromoteBlob(b, current), nil
	}
}

func unpaced(context.Context, int) error { return nil }

func record(ctx context.Context, log *jetstream.Log, b events.Blob, damage events.Damage) error {
	_, err := log.Decide(ctx, jetstream.Cause{Actor: "imgsrv"}, func(ctx context.Context) ([]events.Change, error) {
		current, err := log.Blob(ctx, b.Digest)
		damage.FoundAt = time.Now().UTC()
		return events.DamageBlob(b, current, damage), err
	})
	return err
}
