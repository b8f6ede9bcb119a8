package mirrors

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/simplestreams"
	"github.com/imgsrv/imgsrv/store/blob"
)

// errNoDelta says that a root has to come whole, for no fault of anybody's.
var errNoDelta = errors.New("no delta of upstream's starts from what is here")

// built is a root that was made of a delta, in a folder of its own.
type built struct {
	file    *os.File
	scratch *blob.Scratch
	fetched int64 // bytes of the delta
}

func (b *built) close() error { return errors.Join(b.file.Close(), b.scratch.Close()) }

// build makes a root of one of upstream's deltas and the base that is here. What comes out has upstream's digest; where none can, the
// error is errNoDelta or says what is wrong with the delta. missing is how many bytes of the root have yet to arrive: a delta of
// as many saves nothing.
func (p *publisher) build(ctx context.Context, w wanted, v wantedVariant, root simplestreams.File, missing int64) (_ *built, err error) {
	if p.tool == nil || p.store == nil {
		return nil, errNoDelta
	}
	delta, base, err := p.base(ctx, w, v, missing)
	if err != nil {
		return nil, err
	}
	defer base.Close() //nolint:errcheck // only read
	// The upload needs as much again.
	if free, err := p.store.Free(); err != nil || free/10*9 < root.Size+missing+delta.Size {
		return nil, errors.Join(errNoDelta, err)
	}
	scratch, err := p.store.NewScratch()
	if err != nil {
		return nil, err
	}
	b := &built{scratch: scratch}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.scratch.Close())
		}
	}()
	received, err := p.fetch(ctx, filepath.Join(scratch.Dir(), "delta"), delta.File)
	if err != nil {
		return nil, err
	}
	defer received.Close() //nolint:errcheck // only read
	b.fetched = delta.Size
	if b.file, err = os.OpenFile(filepath.Join(scratch.Dir(), "root"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	digest := sha256.New()
	if err = p.tool.Decode(ctx, base, received, io.MultiWriter(b.file, digest), root.Size); err == nil {
		if got := hex.EncodeToString(digest.Sum(nil)); got != root.SHA256 {
			err = fmt.Errorf("applied to %s it makes sha256:%s, and sha256:%s is listed", filepath.Base(base.Name()), got, root.SHA256)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", delta.Path, err), b.file.Close())
	}
	return b, nil
}

// base finds the smallest delta whose base is here: a root of this variant in another version of the image, published with
// the fingerprint that upstream names.
func (p *publisher) base(ctx context.Context, w wanted, v wantedVariant, missing int64) (simplestreams.Delta, *os.File, error) {
	var none simplestreams.Delta
	deltas := slices.DeleteFunc(slices.Clone(v.deltas), func(d simplestreams.Delta) bool { return d.Size >= missing })
	if len(deltas) == 0 {
		return none, nil, errNoDelta
	}
	slices.SortStableFunc(deltas, func(a, b simplestreams.Delta) int { return int(min(max(a.Size-b.Size, -1), 1)) })
	versions, err := p.log.Versions(ctx, w.Image)
	if err != nil {
		return none, nil, err
	}
	for _, delta := range deltas {
		for _, version := range versions {
			digest, ok := rootWith(version.State.Manifest, v.Variant, delta.Bases)
			if !ok {
				continue
			}
			base, _, err := p.store.OpenBlob(digest.Hex())
			switch {
			case err == nil:
				return delta, base, nil
			case !errors.Is(err, fs.ErrNotExist): // collected
				return none, nil, err
			}
		}
	}
	return none, nil, errNoDelta
}

// rootWith finds the root of a variant that was published with one of the fingerprints.
func rootWith(m *events.Manifest, variant events.Variant, fingerprints []string) (events.Digest, bool) {
	if m == nil {
		return "", false
	}
	for _, v := range m.Variants {
		if v.Type != variant.Type || v.Root == "" || !slices.Contains(fingerprints, v.Fingerprint) {
			continue
		}
		if format, ok := m.Format(v.Name(), v.Root); ok {
			return format.Digest, true
		}
	}
	return "", false
}

// fetch reads a file of upstream's into a new file, and compares its digest.
func (p *publisher) fetch(ctx context.Context, path string, f simplestreams.File) (_ *os.File, err error) {
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Close())
		}
	}()
	remote := p.remote(ctx, f)
	defer remote.close()
	digest := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, digest), io.NewSectionReader(remote, 0, f.Size)); err != nil {
		return nil, err
	}
	if got := hex.EncodeToString(digest.Sum(nil)); got != f.SHA256 {
		return nil, fmt.Errorf("%s: its bytes are sha256:%s, and sha256:%s is listed", f.Path, got, f.SHA256)
	}
	return out, nil
}
