package mirrors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/pause"
)

// remoteFile reads a file of upstream's from any offset on: one request for as long as it is read in order, another (Range)
// where it broke or is read elsewhere. It is for one goroutine.
type remoteFile struct {
	ctx  context.Context //nolint:containedctx // of the run; io.ReaderAt has no room for one
	from *fetcher
	base string
	path string
	size int64

	count func(bytes int) // is told what came; nil: nobody asks

	etag   string // as the first answer had it
	body   io.ReadCloser
	cancel context.CancelFunc
	at     int64
}

// ReadAt fills p, or says why not; what upstream can't give now is asked for again, a few times.
func (f *remoteFile) ReadAt(p []byte, offset int64) (n int, err error) {
	for try := 1; n < len(p); {
		if offset+int64(n) >= f.size {
			return n, io.EOF
		}
		got, err := f.read(p[n:], offset+int64(n))
		if n += got; got > 0 {
			try = 1
		}
		if err == nil {
			continue
		}
		f.close()
		var passing *upstreamError
		if f.ctx.Err() != nil || !errors.As(err, &passing) || passing.gone || try == maxTries {
			return n, err
		}
		if err := pause.For(f.ctx, pause.About(f.from.firstPause<<(try-1))); err != nil {
			return n, err
		}
		try++
	}
	return n, nil
}

func (f *remoteFile) read(p []byte, offset int64) (int, error) {
	if f.body == nil || f.at != offset {
		f.close()
		if err := f.open(offset); err != nil {
			return 0, err
		}
	}
	p = p[:min(len(p), rateChunk)]
	if f.from.bytes != nil {
		if err := f.from.bytes.WaitN(f.ctx, len(p)); err != nil {
			return 0, fmt.Errorf("wait for the rate: %w", err)
		}
	}
	stalled := time.AfterFunc(f.from.stall, f.cancel)
	n, err := f.body.Read(p)
	stopped := stalled.Stop()
	f.at += int64(n)
	f.from.count(n)
	if f.count != nil {
		f.count(n)
	}
	switch {
	case err == nil, errors.Is(err, io.EOF) && f.at == f.size:
		return n, nil
	case !stopped:
		err = fmt.Errorf("no byte came for %s", f.from.stall)
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, &upstreamError{err: fmt.Errorf("%s: at byte %d: %w", f.path, f.at, err)}
}

func (f *remoteFile) open(offset int64) error {
	ctx, cancel := context.WithCancel(f.ctx)
	header := map[string]string{"Accept-Encoding": "identity"}
	if offset > 0 {
		header["Range"] = fmt.Sprintf("bytes=%d-", offset)
		if !strings.HasPrefix(f.etag, "W/") { // a weak one is none for ranges (RFC 9110 13.1.5)
			header["If-Range"] = f.etag
		}
	}
	answer, err := f.from.get(ctx, f.base, f.path, header) //nolint:bodyclose // close closes it
	if err != nil {
		cancel()
		return err
	}
	f.body, f.cancel, f.at = answer.Body, cancel, offset
	f.etag = answer.Header.Get("ETag")
	length := answer.ContentLength
	switch answer.StatusCode {
	case http.StatusOK:
		f.at = 0
	case http.StatusPartialContent:
		if !strings.HasPrefix(answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			return &upstreamError{err: fmt.Errorf("%s: the server gives %q where bytes from %d on were asked for", f.path, answer.Header.Get("Content-Range"), offset), gone: true}
		}
	default:
		return unexpected(f.path, answer)
	}
	if length >= 0 && f.at+length != f.size {
		return &upstreamError{err: fmt.Errorf("%s has %d bytes, listed are %d", f.path, f.at+length, f.size), gone: true}
	}
	return f.skip(offset)
}

// skip passes over what a server without ranges, or of a file that it has written anew, gives once more.
func (f *remoteFile) skip(offset int64) error {
	for f.at < offset {
		stalled := time.AfterFunc(f.from.stall, f.cancel)
		n, err := io.CopyN(io.Discard, f.body, min(rateChunk, offset-f.at))
		stalled.Stop()
		f.at += n
		if err != nil {
			return &upstreamError{err: fmt.Errorf("%s: at byte %d: %w", f.path, f.at, err)}
		}
	}
	return nil
}

func (f *remoteFile) close() {
	if f.body != nil {
		f.cancel()
		_ = f.body.Close()
		f.body = nil
	}
}
