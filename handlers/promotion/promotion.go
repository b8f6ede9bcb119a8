// Package promotion makes bytes blobs of the store, and records it: bytes first, fact after. It knows what to do where the
// blob that is there already is damaged: fresh bytes of the same digest repair it. It knows nothing of where bytes come from.
package promotion

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/blob"
)

// tries is how often a promotion begins anew because damage of the blob was found while it ran. Each finding ends with a
// file moved away, so that the second try meets an empty place.
const tries = 4

// Begin is called before the bytes of a digest are promoted. It makes sure that the store knows what the log knows of the blob's
// damage, so that bad bytes make room. seen is for [events.PromoteBlob].
func Begin(ctx context.Context, log *jetstream.Log, store *blob.Store, digest events.Digest) (seen events.Sequence, err error) {
	current, err := log.Blob(ctx, digest)
	if err != nil {
		return 0, err
	}
	if current.State.Damage != nil {
		store.SetDamage(digest.Hex(), uint64(current.Sequence), string(current.State.Damage.Reason))
	}
	return current.Sequence, nil
}

// Do promotes the bytes of a blob by the given function, and records it. Promote is called again where damage of the blob is found
// meanwhile; run again after it has worked, it must do nothing, as the store's own do.
func Do(ctx context.Context, log *jetstream.Log, store *blob.Store, cause jetstream.Cause, b events.Blob, promote func(context.Context) error) error {
	key := cause.Key
	for try := 1; ; try++ {
		seen, err := Begin(ctx, log, store, b.Digest)
		if err != nil {
			return err
		}
		err = promote(ctx)
		var damaged *blob.DamagedError
		if errors.As(err, &damaged) && store.Damaged(b.Digest.Hex()) == nil && try < tries {
			// What lies there hasn't even the right length, and nobody has noticed.
			if err := record(ctx, log, b, events.Damage{Reason: events.DamageReason(damaged.Reason), Detail: "found by a promotion of the same bytes"}); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if cause.Key = key; try > 1 {
			cause.Key = fmt.Sprintf("%s, try %d", key, try)
		}
		_, err = log.Decide(ctx, cause, func(ctx context.Context) ([]events.Change, error) {
			current, err := log.Blob(ctx, b.Digest)
			if err != nil {
				return nil, err
			}
			return events.PromoteBlob(b, current, seen)
		})
		if events.IsCode(err, events.CodeDamagedMeanwhile) && try < tries {
			continue
		}
		return err
	}
}

func record(ctx context.Context, log *jetstream.Log, b events.Blob, damage events.Damage) error {
	_, err := log.Decide(ctx, jetstream.Cause{Actor: "imgsrv"}, func(ctx context.Context) ([]events.Change, error) {
		current, err := log.Blob(ctx, b.Digest)
		damage.FoundAt = time.Now().UTC()
		return events.DamageBlob(b, current, damage), err
	})
	return err
}
