package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Kinds of rot.
const (
	RotDigest     = "digest"     // the bytes have another SHA-256
	RotSize       = "size"       // the file has another length
	RotMissing    = "missing"    // there is no file
	RotUnreadable = "unreadable" // the disk or the file system doesn't give the bytes
)

// Rot is what is wrong with a blob's file.
type Rot struct {
	Kind   string
	Detail string // for people
	// Failing: it is the disk that fails, which is better not written to.
	Failing bool
	file    fs.FileInfo // that was looked at; nil: there is none
}

// ErrNoBlobs means that the store, which should have blobs, has not even a folder for them: another file system may be
// missing in its place. That is no rot.
var ErrNoBlobs = errors.New("the storage has no folder with blobs: is its file system mounted?")

const (
	verifyBytes = 1 << 20 // that are read at once
	directAlign = 4096    // of buffers and offsets of O_DIRECT, on all usual file systems
)

// VerifyBlob reads a blob's file from the disk, past the page cache where the file system can, and compares it with
// digest and size. pace is told how many bytes are going to be read, and may make them wait. read is how many there were.
// A nil rot is a good blob. An error says that it isn't known: ctx has ended, or the storage can't be asked.
func (s *Store) VerifyBlob(
	ctx context.Context, sha256hex string, sizeBytes int64, pace func(ctx context.Context, n int) error,
) (read int64, rot *Rot, err error) {
	if err := checkDigest(sha256hex); err != nil {
		return 0, nil, err
	}
	for try := 0; ; try++ {
		read, rot, err = s.verify(ctx, s.blobPath(sha256hex), sha256hex, sizeBytes, pace)
		if err != nil {
			return read, nil, fmt.Errorf("verify blob %s: %w", sha256hex, err)
		}
		if rot == nil || !rot.Failing || try > 0 { // what a disk can't read once it may read the next time
			return read, rot, nil
		}
	}
}

func (s *Store) verify(ctx context.Context, path, sha256hex string, sizeBytes int64, pace func(context.Context, int) error) (read int64, rot *Rot, err error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, &Rot{Kind: RotMissing, Detail: "there is no file"}, s.anyBlobs()
	case err != nil:
		return unreadable(0, nil, err)
	case !info.Mode().IsRegular():
		return 0, &Rot{Kind: RotUnreadable, Detail: "in place of the file there is something else: " + info.Mode().Type().String(), file: info}, nil
	case info.Size() != sizeBytes:
		return 0, &Rot{Kind: RotSize, Detail: fmt.Sprintf("the file has %d bytes instead of %d", info.Size(), sizeBytes), file: info}, nil
	}
	f, direct, err := openUncached(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, &Rot{Kind: RotMissing, Detail: "there is no file"}, s.anyBlobs()
	}
	if err != nil {
		return unreadable(0, info, err)
	}
	defer f.Close() //nolint:errcheck // only read
	if info, err = f.Stat(); err != nil {
		return unreadable(0, info, err)
	}
	sum, read, err := s.hashUncached(ctx, f, direct, sizeBytes, pace)
	switch {
	case err != nil:
		return unreadable(read, info, err)
	case read != sizeBytes:
		return read, &Rot{Kind: RotSize, Detail: fmt.Sprintf("the file has %d bytes instead of %d", read, sizeBytes), file: info}, nil
	case sum != sha256hex:
		return read, &Rot{Kind: RotDigest, Detail: "the bytes have sha256 " + sum, file: info}, nil
	}
	return read, nil, nil
}

func (s *Store) hashUncached(ctx context.Context, f *os.File, direct bool, sizeBytes int64, pace func(context.Context, int) error) (sum string, read int64, err error) {
	buf := s.aligned.Get().(*[]byte)
	defer s.aligned.Put(buf)
	h := sha256.New()
	for {
		if err := pace(ctx, int(min(int64(len(*buf)), max(sizeBytes-read, 0)))); err != nil {
			return "", read, err
		}
		n, err := s.pread(int(f.Fd()), *buf, read)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL) && direct: // another alignment than that is asked for here
			if direct, err = false, cached(f); err != nil {
				return "", read, err
			}
			continue
		case err != nil:
			return "", read, &fs.PathError{Op: "read", Path: f.Name(), Err: err}
		case n == 0:
			return hex.EncodeToString(h.Sum(nil)), read, nil
		}
		_, _ = h.Write((*buf)[:n]) // a hash never fails
		if !direct {
			forget(f, read, int64(n))
		}
		if read += int64(n); direct && n%directAlign != 0 {
			// A file that ends here; its end can't be asked for at an offset like this.
			return hex.EncodeToString(h.Sum(nil)), read, nil
		}
	}
}

// unreadable tells what speaks against the file from what only speaks against this try.
func unreadable(read int64, info fs.FileInfo, err error) (int64, *Rot, error) {
	for _, no := range failingDisk {
		if errors.Is(err, no) {
			return read, &Rot{Kind: RotUnreadable, Detail: err.Error(), Failing: true, file: info}, nil
		}
	}
	return read, nil, err
}

// failingDisk is how kernels report a medium, or a file system on it, that doesn't give the bytes.
var failingDisk = []unix.Errno{unix.EIO, unix.ENODATA, unix.EILSEQ, unix.EBADMSG, euclean}

// anyBlobs is ErrNoBlobs for a store without any folder of blobs.
func (s *Store) anyBlobs() error {
	entries, err := os.ReadDir(s.sha256Folder())
	if err == nil && len(entries) == 0 || errors.Is(err, fs.ErrNotExist) {
		return ErrNoBlobs
	}
	return err
}

func alignedBuffer() []byte {
	b := make([]byte, verifyBytes+directAlign)
	skip := (directAlign - int(uintptr(unsafe.Pointer(&b[0]))%directAlign)) % directAlign //nolint:gosec // G103: the address is only looked at
	return b[skip : skip+verifyBytes]
}
