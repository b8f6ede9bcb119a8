// Package vault keeps files by name in a folder or in a bucket of S3, for backups: whole and durable, or not there at all. It knows
// neither what the files mean nor which of them belong together.
package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Vault is a place for files. Names are clean slash-separated paths without a segment that begins with a dot. Put and Open may be
// called at once from several goroutines.
type Vault interface {
	// Put keeps size bytes under a name, in the place of what was there. sha256hex is the SHA-256 that they have to have; "" for
	// none. Other bytes are a [*MismatchError], and then nothing is kept.
	Put(ctx context.Context, name string, size int64, sha256hex string, r io.Reader) error
	// Open reads a file; the caller closes it. One that isn't there is fs.ErrNotExist.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// List gives all files below a folder to each, in any order, with their sizes in bytes. A folder that isn't there has none.
	List(ctx context.Context, folder string, each func(name string, size int64) error) error
	// Sync returns once all that was put survives the loss of power.
	Sync(ctx context.Context) error
	// String names the place for people, without credentials.
	String() string
	Close() error
}

// Options say how a place is reached.
type Options struct {
	// ReadOnly: nothing is put, and the place has to be there.
	ReadOnly bool
	// S3Endpoint is the URL of an S3 server that isn't Amazon's; "" for what the environment says (AWS_ENDPOINT_URL).
	S3Endpoint string
}

const schemeS3 = "s3://"

// IsS3 says whether a place is in a bucket.
func IsS3(place string) bool { return strings.HasPrefix(place, schemeS3) }

// Open opens a place: a folder, which is made where it is missing, or s3://BUCKET/PREFIX.
func Open(ctx context.Context, place string, o Options) (Vault, error) {
	if IsS3(place) {
		return openS3(ctx, place, o)
	}
	return openFolder(place, o.ReadOnly)
}

// MismatchError says that the bytes that were to be kept are not those that were announced.
type MismatchError struct {
	Name      string
	WantBytes int64
	GotBytes  int64
	Want, Got string // SHA-256, 64 hex digits; "" where only the sizes differ
}

func (e *MismatchError) Error() string {
	if e.WantBytes != e.GotBytes {
		return fmt.Sprintf("%s: %d bytes came, announced were %d", e.Name, e.GotBytes, e.WantBytes)
	}
	return fmt.Sprintf("%s: the bytes have sha256 %s, announced was %s", e.Name, e.Got, e.Want)
}

// checker is the reader of [Check].
type checker struct {
	name string
	r    io.Reader
	sum  hash.Hash
	want string // "": any
	size int64
	got  int64
}

// checked reads exactly the announced bytes: the end of the file comes only where they are the right ones, else a [*MismatchError].
func checked(name string, size int64, sha256hex string, r io.Reader) io.Reader {
	return &checker{name: name, r: r, sum: sha256.New(), want: sha256hex, size: size}
}

func (c *checker) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.got += int64(n)
	if c.got > c.size {
		return n, &MismatchError{Name: c.name, WantBytes: c.size, GotBytes: c.got}
	}
	_, _ = c.sum.Write(p[:n]) // a hash never fails
	if errors.Is(err, io.EOF) {
		if bad := c.verdict(); bad != nil {
			return n, bad
		}
	}
	return n, err
}

func (c *checker) verdict() error {
	got := hex.EncodeToString(c.sum.Sum(nil))
	if c.got != c.size {
		return &MismatchError{Name: c.name, WantBytes: c.size, GotBytes: c.got}
	}
	if c.want != "" && c.want != got {
		return &MismatchError{Name: c.name, WantBytes: c.size, GotBytes: c.got, Want: c.want, Got: got}
	}
	return nil
}

func checkName(name string) error {
	if !fs.ValidPath(name) || name == "." || strings.HasPrefix(name, ".") || strings.Contains(name, "/.") || path.Clean(name) != name {
		return fmt.Errorf("%q is no name of a file in a backup", name)
	}
	return nil
}
