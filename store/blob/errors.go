package blob

import (
	"errors"
	"fmt"
	"syscall"
)

// What a caller may decide on. A thing that is not there is fs.ErrNotExist.
var (
	// ErrName means that a session, job or file name is not one clean path segment.
	ErrName = errors.New("not a clean name")
	// ErrDigest means that a digest is not 64 lower-case hex digits.
	ErrDigest = errors.New("not a sha256 digest in 64 lower-case hex digits")
	// ErrBusy means that another Append, here or in another process, is writing the same intake.
	ErrBusy = errors.New("intake is being written by another")
	// ErrMoved means that the intake has grown since this handle last saw it. Open it again.
	ErrMoved = errors.New("intake has moved on")
	// ErrIncomplete means that the intake does not have all its bytes yet.
	ErrIncomplete = errors.New("intake is incomplete")
	// ErrStateLost means that data is there and its hash state is missing or unreadable. CreateIntake, which is told
	// the specification again, reads the data once and repairs it.
	ErrStateLost = errors.New("hash state is missing or unreadable")
	// ErrDataLost means that the data is shorter than what was synced: the file system lost bytes, or someone cut
	// the file. The intake can only be dropped and begun again.
	ErrDataLost = errors.New("data is shorter than its saved state")
	// ErrSpec means that an intake exists already and was made for another size or another prefix.
	ErrSpec = errors.New("intake exists with another specification")
	// ErrNotRegular means that a symbolic link, folder or device stands where a file is expected, or something else
	// than a folder where a folder is.
	ErrNotRegular = errors.New("not a regular file or folder")
)

// SizeMismatchError says that a file is not as long as it must be. On a promotion that is final: the same bytes will
// never fit.
type SizeMismatchError struct {
	What      string // the file in the store's terms, such as a digest
	WantBytes int64
	GotBytes  int64
}

func (e *SizeMismatchError) Error() string {
	return fmt.Sprintf("%s has %d bytes, expected %d", e.What, e.GotBytes, e.WantBytes)
}

// DigestMismatchError says that bytes copied between file systems do not have the digest they were promoted under.
type DigestMismatchError struct {
	Want string // 64 hex digits
	Got  string // 64 hex digits
}

func (e *DigestMismatchError) Error() string {
	return fmt.Sprintf("bytes have sha256 %s, expected %s", e.Got, e.Want)
}

// IsFull reports whether err comes from a file system or quota without space: worth trying again when someone made
// room, HTTP 507.
func IsFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// IsReadOnly reports whether err comes from a file system that is mounted, or was remounted after an error, read-only.
func IsReadOnly(err error) bool {
	return errors.Is(err, syscall.EROFS)
}
