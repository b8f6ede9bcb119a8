package publication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/imagefile"
)

// verify holds each file against what was declared: size, digest, and that the content is what the
// format's name promises. The content of attachments is nobody's business. The bytes were hashed when they
// arrived and are not read again.
func (p *Publication) verify(ctx context.Context, job events.Job, _ events.Upload) ([]events.JobFile, error) {
	files := slices.Clone(job.Files)
	for i := range files {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f := &files[i]
		if f.Declared != "" && f.Declared != f.Digest {
			return nil, refuse("wrong-digest", "%s has sha256 %s, declared was %s", f.Ref(), f.Digest.Hex(), f.Declared.Hex())
		}
		err := p.withFile(job.ID, f, func(r io.ReaderAt, size int64) error {
			if size != f.Size {
				return refuse("wrong-size", "%s has %d bytes, declared were %d", f.Ref(), size, f.Size)
			}
			if f.Ref().IsAttachment() {
				f.MediaType = attachmentType(f.Format)
				return nil
			}
			f.MediaType = imagefile.MediaType(f.Format)
			return imagefile.Check(f.Format, r, size)
		})
		var wrong *imagefile.Error
		switch {
		case errors.As(err, &wrong):
			return nil, &Refusal{Code: wrong.Code, Err: fmt.Errorf("%s: %w", f.Ref(), err)}
		case err != nil:
			return nil, err
		}
	}
	return files, nil
}

// withFile opens a job's file where it is: in ingress, or, once promoted or present from the start, in
// the content-addressed store.
func (p *Publication) withFile(job string, f *events.JobFile, use func(r io.ReaderAt, size int64) error) error {
	if f.Ingress != "" {
		file, err := p.store.OpenIngress(job, f.Ingress)
		if err == nil {
			defer file.Close() //nolint:errcheck // only read
			info, err := file.Stat()
			if err != nil {
				return fmt.Errorf("%s: %w", f.Ref(), err)
			}
			return use(file, info.Size())
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	file, info, err := p.store.OpenBlob(f.Digest.Hex())
	if err != nil {
		return fmt.Errorf("%s: %w", f.Ref(), err)
	}
	defer file.Close() //nolint:errcheck // only read
	return use(file, info.Size())
}
