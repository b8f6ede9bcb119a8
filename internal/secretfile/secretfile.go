// Package secretfile keeps a secret of the server in a file that only its owner may read. It knows nothing of what the secret
// is for.
package secretfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/imgsrv/imgsrv/internal/faults"
)

// LoadOrMake reads the secret in a file. Where there is no file, make gives the secret, which is then kept there with mode 0600,
// whole and synced before anybody hears of it, or not at all; made tells so. Of several processes that find no file at the same
// time one makes it, and the others read that one's.
func LoadOrMake(path string, make func() ([]byte, error)) (secret []byte, made bool, err error) {
	secret, err = os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, false, err
	}
	if secret, err = make(); err != nil {
		return nil, false, fmt.Errorf("make %s: %w", path, err)
	}
	err = keep(path, secret)
	if errors.Is(err, fs.ErrExist) { // somebody was faster
		secret, err = os.ReadFile(path)
		return secret, false, err
	}
	if err != nil {
		return nil, false, fmt.Errorf("keep %s: %w", path, err)
	}
	return secret, true, nil
}

// Replace keeps a secret in the place of what the file has, whole and synced, or not at all.
func Replace(path string, secret []byte) error {
	return write(path, secret, 0o600, os.Rename)
}

// ReplacePublic is Replace for what stands beside a secret and everybody may read, as a certificate beside its key.
func ReplacePublic(path string, data []byte) error {
	return write(path, data, 0o644, os.Rename)
}

// Sweep removes from a folder what was being written when a process died. What a living one writes stays: it is locked. A folder that
// isn't there has nothing.
func Sweep(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for half-written secrets: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) || !e.Type().IsRegular() {
			continue
		}
		if err := removeDead(filepath.Join(folder, e.Name())); err != nil {
			return fmt.Errorf("remove a half-written secret: %w", err)
		}
	}
	return nil
}

func removeDead(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := lock(f); errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return err
	}
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lock holds a temporary file while it is open.
func lock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

// tempPrefix marks files that aren't yet what they will be named.
const tempPrefix = ".secret-"

// keep writes a file that isn't there yet; one that came meanwhile is an error that wraps fs.ErrExist.
func keep(path string, secret []byte) error {
	return write(path, secret, 0o600, func(from, to string) error {
		// A link, unlike a rename, never replaces a file.
		err := os.Link(from, to)
		if err == nil || errors.Is(err, fs.ErrExist) {
			return err
		}
		return os.Rename(from, to) // file systems without hard links
	})
}

// write makes a file beside its place, and has it put there once it is whole.
func write(path string, secret []byte, mode fs.FileMode, put func(from, to string) error) error {
	folder := filepath.Dir(path)
	faults.Before("make secret", path)
	f, err := os.CreateTemp(folder, tempPrefix+"*") // mode 0600
	if err != nil {
		return err
	}
	if err := lock(f); err != nil {
		return errors.Join(err, f.Close())
	}
	defer os.Remove(f.Name()) //nolint:errcheck // a second name of the file, or gone after a rename
	_, err = f.Write(secret)
	err = errors.Join(err, f.Chmod(mode), f.Sync())
	faults.Before("keep secret", path)
	if err == nil {
		err = put(f.Name(), path) // still locked, or Sweep might take it away
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	faults.After("keep secret", path)
	return errors.Join(dir.Sync(), dir.Close())
}
