package deltas

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/promotion"
	"github.com/imgsrv/imgsrv/internal/vcdiff"
)

// made is a delta as it lies in the ingress of its job.
type made struct {
	digest events.Digest
	size   int64
}

const deltaFile = "delta.vcdiff"

// make makes one delta, unless it was made, or removed by somebody, before: its bytes are encoded, applied to the base as a client
// would, compared with the target's digest, and only then kept.
func (d *Deltas) make(ctx context.Context, delivery jetstream.Delivery, p planned) error {
	known, err := d.Log.Derived(ctx, p.image, p.version, p.variant, p.format)
	if err != nil || known.Sequence != 0 {
		return err
	}
	log := d.Logger.With("image", p.image, "version", p.version, "variant", p.variant, "base", p.base.version)
	base, err := d.openRoot(p.base)
	if errors.Is(err, fs.ErrNotExist) {
		log.InfoContext(ctx, "no delta: the bytes of the earlier version are gone")
		return nil
	}
	if err != nil {
		return err
	}
	defer base.Close() //nolint:errcheck // only read
	target, err := d.openRoot(p.target)
	if err != nil {
		return err
	}
	defer target.Close() //nolint:errcheck // only read

	job := "delta-" + uuid.NewString() // nobody else's, should two nodes make the same
	defer func() {
		if err := d.Store.RemoveIngress(job); err != nil {
			log.WarnContext(ctx, "files of a delta not removed; that is done later", "error", err)
		}
	}()
	started := time.Now()
	result, err := d.encode(ctx, job, base, target, p)
	if errors.Is(err, vcdiff.ErrTooLarge) {
		log.InfoContext(ctx, "no delta: it would save less than a third", "took", time.Since(started))
		return nil
	}
	if err == nil {
		err = d.verify(ctx, job, base, p)
	}
	if errors.Is(err, vcdiff.ErrTimeout) { // it would again, and the deltas of other versions wait for this one
		log.WarnContext(ctx, "no delta: it took too long", "took", time.Since(started))
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.record(ctx, delivery, job, p, result); err != nil {
		return err
	}
	log.InfoContext(ctx, "delta made", "bytes", result.size, "whole", p.target.size, "took", time.Since(started))
	return nil
}

func (d *Deltas) openRoot(r root) (*os.File, error) {
	f, info, err := d.Store.OpenBlob(r.digest.Hex())
	if err != nil {
		return nil, err
	}
	if info.Size() != r.size {
		return nil, errors.Join(fmt.Errorf("blob %s has %d bytes and was published with %d", r.digest, info.Size(), r.size), f.Close())
	}
	return f, nil
}

func (d *Deltas) encode(ctx context.Context, job string, base, target *os.File, p planned) (_ made, err error) {
	out, err := d.Store.CreateIngress(job, deltaFile)
	if err != nil {
		return made{}, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum := sha256.New()
	if err := d.Tool.Encode(ctx, base, target, io.MultiWriter(out, sum), p.largest()); err != nil {
		return made{}, err
	}
	size, err := out.Seek(0, io.SeekCurrent)
	if err != nil {
		return made{}, err
	}
	return made{events.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))), size}, nil
}

// verify applies the delta to its base, and compares what comes out with what was published.
func (d *Deltas) verify(ctx context.Context, job string, base *os.File, p planned) error {
	delta, err := d.Store.OpenIngress(job, deltaFile)
	if err != nil {
		return err
	}
	defer delta.Close() //nolint:errcheck // only read
	sum := sha256.New()
	if err := d.Tool.Decode(ctx, base, delta, sum, p.target.size); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != p.target.digest.Hex() {
		return fmt.Errorf("applied to its base the delta makes sha256:%s, not %s", got, p.target.digest)
	}
	return nil
}

// record keeps the bytes, and then says so.
func (d *Deltas) record(ctx context.Context, delivery jetstream.Delivery, job string, p planned, result made) error {
	_, err := d.Log.Decide(ctx, delivery.Cause("delta "+p.format), func(ctx context.Context) ([]events.Change, error) {
		version, err := d.Log.Version(ctx, p.image, p.version)
		if err != nil {
			return nil, err
		}
		current, err := d.Log.Derived(ctx, p.image, p.version, p.variant, p.format)
		if err != nil {
			return nil, err
		}
		b := events.Blob{Digest: result.digest, Size: result.size, MediaType: mediaType}
		promoted, err := promotion.Blob(ctx, d.Log, d.Store, b, func(ctx context.Context, _ events.Blob) error {
			return d.Store.Admit(ctx, job, deltaFile, result.digest.Hex(), result.size)
		})
		if err != nil {
			return nil, err
		}
		changes, err := events.RecordDerived(events.Derived{
			Image: p.image, Version: p.version, Variant: p.variant, Format: p.format, Kind: events.DerivedDelta,
			Digest: result.digest, Size: result.size, MediaType: mediaType,
			From:        &events.DerivedSource{Format: p.target.format, Digest: p.target.digest},
			BaseVersion: p.base.version, BaseDigest: p.base.digest,
			How: &events.DerivedHow{Tool: vcdiff.Program, ToolVersion: d.Tool.Version(ctx),
				Arguments: strings.Join(d.Tool.Arguments(p.base.size, p.base.format, p.target.format), " "),
				Verified:  "applied to the base with " + vcdiff.Program + " -d, SHA-256 compared"},
			MadeAt: d.Clock().UTC(),
		}, version, current)
		if err != nil || len(changes) == 0 {
			return nil, err
		}
		return append(promoted, changes...), nil
	})
	if events.IsCode(err, events.CodeNotFound) {
		return nil // withdrawn meanwhile
	}
	return err
}
