package publication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/imagefile"
	"github.com/imgsrv/imgsrv/internal/incus"
)

const (
	maxMetadata         = 64 << 20 // bytes of a metadata tarball, packed
	maxMetadataUnpacked = 64 << 20
	// maxUnifiedUnpacked bounds the time that a unified image can take, which is read to its end at worst.
	maxUnifiedUnpacked = 64 << 30
	// clockSkew is how far ahead of ours the clock may go that dated an image.
	clockSkew = 48 * time.Hour
)

// inspectTarball reads what the publisher's own metadata says, and holds it against the variant that it is for.
func (p *Publication) inspectTarball(ctx context.Context, job string, f *events.JobFile, upload events.Upload) error {
	variant, ok := upload.Variant(f.Variant)
	if !ok {
		return fmt.Errorf("%s is of no variant of its session", f.Ref())
	}
	_, unified := events.IsTarball(f.Format)
	limit := int64(maxUnifiedUnpacked)
	if !unified {
		limit = maxMetadataUnpacked
		if f.Size > maxMetadata {
			return refuse("metadata-too-large", "%s has %d bytes, and metadata at most %d", f.Ref(), f.Size, maxMetadata)
		}
	}
	select {
	case p.unpacking <- struct{}{}:
		defer func() { <-p.unpacking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var tarball incus.Tarball
	err := p.withFile(job, f, func(r io.ReaderAt, size int64) (err error) {
		tarball, err = readTarball(ctx, r, size, limit)
		return err
	})
	switch {
	case errors.Is(err, incus.ErrTarball), errors.Is(err, imagefile.ErrPacking):
		return refuse("bad-metadata", "%s: %w", f.Ref(), err)
	case err != nil:
		return fmt.Errorf("read %s: %w", f.Ref(), err)
	}
	if err := fits(tarball, variant.Variant, unified, upload.InitiatedAt); err != nil {
		return refuse("bad-metadata", "%s: %w", f.Ref(), err)
	}
	f.Incus = imageInfo(tarball)
	return nil
}

func readTarball(ctx context.Context, r io.ReaderAt, size, limit int64) (incus.Tarball, error) {
	kind, err := imagefile.Detect(r, size)
	if err != nil {
		return incus.Tarball{}, err
	}
	unpacked, err := imagefile.Unpack(kind, io.NewSectionReader(r, 0, size))
	if err != nil {
		return incus.Tarball{}, err
	}
	defer unpacked.Close() //nolint:errcheck // only read
	return incus.ReadTarball(ctx, unpacked, limit)
}

// fits holds a tarball against the variant that it was uploaded for.
func fits(t incus.Tarball, v events.Variant, unified bool, uploadedAt time.Time) error {
	switch {
	case t.Architecture != v.Architecture:
		return fmt.Errorf("its metadata.yaml is for the architecture %s, and the variant for %s", t.Architecture, v.Architecture)
	case t.CreationDate.After(uploadedAt.Add(clockSkew)):
		return fmt.Errorf("its creation_date is %s, in the future", t.CreationDate.Format(time.RFC3339))
	case !unified && t.Root != "":
		return fmt.Errorf("it holds the root of an instance too, so it is a unified image: publish it as incus_combined.tar.gz, or .tar.xz")
	case unified && t.Root == "":
		return fmt.Errorf("it is a unified image by its name, but holds neither rootfs/ nor rootfs.img")
	case unified && t.Root != string(v.Type):
		return fmt.Errorf("it holds the root of a %s, and the variant is a %s", t.Root, v.Type)
	}
	return nil
}

// imageInfo is what the manifest says of a tarball.
func imageInfo(t incus.Tarball) *events.ImageInfo {
	info := &events.ImageInfo{CreatedAt: t.CreationDate, ExpiresAt: t.ExpiryDate, Properties: t.Properties, Templates: t.Templates}
	bytes := 0
	for key, value := range t.Properties {
		bytes += len(key) + len(value)
	}
	for _, path := range t.Templates {
		bytes += len(path)
	}
	if bytes > events.MaxImageInfoBytes {
		info.Properties, info.Templates = nil, nil
	}
	return info
}
