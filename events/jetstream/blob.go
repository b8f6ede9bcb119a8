package jetstream

import (
	"context"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/pause"
)

const (
	// collectPatience is how long a collection may take before whoever needs the blob goes ahead: the process that
	// collected may be dead. Going ahead is safe, but a file may be away until somebody recovers it.
	collectPatience = time.Minute
	collectPoll     = 20 * time.Millisecond
)

// SettledBlob is [Log.Blob] for who needs the blob: it waits while it is being collected, which takes milliseconds, up to a
// minute, here or since the fact that began it.
func (l *Log) SettledBlob(ctx context.Context, digest events.Digest) (events.Current[events.Blob], error) {
	began := time.Now()
	for {
		current, err := l.Blob(ctx, digest)
		if err != nil || current.State.State != events.BlobIsCollecting ||
			time.Since(began) > collectPatience || l.clock().Sub(current.Event.Time) > collectPatience {
			return current, err
		}
		if pause.For(ctx, collectPoll) != nil {
			return current, ctx.Err()
		}
	}
}
