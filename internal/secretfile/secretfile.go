// Package secretfile keeps a secret of the server in a file that only its owner may read. It knows nothing of what the secret
// is for.
package secretfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
	return write(path, secret, os.Rename)
}

// keep writes a file that isn't there yet; one that came meanwhile is an error that wraps fs.ErrExist.
func keep(path string, secret []byte) error {
	return write(path, secret, func(from, to string) error {
		// A link, unlike a rename, never replaces a file.
		err := os.Link(from, to)
		if err == nil || errors.Is(err, fs.ErrExist) {
			return err
		}
		return os.Rename(from, to) // file systems without hard links
	})
}

// write makes a file with mode 0600 beside its place, and has it put there once it is whole.
func write(path string, secret []byte, put func(from, to string) error) error {
	folder := filepath.Dir(path)
	f, err := os.CreateTemp(folder, ".secret-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // a second name of the file, or gone after a rename
	_, err = f.Write(secret)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := put(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
