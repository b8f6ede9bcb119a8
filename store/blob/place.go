package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place is how a file is seen only once it is complete: write fills a temporary one in a folder of the same file system, which is
// synced with its mode, and then given its name by move. What fails leaves nothing. The folder of the name is left to the caller to
// sync.
func (s *Store) place(tempFolder string, mode fs.FileMode, write func(temp *os.File) error, move func(temp string) error) error {
	temp, err := s.createTemp(tempFolder)
	if err != nil {
		return err
	}
	err = write(temp)
	if err == nil {
		err = s.disk.Chmod(temp, mode)
	}
	if err == nil {
		err = s.disk.Sync(temp)
	}
	if err == nil {
		err = move(temp.Name()) // still locked, or a sweep might take it away
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		err = errors.Join(err, s.removeIfThere(temp.Name()))
	}
	return err
}

// writeFile puts a small file in place atomically and durably, whatever was there before.
func (s *Store) writeFile(path string, data []byte, mode fs.FileMode) error {
	if err := s.replaceFile(path, data, mode); err != nil {
		return err
	}
	return s.disk.SyncFolder(filepath.Dir(path))
}

// replaceFile is writeFile but for the sync of the folder, which is left to the caller.
func (s *Store) replaceFile(path string, data []byte, mode fs.FileMode) error {
	return s.place(filepath.Dir(path), mode, func(temp *os.File) error {
		_, err := s.disk.WriteAt(temp, data, 0)
		return err
	}, func(temp string) error { return s.disk.Rename(temp, path) })
}

// linkOrCopy gives a complete file another name, which must be free (fs.ErrExist), or puts a copy there where links can't go: through
// a temporary file in tempFolder, which is on the path's file system. Where the file system can share the extents nothing is read;
// else the bytes are hashed on the way and compared with sha256hex, unless that is "". The folder of the path is left to the caller to
// sync.
func (s *Store) linkOrCopy(ctx context.Context, from, tempFolder, to, sha256hex string, sizeBytes int64, mode fs.FileMode) (err error) {
	err = s.disk.Link(from, to)
	if err == nil || !canCopyInstead(err) {
		return err
	}
	src, info, err := openRegular(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if info.Size() != sizeBytes {
		return &SizeMismatchError{What: "file to copy", WantBytes: sizeBytes, GotBytes: info.Size()}
	}
	return s.place(tempFolder, mode, func(temp *os.File) error {
		if s.disk.Reflink(temp, src) {
			return nil
		}
		return s.receive(ctx, temp, src, sha256hex, sizeBytes)
	}, func(temp string) error { return s.moveNoReplace(temp, to) })
}

// receive fills a new file from r, up to its end, and compares what came with the size and, unless that is "", the digest.
func (s *Store) receive(ctx context.Context, f *os.File, r io.Reader, sha256hex string, sizeBytes int64) error {
	sum := sha256.New()
	var hashes []hash.Hash
	if sha256hex != "" {
		hashes = append(hashes, sum)
	}
	n, readErr, writeErr := s.pump(ctx, f, 0, sizeBytes, r, hashes)
	if writeErr != nil {
		return writeErr
	}
	if readErr != nil && !errors.Is(readErr, io.EOF) {
		return readErr
	}
	if n == sizeBytes { // is there more?
		more, err := io.CopyN(io.Discard, r, 1)
		if n += more; err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
	if n != sizeBytes {
		return &SizeMismatchError{What: "what was read", WantBytes: sizeBytes, GotBytes: n}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); len(hashes) > 0 && got != sha256hex {
		return &DigestMismatchError{Want: sha256hex, Got: got}
	}
	return nil
}

// moveNoReplace gives a file its other name, which must be free (else fs.ErrExist), on the same file system (else
// EXDEV, see canCopyInstead). It syncs nothing.
func (s *Store) moveNoReplace(from, to string) error {
	if done, err := s.disk.RenameNoReplace(from, to); done {
		return err
	}
	return s.moveByLink(from, to)
}

// moveByLink is moveNoReplace in two steps. Cut short between them it leaves both names: the old one of a temporary file goes at
// the next [Open], that of a blob in the trash at the next [Store.Recover].
func (s *Store) moveByLink(from, to string) error {
	if err := s.disk.Link(from, to); err != nil {
		return err
	}
	return s.removeIfThere(from)
}

// canCopyInstead reports whether a link or rename failed because of what the file systems are, so that copying the
// bytes reaches the same end. EMLINK is a file with too many names, EPERM a file system without hard links.
func canCopyInstead(err error) bool {
	for _, no := range []unix.Errno{unix.EXDEV, unix.EMLINK, unix.EPERM, unix.ENOTSUP, unix.ENOSYS} {
		if errors.Is(err, no) {
			return true
		}
	}
	return false
}
