package publication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/imagefile"
	"github.com/imgsrv/imgsrv/internal/qcow2"
)

// inspect reads the headers of disk images and the metadata of tarballs: what they say goes into the manifest. Images that need
// other files, or of which a part is missing, are refused, and so is metadata that contradicts its variant or that no client could use.
func (p *Publication) inspect(ctx context.Context, job events.Job, upload events.Upload) ([]events.JobFile, error) {
	files := slices.Clone(job.Files)
	for i := range files {
		f := &files[i]
		if is, _ := events.IsTarball(f.Format); is && !f.Ref().IsAttachment() {
			if err := p.inspectTarball(ctx, job.ID, f, upload); err != nil {
				return nil, err
			}
			continue
		}
		if kind, ok := imagefile.Expect(f.Format); !ok || kind != imagefile.Qcow2 || f.Ref().IsAttachment() {
			continue
		}
		err := p.withFile(job.ID, f, func(r io.ReaderAt, size int64) error {
			info, err := qcow2.Inspect(ctx, r, size)
			if err != nil {
				return err
			}
			f.Disk = diskInfo(info)
			return nil
		})
		var refused *qcow2.Error
		switch {
		case errors.As(err, &refused):
			return nil, &Refusal{Code: refused.Code, Err: fmt.Errorf("%s: %w", f.Ref(), err)}
		case err != nil:
			return nil, err
		}
	}
	return files, nil
}

func diskInfo(info qcow2.Info) *events.DiskInfo {
	return &events.DiskInfo{Version: info.Version, VirtualSize: info.VirtualSize, ClusterSize: info.ClusterSize, Compression: info.Compression,
		Compressed: info.CompressedClusters > 0, Encrypted: info.Encrypted, Snapshots: info.Snapshots}
}
