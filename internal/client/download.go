package client

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// PartSuffix is added to the name of a file while it is being downloaded.
const PartSuffix = ".part"

// Fetch is a file to be downloaded.
type Fetch struct {
	URL string
	// SHA256 is the digest that the bytes must have, hex. "" means the one in the answer's Repr-Digest (RFC 9530).
	SHA256 string
	// Force writes over a file that exists.
	Force bool
	// Progress, if set, is told how many bytes are there, and how many it will be: -1 until known. It goes back when the
	// download has to begin anew. Checking is the same for the bytes that an earlier download left.
	Progress func(doneBytes, totalBytes int64)
	Checking func(doneBytes, totalBytes int64)
}

// Fetched says what was downloaded.
type Fetched struct {
	Size   int64  // bytes
	SHA256 string // hex
}

// ErrNoDigest says that neither caller nor server stated a digest, so that a download can't be checked.
var ErrNoDigest = errors.New("the server states no SHA-256 to check the download by")

// DigestError says that a download's bytes are not the expected ones.
type DigestError struct{ Want, Got string }

func (e *DigestError) Error() string {
	return fmt.Sprintf("the bytes that came have SHA-256 %s, not %s", e.Got, e.Want)
}

// Download fetches a file to a path. It comes into being whole and checked, or not at all: the bytes are gathered in
// <path>.part, which stays when the download is interrupted, and from which the next one goes on after hashing what is there.
// Broken connections are resumed. A file that exists is an error that wraps fs.ErrExist, unless Force is set; a second
// download to the same path at the same time is refused.
func (c *Client) Download(ctx context.Context, target string, f Fetch) (Fetched, error) {
	if _, err := os.Lstat(target); err == nil && !f.Force {
		return Fetched{}, fmt.Errorf("write %s: %w", target, fs.ErrExist)
	}
	d, err := c.newDownload(ctx, f)
	if err != nil {
		return Fetched{}, err
	}
	part, err := openPart(target + PartSuffix)
	if err != nil {
		return Fetched{}, err
	}
	defer part.Close() //nolint:errcheck // synced before; after a failure the bytes are only a head start
	d.out = part
	if err := d.takeUp(ctx); err != nil {
		return Fetched{}, fmt.Errorf("go on from %s: %w", part.Name(), err)
	}
	fetched, err := d.run(ctx)
	var wrong *DigestError
	if errors.As(err, &wrong) && d.tookUp > 0 {
		// What an earlier download left may have been spoilt: once more from the beginning.
		if err = d.rewind(); err == nil {
			fetched, err = d.run(ctx)
		}
	}
	if errors.As(err, &wrong) {
		return Fetched{}, errors.Join(err, os.Remove(part.Name()))
	}
	if err != nil {
		return Fetched{}, err
	}
	if err := part.Sync(); err != nil {
		return Fetched{}, fmt.Errorf("sync %s: %w", part.Name(), err)
	}
	return fetched, place(part.Name(), target, f.Force)
}

// DownloadTo writes a file's bytes to w as they come, over broken connections too. They are checked only at the end, where a
// *DigestError says that what was written is not to be used.
func (c *Client) DownloadTo(ctx context.Context, w io.Writer, f Fetch) (Fetched, error) {
	d, err := c.newDownload(ctx, f)
	if err != nil {
		return Fetched{}, err
	}
	// Not the writer itself: standard output may be a file, but it is not ours to begin anew.
	d.out = struct{ io.Writer }{w}
	return d.run(ctx)
}

// newDownload asks for what the file is.
func (c *Client) newDownload(ctx context.Context, f Fetch) (*download, error) {
	d := &download{client: c, fetch: f, want: strings.ToLower(f.SHA256), total: -1, sum: newSum()}
	var answer *http.Response
	err := c.firstAgain(ctx, func() error {
		r, err := c.request(ctx, http.MethodHead, f.URL, nil)
		if err != nil {
			return err
		}
		got, err := c.send(r)
		if err != nil {
			return err
		}
		discard(got)
		answer = got // for its header
		return nil
	})
	if err != nil {
		return nil, err
	}
	d.etag = strongETag(answer.Header)
	d.total = answer.ContentLength
	if stated := reprDigest(answer.Header); stated != "" {
		if d.want != "" && d.want != stated {
			return nil, fmt.Errorf("download: %w", &DigestError{Want: d.want, Got: stated})
		}
		d.want = stated
	}
	if d.want == "" {
		return nil, ErrNoDigest
	}
	return d, nil
}

// place gives the finished part its name.
func place(part, target string, force bool) error {
	if !force {
		// A link, unlike a rename, never replaces what came to be there meanwhile.
		err := os.Link(part, target)
		if err == nil {
			return os.Remove(part)
		}
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("write %s: %w", target, fs.ErrExist)
		}
		// File systems without hard links.
		if _, err := os.Lstat(target); err == nil {
			return fmt.Errorf("write %s: %w", target, fs.ErrExist)
		}
	}
	if err := os.Rename(part, target); err != nil {
		return fmt.Errorf("name the finished download: %w", err)
	}
	return nil
}

// openPart opens or makes the part and locks it until it is closed.
func openPart(name string) (*os.File, error) {
	part, err := os.OpenFile(filepath.Clean(name), os.O_RDWR|os.O_CREATE, 0o644) //nolint:gosec // as any downloaded file
	if err != nil {
		return nil, fmt.Errorf("open the file for the download: %w", err)
	}
	if err := lock(part); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s, perhaps another download writes it: %w", name, err), part.Close())
	}
	// Another download may have finished between opening and locking, and given the file its name.
	opened, err := part.Stat()
	if err != nil {
		return nil, errors.Join(err, part.Close())
	}
	if there, err := os.Stat(name); err != nil || !os.SameFile(there, opened) {
		return nil, errors.Join(fmt.Errorf("another download just finished %s", name), part.Close())
	}
	return part, nil
}

// strongETag is the answer's ETag, "" where it is weak or absent: If-Range takes only strong ones (RFC 9110, 13.1.5).
func strongETag(h http.Header) string {
	etag := h.Get("ETag")
	if strings.HasPrefix(etag, "W/") {
		return ""
	}
	return etag
}

// reprDigest is the sha-256 of a Repr-Digest field (RFC 9530, a dictionary of byte sequences) as hex, "" where there is none.
func reprDigest(h http.Header) string {
	for _, field := range h.Values("Repr-Digest") {
		for member := range strings.SplitSeq(field, ",") {
			key, value, _ := strings.Cut(strings.TrimSpace(member), "=")
			if !strings.EqualFold(key, "sha-256") || len(value) < 2 || value[0] != ':' {
				continue
			}
			encoded, _, closed := strings.Cut(value[1:], ":")
			sum, err := base64.StdEncoding.DecodeString(encoded)
			if closed && err == nil && len(sum) == sumBytes {
				return hex.EncodeToString(sum)
			}
		}
	}
	return ""
}

// contentRange reads "bytes first-last/total" (RFC 9110, 14.4); total is -1 where it is "*".
func contentRange(value string) (first, total int64, ok bool) {
	rest, ok := strings.CutPrefix(value, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, size, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, false
	}
	total = -1
	if size != "*" {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil || n < 0 {
			return 0, 0, false
		}
		total = n
	}
	from, to, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, false
	}
	first, err := strconv.ParseInt(from, 10, 64)
	last, lastErr := strconv.ParseInt(to, 10, 64)
	if err != nil || lastErr != nil || first < 0 || last < first || total >= 0 && last >= total {
		return 0, 0, false
	}
	return first, total, true
}
