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

// keep writes a file that isn't there yet; one that came meanwhile is an error that wraps fs.ErrExist.
func keep(path string, secret []byte) error {
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
	// A link, unlike a rename, never replaces a file.
	if err := os.Link(f.Name(), path); errors.Is(err, fs.ErrExist) {
		return err
	} else if err != nil { // file systems without hard links
		if err := os.Rename(f.Name(), path); err != nil {
			return err
		}
	}
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
