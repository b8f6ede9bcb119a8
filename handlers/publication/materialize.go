package publication

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/imagefile"
	"github.com/imgsrv/imgsrv/store/blob"
)

// materialize adds what imgsrv makes itself: the metadata tarball that was prepared with the session. It
// also sees to it that each root with a metadata tarball has its Incus fingerprint: mostly it was hashed
// on arrival; where the metadata came later, or the root was a blob already, the bytes are read once.
func (p *Publication) materialize(ctx context.Context, job events.Job, upload events.Upload) ([]events.JobFile, error) {
	files := slices.Clone(job.Files)
	for _, v := range upload.Variants {
		if v.Metadata != nil && findFile(files, v.Name(), v.Metadata.Format) == nil {
			name := v.Name() + "." + v.Metadata.Format
			if err := p.store.WriteIngress(job.ID, name, v.Metadata.Data); err != nil {
				return nil, err
			}
			files = append(files, events.JobFile{Variant: v.Name(), Format: v.Metadata.Format, Size: int64(len(v.Metadata.Data)), Digest: v.Metadata.Digest,
				Ingress: name, Origin: events.OriginMade, MediaType: imagefile.MediaType(v.Metadata.Format)})
		}
		if err := p.fingerprint(ctx, job.ID, v, files); err != nil {
			return nil, fmt.Errorf("fingerprint of %s: %w", v.Name(), err)
		}
		if err := checkFingerprint(v, files); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func (p *Publication) fingerprint(ctx context.Context, job string, v events.UploadVariant, files []events.JobFile) error {
	format, ok := events.MetadataFormat(v.Formats())
	root, hasRoot := v.Root()
	if !ok || !hasRoot {
		return nil
	}
	disk, metadata := findFile(files, v.Name(), root.Format), findFile(files, v.Name(), format)
	if disk == nil || metadata == nil || disk.Combined != "" {
		return nil
	}
	const maxMetadata = 64 << 20
	if metadata.Size > maxMetadata {
		return refuse("metadata-too-large", "the metadata tarball %s has %d bytes, more than %d", format, metadata.Size, maxMetadata)
	}
	var prefix []byte
	err := p.withFile(job, metadata, func(r io.ReaderAt, size int64) (err error) {
		prefix, err = io.ReadAll(io.NewSectionReader(r, 0, size))
		return err
	})
	if err != nil {
		return err
	}
	return p.withFile(job, disk, func(r io.ReaderAt, size int64) error {
		combined, _, err := blob.HashCombined(ctx, prefix, io.NewSectionReader(r, 0, size))
		if err != nil {
			return err
		}
		disk.Combined = events.Digest("sha256:" + combined)
		return nil
	})
}

// checkFingerprint holds a variant against the fingerprint that its publisher has declared.
func checkFingerprint(v events.UploadVariant, files []events.JobFile) error {
	if v.Fingerprint == "" {
		return nil
	}
	var got events.Digest
	if root, ok := v.Root(); ok {
		if disk := findFile(files, v.Name(), root.Format); disk != nil {
			got = disk.Combined
		}
	}
	switch got {
	case v.Fingerprint:
		return nil
	case "":
		return refuse("wrong-fingerprint", "%s has no metadata with a root, and so no fingerprint; declared was %s", v.Name(), v.Fingerprint.Hex())
	}
	return refuse("wrong-fingerprint", "%s has the fingerprint %s, declared was %s", v.Name(), got.Hex(), v.Fingerprint.Hex())
}

func findFile(files []events.JobFile, variant, format string) *events.JobFile {
	for i := range files {
		if files[i].Variant == variant && files[i].Format == format {
			return &files[i]
		}
	}
	return nil
}
