package scrub

import (
	"context"
	"errors"
	"fmt"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/store/blob"
)

// checked is what a look at one blob has found.
type checked struct {
	read     int64          // bytes
	damage   *events.Damage // nil: it is as it should be
	found    bool           // the damage wasn't known before
	repaired bool           // it was damaged, and its bytes are right again
}

// looks is how often one blob is looked at where its file changes meanwhile.
const looks = 4

// check looks at one blob, and sees to what it finds. The error says that nothing is known: ctx has ended, or the storage or
// the log doesn't answer.
func (s *Scrubber) check(ctx context.Context, b events.Blob, pace func(context.Context, int) error) (checked, error) {
	var out checked
	for look := 1; ; look++ {
		read, rot, err := s.Store.VerifyBlob(ctx, b.Digest.Hex(), b.Size, pace)
		out.read += read
		s.meters.read(ctx, read)
		if err != nil {
			return out, err
		}
		if rot == nil {
			repaired, err := s.right(ctx, b)
			out.damage, out.found, out.repaired = nil, false, repaired || out.found
			return out, err
		}
		if out.damage != nil && rot.Kind == blob.RotMissing {
			return out, nil // the second look: nobody has brought the right bytes meanwhile
		}
		damage, found, err := s.wrong(ctx, b, rot)
		if errors.Is(err, blob.ErrReplaced) && look < looks {
			continue
		}
		if err != nil {
			return out, err
		}
		out.damage, out.found = damage, out.found || found
		if damage == nil {
			return out, nil
		}
		// Where the file was there and is away, another may have come since, from who didn't know of the damage.
		if !found || damage.Quarantined == "" && rot.Kind != blob.RotMissing || look == looks {
			return out, nil
		}
	}
}

// right sees to a blob whose bytes are as they should be: one that was damaged isn't any more.
func (s *Scrubber) right(ctx context.Context, b events.Blob) (repaired bool, err error) {
	hexed := b.Digest.Hex()
	if s.Store.Damaged(hexed) == nil && !s.index.isDamaged(hexed) {
		return false, nil
	}
	repaired, err = s.repaired(ctx, b.Digest, "its file, which is right again")
	if err == nil && !repaired {
		current, err := s.Log.Blob(ctx, b.Digest)
		if err != nil {
			return false, err
		}
		if current.State.Damage == nil {
			s.Store.ForgetDamage(hexed, uint64(current.Sequence))
		}
	}
	return repaired, err
}

// repaired records that a blob's bytes are there again; false where it was recorded already.
func (s *Scrubber) repaired(ctx context.Context, digest events.Digest, from string) (bool, error) {
	sequence, err := s.Log.Decide(ctx, jetstream.Cause{Actor: actor}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Log.Blob(ctx, digest)
		return events.RepairBlob(current), err
	})
	if err != nil || sequence == 0 {
		return false, err
	}
	s.Logger.InfoContext(ctx, "damaged blob repaired", "digest", digest, "from", from)
	s.meters.repaired(ctx)
	s.index.apply(events.Event{Sequence: sequence, Fact: events.BlobRepaired{Blob: s.blobOf(digest)}})
	return true, nil
}

const actor = "imgsrv"

// wrong sees to a blob whose file is bad. It returns the damage as it is recorded, and whether that is new.
func (s *Scrubber) wrong(ctx context.Context, b events.Blob, rot *blob.Rot) (*events.Damage, bool, error) {
	hexed := b.Digest.Hex()
	current, err := s.Log.Blob(ctx, b.Digest)
	if err != nil {
		return nil, false, err
	}
	if current.State.State != events.BlobIsPresent {
		return nil, false, nil // garbage: on its way out, or gone
	}
	damage := events.Damage{FoundAt: s.Clock().UTC(), Reason: events.DamageReason(rot.Kind), Detail: rot.Detail}
	if !rot.Failing && rot.Kind != blob.RotMissing {
		damage.Quarantined, err = s.Store.Quarantine(hexed, rot)
		switch {
		case errors.Is(err, blob.ErrReplaced):
			return nil, false, err
		case err != nil: // marked all the same; the file's name is needed by who repairs it, and is freed then
			s.Logger.WarnContext(ctx, "the file of a damaged blob couldn't be moved to the quarantine", "digest", b.Digest, "error", err)
		}
	}
	if current.State.Damage != nil {
		s.Store.SetDamage(hexed, uint64(current.Sequence), string(current.State.Damage.Reason))
		return current.State.Damage, false, nil
	}
	s.Store.SetDamage(hexed, uint64(current.Sequence), rot.Kind)
	var recorded events.Blob
	sequence, err := s.Log.Decide(ctx, jetstream.Cause{Actor: actor}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Log.Blob(ctx, b.Digest)
		if err != nil {
			return nil, err
		}
		recorded = current.State
		changes := events.DamageBlob(b, current, damage)
		if len(changes) > 0 {
			recorded = changes[0].Fact.(events.BlobDamaged).Blob
		}
		return changes, nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("record that blob %s is damaged: %w", b.Digest, err)
	}
	if sequence == 0 { // another node was faster
		return recorded.Damage, false, nil
	}
	s.index.apply(events.Event{Sequence: sequence, Fact: events.BlobDamaged{Blob: recorded}})
	s.meters.found(ctx, rot.Kind)
	var namedBy []string
	s.naming.Do(func() { namedBy = s.namedBy(ctx, b.Digest) })
	s.Logger.ErrorContext(ctx, "blob damaged: nobody is given its bytes until it is repaired", "digest", b.Digest, "bytes", b.Size, "reason", damage.Reason, "detail", damage.Detail,
		"quarantined", damage.Quarantined, "named_by", namedBy, "remedy", "imgsrv fsck --repair, or publish the same file again")
	select {
	case s.bad <- struct{}{}:
	default:
	}
	return &damage, true, nil
}

// blobOf is a blob without its damage, as the index knows it.
func (s *Scrubber) blobOf(digest events.Digest) events.Blob {
	size, _ := s.index.size(digest.Hex())
	return events.Blob{Digest: digest, Size: size}
}

// unanswered tells an error that all blobs would meet from one of this blob.
func unanswered(err error) bool {
	return errors.Is(err, jetstream.ErrUnavailable) || errors.Is(err, blob.ErrNoBlobs)
}
