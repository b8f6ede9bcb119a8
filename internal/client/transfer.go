package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
)

const sumBytes = sha256.Size

func newSum() hash.Hash { return sha256.New() }

// copyBytes is the size of the pieces in which bytes are moved.
const copyBytes = 256 << 10

// download is one download under way: out holds the first have bytes of the file, and sum is their hash.
type download struct {
	client *Client
	fetch  Fetch
	out    io.Writer
	want   string // hex
	etag   string // of the file; "" if the server gives none
	total  int64  // -1 until known
	have   int64
	tookUp int64 // bytes of have that an earlier download left
	sum    hash.Hash
}

// takeUp hashes what an earlier download left. Without an ETag nothing would tell that it belongs to the same file.
func (d *download) takeUp(ctx context.Context) error {
	file := d.out.(*os.File)
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if d.etag == "" || d.total >= 0 && info.Size() > d.total {
		return d.rewind()
	}
	buffer := make([]byte, copyBytes)
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := file.Read(buffer)
		d.sum.Write(buffer[:n])
		d.have += int64(n)
		if d.fetch.Checking != nil && n > 0 {
			d.fetch.Checking(d.have, info.Size())
		}
		if errors.Is(err, io.EOF) {
			d.tookUp = d.have
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// rewind begins the file anew, which only a file can.
func (d *download) rewind() error {
	file, ok := d.out.(*os.File)
	if !ok {
		if d.have == 0 {
			return nil
		}
		return errors.New("the file changed on the server while it was being written out: begin again")
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := file.Truncate(0); err != nil {
		return err
	}
	d.have, d.tookUp = 0, 0
	d.sum.Reset()
	return nil
}

// run fetches what is missing and checks the whole.
func (d *download) run(ctx context.Context) (Fetched, error) {
	tries := attempts{Retry: d.client.retry}
	d.report()
	for d.total < 0 || d.have < d.total {
		before := d.have
		err := d.get(ctx)
		if err == nil {
			break
		}
		if d.have > before {
			tries.progress()
		}
		if !transient(err) {
			return Fetched{}, err
		}
		if err := tries.wait(ctx, err); err != nil {
			return Fetched{}, fmt.Errorf("download: %w", err)
		}
	}
	got := hex.EncodeToString(d.sum.Sum(nil))
	if got != d.want {
		return Fetched{}, fmt.Errorf("download: %w", &DigestError{Want: d.want, Got: got})
	}
	return Fetched{Size: d.have, SHA256: got}, nil
}

// get makes one request for the bytes from have on and takes what comes.
func (d *download) get(ctx context.Context) error {
	watched, moved, stop := d.client.watch(ctx)
	defer stop()
	r, err := d.client.request(watched, http.MethodGet, d.fetch.URL, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Accept-Encoding", "identity")
	if d.have > 0 {
		if d.etag == "" {
			if err := d.rewind(); err != nil {
				return err
			}
		} else {
			r.Header.Set("Range", "bytes="+strconv.FormatInt(d.have, 10)+"-")
			r.Header.Set("If-Range", d.etag)
		}
	}
	answer, err := d.client.send(r, http.StatusRequestedRangeNotSatisfiable)
	if err != nil {
		return stalled(ctx, watched, d.client.server(), err)
	}
	defer answer.Body.Close() //nolint:errcheck // read to its end, or broken
	if err := d.begin(answer); err != nil {
		return err
	}
	return d.take(ctx, watched, answer.Body, moved)
}

// begin holds the answer's head against what is here already.
func (d *download) begin(answer *http.Response) error {
	if stated := reprDigest(answer.Header); stated != "" && stated != d.want {
		return fmt.Errorf("the file changed on the server: %w", &DigestError{Want: d.want, Got: stated})
	}
	switch answer.StatusCode {
	case http.StatusPartialContent:
		first, total, ok := contentRange(answer.Header.Get("Content-Range"))
		if !ok || first != d.have {
			return fmt.Errorf("the server answered the range from byte %d with %q", d.have, answer.Header.Get("Content-Range"))
		}
		if total >= 0 {
			d.total = total
		}
		return nil
	case http.StatusOK:
		// The whole file: another one by now, or a server without ranges.
		if err := d.rewind(); err != nil {
			return err
		}
		d.etag, d.total = strongETag(answer.Header), answer.ContentLength
		return nil
	case http.StatusRequestedRangeNotSatisfiable:
		if err := d.rewind(); err != nil {
			return err
		}
		return &ConnectionError{Server: d.client.server(), Err: errors.New("the server has fewer bytes than came before")}
	}
	return fmt.Errorf("the server answered a download with %s", answer.Status)
}

func (d *download) take(ctx, watched context.Context, body io.Reader, moved func()) error {
	buffer := make([]byte, copyBytes)
	for {
		n, err := body.Read(buffer)
		if n > 0 {
			moved()
			if d.total >= 0 && d.have+int64(n) > d.total {
				return fmt.Errorf("the server sent more than the %d bytes it announced", d.total)
			}
			// What isn't written whole must not be counted: the next request begins there.
			if written, err := d.out.Write(buffer[:n]); err != nil {
				d.have += int64(written)
				d.sum.Write(buffer[:written])
				return fmt.Errorf("write the download: %w", err)
			}
			d.have += int64(n)
			d.sum.Write(buffer[:n])
			d.report()
		}
		switch {
		case errors.Is(err, io.EOF) && d.total >= 0 && d.have < d.total:
			err = io.ErrUnexpectedEOF
			fallthrough
		case err != nil && !errors.Is(err, io.EOF):
			return stalled(ctx, watched, d.client.server(), &ConnectionError{Server: d.client.server(), Err: err})
		case err != nil:
			if d.total < 0 {
				d.total = d.have
			}
			return nil
		}
	}
}

func (d *download) report() {
	if d.fetch.Progress != nil {
		d.fetch.Progress(d.have, d.total)
	}
}
