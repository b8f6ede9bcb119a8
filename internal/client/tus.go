package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/imgsrv/imgsrv/internal/pause"
)

// The tus protocol, version 1.0.0 (https://tus.io/protocols/resumable-upload).
const (
	tusVersion     = "1.0.0"
	tusContentType = "application/offset+octet-stream"
)

// defaultChunkBytes is how much one PATCH carries. What a request brought is safe when it is answered; after a broken one,
// what the server has kept of it.
const defaultChunkBytes = 64 << 20

// TusFile is a file to be uploaded.
type TusFile struct {
	Target  TusTarget // where the upload is created, unless URL is set
	URL     string    // of an upload that was created before; "" for none
	Content io.ReaderAt
	Size    int64 // bytes

	// ChunkBytes is the most that one PATCH carries; 0 means defaultChunkBytes.
	ChunkBytes int64
	// Progress, if set, is told how many bytes the server has, or has been sent. It goes back when a connection broke.
	Progress func(offsetBytes int64)
	// Status, if set, asks what became of the file otherwise: the server ends an upload's URL once it has the whole file,
	// and the answer that told so may have been lost.
	Status func(ctx context.Context) (UploadFile, error)
}

// UploadFile sends a file by tus from where the server stands to its end. It goes on after broken connections, server
// failures, offsets that differ (409) and uploads in use (423), asking for the offset anew, until the context ends or
// Retry.Limit failures in a row brought nothing forward. A refusal is a *Problem.
func (c *Client) UploadFile(ctx context.Context, f TusFile) error {
	if f.ChunkBytes <= 0 {
		f.ChunkBytes = defaultChunkBytes
	}
	u := &tusUpload{client: c, file: f, url: f.URL, known: -1}
	tries := attempts{Retry: c.retry}
	for {
		before := u.known
		done, err := u.step(ctx)
		if done {
			return nil
		}
		if u.known > before {
			tries.progress()
		}
		if err == nil {
			continue
		}
		if !u.passing(err) {
			done, lookErr := u.ended(ctx, err)
			if done || lookErr != nil {
				return lookErr
			}
		}
		u.located = false
		if err := tries.wait(ctx, err); err != nil {
			return fmt.Errorf("upload: %w", err)
		}
	}
}

// tusUpload is the state of one file's upload, as far as it is known here.
type tusUpload struct {
	client  *Client
	file    TusFile
	url     string // "" until created
	known   int64  // highest offset that the server has confirmed; -1 before the first
	offset  int64  // where the next PATCH begins, if located
	located bool   // offset is the server's
}

// step makes one request. done says that the server has the whole file.
func (u *tusUpload) step(ctx context.Context) (done bool, err error) {
	switch {
	case u.url == "":
		err = u.create(ctx)
	case !u.located:
		err = u.locate(ctx)
	case u.offset < u.file.Size:
		err = u.patch(ctx)
	}
	return err == nil && u.located && u.offset == u.file.Size, err
}

// passing says whether the upload may go on after err.
func (u *tusUpload) passing(err error) bool {
	var p *Problem
	// The offset is another one than we thought. What else is 409 is told by a code.
	if errors.As(err, &p) && p.Status == http.StatusConflict && (p.Code == "" || p.Code == "offset-mismatch") {
		return true
	}
	return transient(err)
}

// ended looks whether the file arrived although the upload's URL refuses. With neither done nor an error, go on.
func (u *tusUpload) ended(ctx context.Context, refusal error) (done bool, err error) {
	var p *Problem
	if !errors.As(refusal, &p) {
		return false, refusal
	}
	switch p.Status {
	case http.StatusNotFound, http.StatusGone, http.StatusConflict, http.StatusForbidden:
	default:
		return false, refusal
	}
	if u.file.Status == nil {
		return false, refusal
	}
	status, err := u.file.Status(ctx)
	switch {
	case err != nil && transient(err):
		return false, nil
	case err != nil:
		return false, refusal
	case status.State == FileComplete || status.State == FilePresent:
		u.report(u.file.Size)
		return true, nil
	case status.TusURL != "" && u.client.URL(status.TusURL) != u.url:
		u.url = u.client.URL(status.TusURL)
		return false, nil
	}
	return false, refusal
}

func (u *tusUpload) create(ctx context.Context) error {
	r, err := u.request(ctx, http.MethodPost, u.file.Target.CreateURL, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Upload-Length", strconv.FormatInt(u.file.Size, 10))
	if u.file.Target.Metadata != "" {
		r.Header.Set("Upload-Metadata", u.file.Target.Metadata)
	}
	answer, err := u.client.send(r)
	if err != nil {
		return err
	}
	defer discard(answer)
	location, err := answer.Location() // resolved against the request
	if err != nil {
		return fmt.Errorf("create the upload: the server's answer has no usable Location: %w", err)
	}
	// The offset is asked for next: a creation that is made again gives the upload that the first one made.
	u.url = u.client.URL(location.String())
	return nil
}

func (u *tusUpload) locate(ctx context.Context) error {
	r, err := u.request(ctx, http.MethodHead, u.url, nil)
	if err != nil {
		return err
	}
	answer, err := u.client.send(r)
	if err != nil {
		return err
	}
	defer discard(answer)
	if length := answer.Header.Get("Upload-Length"); length != "" && length != strconv.FormatInt(u.file.Size, 10) {
		return fmt.Errorf("the upload was begun for a file of %s bytes, this one has %d: abort the session or choose the same file", length, u.file.Size)
	}
	return u.moveTo(answer)
}

func (u *tusUpload) patch(ctx context.Context) error {
	watched, moved, stop := u.client.watch(ctx)
	defer stop()
	length := min(u.file.ChunkBytes, u.file.Size-u.offset)
	start := u.offset
	body := &meteredReader{r: io.NewSectionReader(u.file.Content, start, length), want: length, moved: func(n int64) {
		moved()
		u.report(start + n)
	}}
	r, err := u.request(watched, http.MethodPatch, u.url, body)
	if err != nil {
		return err
	}
	r.ContentLength = length
	r.Header.Set("Content-Type", tusContentType)
	r.Header.Set("Upload-Offset", strconv.FormatInt(start, 10))
	answer, err := u.client.send(r)
	if err != nil {
		if read := body.failed(); read != nil {
			return fmt.Errorf("read the file: %w", read)
		}
		return stalled(ctx, watched, u.client.server(), err)
	}
	defer discard(answer)
	if err := u.moveTo(answer); err != nil {
		return err
	}
	if u.offset <= start {
		return &ConnectionError{Server: u.client.server(), Err: fmt.Errorf("the server took none of the %d bytes sent", length)}
	}
	return nil
}

// moveTo takes the offset from an answer.
func (u *tusUpload) moveTo(answer *http.Response) error {
	offset, err := strconv.ParseInt(answer.Header.Get("Upload-Offset"), 10, 64)
	if err != nil || offset < 0 || offset > u.file.Size {
		u.located = false
		return fmt.Errorf("the server's answer has the Upload-Offset %q, which is none for a file of %d bytes", answer.Header.Get("Upload-Offset"), u.file.Size)
	}
	u.offset, u.located = offset, true
	u.known = max(u.known, offset)
	u.report(offset)
	return nil
}

func (u *tusUpload) report(offset int64) {
	if u.file.Progress != nil {
		u.file.Progress(offset)
	}
}

func (u *tusUpload) request(ctx context.Context, method, ref string, body io.Reader) (*http.Request, error) {
	r, err := u.client.request(ctx, method, ref, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Tus-Resumable", tusVersion)
	return r, nil
}

func (c *Client) server() string { return c.base.Scheme + "://" + c.base.Host }

// WaitUpload asks for a session until it is handed to its job, and gives it. Failures that may pass are waited out.
func (c *Client) WaitUpload(ctx context.Context, ref string) (*Upload, error) {
	wait := poll{}
	for {
		var u *Upload
		err := c.again(ctx, func() (err error) {
			u, err = c.Upload(ctx, ref)
			return err
		})
		if err != nil || u.State != StateUploading {
			return u, err
		}
		if err := wait.next(ctx); err != nil {
			return nil, err
		}
	}
}

// poll waits between looks: 50 ms at first, half as long again each time, a second at most.
type poll struct{ last time.Duration }

func (p *poll) next(ctx context.Context) error {
	p.last = min(max(p.last*3/2, 50*time.Millisecond), time.Second)
	return pause.For(ctx, p.last)
}
