package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const sessionMarker = "session"

// Entry is one upload session or one job's ingress, for those who look for what is to expire.
type Entry struct {
	ID           string
	LastActivity time.Time // UTC; when a file of it was last written, made or removed
}

// CreateSession makes the folder of an upload session, durably. One that exists is left as it is.
func (s *Store) CreateSession(session string) error {
	if err := checkName("session", session); err != nil {
		return err
	}
	dir := s.sessionFolder(session)
	if err := s.makeFolder(dir); err != nil {
		return fmt.Errorf("create session %s: %w", session, err)
	}
	marker := filepath.Join(dir, sessionMarker)
	if _, err := os.Lstat(marker); err != nil {
		if err := s.writeFile(marker, nil, uploadMode); err != nil {
			return fmt.Errorf("create session %s: %w", session, err)
		}
	}
	if err := s.disk.SyncFolder(s.uploads()); err != nil {
		return fmt.Errorf("create session %s: %w", session, err)
	}
	return nil
}

// Sessions lists the upload sessions in the order of their IDs, half-made and half-removed ones too.
func (s *Store) Sessions() ([]Entry, error) {
	entries, err := listActivity(s.uploads())
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	return entries, nil
}

// SessionActivity is when something of a session's folder changed last. Without the session: fs.ErrNotExist.
func (s *Store) SessionActivity(session string) (time.Time, error) {
	if err := checkName("session", session); err != nil {
		return time.Time{}, err
	}
	last, err := activity(s.sessionFolder(session))
	if err != nil {
		return time.Time{}, fmt.Errorf("look at session %s: %w", session, err)
	}
	return last, nil
}

// Received says how many bytes of each of a session's files lie in its folder, by the file's number: those of which
// there are none are absent. It counts what takes room on the disk, also where it isn't synced yet. Without the session:
// fs.ErrNotExist.
func (s *Store) Received(session string) (map[int]int64, error) {
	if err := checkName("session", session); err != nil {
		return nil, err
	}
	files, err := os.ReadDir(s.sessionFolder(session))
	if err != nil {
		return nil, fmt.Errorf("look at session %s: %w", session, err)
	}
	received := map[int]int64{}
	for _, file := range files {
		n, err := strconv.Atoi(file.Name())
		if err != nil {
			continue // the marker, a state, a temporary file
		}
		info, err := file.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // handed over meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("look at session %s: %w", session, err)
		}
		received[n] = info.Size()
	}
	return received, nil
}

// RemoveSession removes a session with all its partial uploads. One that is not there is no error. It wins over a
// running Append, which then fails with fs.ErrNotExist.
func (s *Store) RemoveSession(session string) error {
	if err := checkName("session", session); err != nil {
		return err
	}
	if err := s.removeFolder(s.uploads(), session); err != nil {
		return fmt.Errorf("remove session %s: %w", session, err)
	}
	return nil
}

// removeFolder takes a folder out of sight with one rename, so nobody can put files into a folder that is being
// emptied, and then removes it.
func (s *Store) removeFolder(parent, name string) error {
	gone := filepath.Join(parent, gonePrefix+name)
	if err := s.disk.RemoveAll(gone); err != nil { // of an attempt that was cut short
		return err
	}
	err := s.disk.Rename(filepath.Join(parent, name), gone)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if err := s.disk.RemoveAll(gone); err != nil {
			return err
		}
	}
	return s.disk.SyncFolder(parent)
}

// listActivity lists the folders in parent with the newest time found in each. A hard-linked file keeps the time of
// its upload, so the folder's own time counts too.
func listActivity(parent string) ([]Entry, error) {
	folders, err := os.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	var found []Entry
	for _, folder := range folders {
		if !folder.IsDir() || strings.HasPrefix(folder.Name(), ".") {
			continue
		}
		last, err := activity(filepath.Join(parent, folder.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found = append(found, Entry{ID: folder.Name(), LastActivity: last})
	}
	return found, nil
}

// activity is when a folder or a file in it changed last.
func activity(folder string) (time.Time, error) {
	info, err := os.Lstat(folder)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s: %w", folder, ErrNotRegular)
	}
	if err != nil {
		return time.Time{}, err
	}
	last := info.ModTime()
	files, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return time.Time{}, err
	}
	for _, file := range files {
		info, err := file.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return time.Time{}, err
		}
		if info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last.UTC(), nil
}
