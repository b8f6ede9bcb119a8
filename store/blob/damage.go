package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// DamagedError refuses a blob whose bytes are known not to be those of its digest. None of them is given out.
type DamagedError struct {
	Digest string // 64 hex digits
	Reason string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("blob %s is damaged (%s)", e.Digest, e.Reason)
}

// ErrReplaced means that another file has come to a blob's name since it was read: read it again.
var ErrReplaced = errors.New("the blob's file was replaced meanwhile")

// damage is what the store was told of one blob.
type damage struct {
	sequence uint64
	reason   string // "": not damaged any more
}

// SetDamage tells the store that a blob is damaged, or, with "" as the reason, that it isn't any more. Until then it is not
// opened, and a promotion of its bytes takes the place of what lies there. What is said of a later event (its
// sequence) stands; of one and the same, the damage.
func (s *Store) SetDamage(sha256hex string, sequence uint64, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.damaged[sha256hex]
	switch {
	case !ok && reason == "":
	case sequence < known.sequence, sequence == known.sequence && known.reason != "" && reason == "":
	default:
		s.damaged[sha256hex] = damage{sequence, reason}
	}
}

// ForgetDamage takes back what the store was told of a blob up to an event: its bytes were looked at since, and are right.
func (s *Store) ForgetDamage(sha256hex string, sequence uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.damaged[sha256hex].sequence <= sequence {
		delete(s.damaged, sha256hex)
	}
}

// AskDamage has the store ask about a blob of which it was told nothing before it opens it, for as long as it may not have been told
// all. ask calls SetDamage with what there is to tell, or fails, and then the blob isn't opened. nil: everything was told.
func (s *Store) AskDamage(ask func(sha256hex string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.askDamage = ask
}

// Damaged is a *DamagedError for a blob that the store was told to be damaged. Any other error says that it can't be found out now.
func (s *Store) Damaged(sha256hex string) error {
	told, ask := s.told(sha256hex)
	if told.sequence == 0 && ask != nil {
		if err := ask(sha256hex); err != nil {
			return fmt.Errorf("find out whether blob %s is damaged: %w", sha256hex, err)
		}
		told, _ = s.told(sha256hex)
	}
	if told.reason != "" {
		return &DamagedError{Digest: sha256hex, Reason: told.reason}
	}
	return nil
}

func (s *Store) told(sha256hex string) (damage, func(string) error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.damaged[sha256hex], s.askDamage
}

// isDamaged is Damaged as a yes or no.
func (s *Store) isDamaged(sha256hex string) (bool, error) {
	err := s.Damaged(sha256hex)
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		return true, nil
	}
	return false, err
}

func (s *Store) quarantineFolder() string { return filepath.Join(s.root, "cas", "quarantine") }

// Quarantine moves a blob's file out of the way, where an operator can look at it, and returns its name there; "" where
// there is none. With a rot, only the file that was found rotten is moved: another that has come to its name is ErrReplaced.
func (s *Store) Quarantine(sha256hex string, rot *Rot) (name string, err error) {
	if err := checkDigest(sha256hex); err != nil {
		return "", err
	}
	if name, err = s.quarantine(sha256hex, rot); err != nil {
		return "", fmt.Errorf("quarantine blob %s: %w", sha256hex, err)
	}
	return name, nil
}

func (s *Store) quarantine(sha256hex string, rot *Rot) (string, error) {
	from := s.blobPath(sha256hex)
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	folder := s.quarantineFolder()
	if err := s.makeFolder(folder); err != nil {
		return "", err
	}
	name := sha256hex + "-" + time.Now().UTC().Format("20060102T150405.000000000Z")
	to := filepath.Join(folder, name)
	err := s.disk.Rename(from, to)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if moved, statErr := os.Lstat(to); rot != nil && statErr == nil && !os.SameFile(moved, rot.file) {
		// It came between the reading and the rename. Where yet another has come meanwhile, this one isn't needed.
		if err := s.moveNoReplace(to, from); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		return "", ErrReplaced
	}
	for _, dir := range []string{folder, filepath.Dir(folder), filepath.Dir(from)} {
		if err := s.disk.SyncFolder(dir); err != nil {
			return name, err
		}
	}
	return name, nil
}
