package scrub

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/promotion"
)

// Take is given the bytes of a blob, and where they are from, in words. Its error says that they aren't the blob's, or that they
// couldn't be kept: another source may have better ones.
type Take = func(ctx context.Context, b events.Blob, from string, bytes io.Reader) error

// Source is somebody who may have the bytes of damaged blobs. Fetch gives what it finds of the wanted ones to take; a blob that
// it hasn't is no error. take may be called again for one blob whose first bytes were refused.
type Source interface {
	Fetch(ctx context.Context, wanted []events.Blob, take Take) error
}

// Repair asks the sources for the bytes of all damaged blobs. It returns where those that were repaired are from.
func (s *Scrubber) Repair(ctx context.Context) (repaired map[events.Digest]string, err error) {
	if err := s.index.wait(ctx); err != nil {
		return nil, err
	}
	s.repairs.Lock()
	defer s.repairs.Unlock()
	repaired = map[events.Digest]string{}
	var errs []error
	for _, source := range s.Sources {
		wanted := s.index.damagedBlobs()
		if len(wanted) == 0 {
			break
		}
		err := source.Fetch(ctx, wanted, func(ctx context.Context, b events.Blob, from string, r io.Reader) error {
			if !s.index.isDamaged(b.Digest.Hex()) {
				return nil // somebody else has brought it meanwhile
			}
			if err := s.take(ctx, b, from, r); err != nil {
				s.Logger.WarnContext(ctx, "bytes that should repair a damaged blob don't", "digest", b.Digest, "from", from, "error", err)
				return err
			}
			repaired[b.Digest] = from
			return nil
		})
		if ctx.Err() != nil {
			return repaired, ctx.Err()
		}
		errs = append(errs, err)
	}
	return repaired, errors.Join(errs...)
}

// take keeps the bytes, verified, in the place of the bad ones, and records it.
func (s *Scrubber) take(ctx context.Context, b events.Blob, from string, r io.Reader) (err error) {
	scratch, err := s.Store.NewScratch()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	const name = "repaired"
	f, err := os.OpenFile(filepath.Join(scratch.Dir(), name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("keep the bytes: %w", err)
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), io.LimitReader(r, b.Size+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read the bytes: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != b.Size || got != b.Digest.Hex() {
		return fmt.Errorf("the bytes, %d of them, have sha256:%s", n, got)
	}
	_, err = s.Log.Decide(ctx, jetstream.Cause{Actor: actor}, func(ctx context.Context) ([]events.Change, error) {
		current, err := s.Log.Blob(ctx, b.Digest)
		if err != nil || current.State.Damage == nil || current.State.State != events.BlobIsPresent {
			return nil, err // repaired by somebody else, or garbage by now
		}
		return promotion.Blob(ctx, s.Log, s.Store, current.State, func(ctx context.Context, _ events.Blob) error {
			return scratch.Admit(ctx, name, b.Digest.Hex(), b.Size)
		})
	})
	if err != nil {
		return err
	}
	// The fact comes to the index by itself; who asks after this call has returned sees it already.
	current, err := s.Log.Blob(ctx, b.Digest)
	if err != nil {
		return err
	}
	s.index.apply(current.Event)
	s.meters.repaired(ctx)
	s.Logger.InfoContext(ctx, "damaged blob repaired", "digest", b.Digest, "bytes", b.Size, "from", from)
	return nil
}

// fromLog gives metadata that imgsrv has made: sessions keep it.
type fromLog struct{ *Scrubber }

// Fetch implements Source.
func (s *fromLog) Fetch(ctx context.Context, wanted []events.Blob, take Take) error {
	of := map[events.Digest]events.Blob{}
	for _, b := range wanted {
		of[b.Digest] = b
	}
	found, _, err := s.references(ctx, func(d events.Digest) bool { _, ok := of[d]; return ok })
	if err != nil {
		return err
	}
	for digest, r := range found {
		for _, made := range r.made {
			upload, err := s.Log.Upload(ctx, made.upload)
			if err != nil {
				return err
			}
			v, ok := upload.State.Variant(made.variant)
			if !ok || v.Metadata == nil || v.Metadata.Digest != digest {
				continue
			}
			if take(ctx, of[digest], "the event log", bytes.NewReader(v.Metadata.Data)) == nil {
				break
			}
		}
	}
	return ctx.Err()
}
