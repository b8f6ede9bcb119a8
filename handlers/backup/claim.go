package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/secretfile"
)

// unfinishedName marks a data folder whose restore isn't finished: the server doesn't start on it.
const unfinishedName = "restore.unfinished"

// ErrNotEmpty says that what is to be restored into holds something already.
var ErrNotEmpty = errors.New("it isn't empty: a backup is restored into a new data folder")

// unfinished says which restore a data folder is waiting for the rest of.
type unfinished struct {
	Place    string          `json:"place"`
	Stream   string          `json:"stream"`
	Sequence events.Sequence `json:"sequence"`
	BegunAt  time.Time       `json:"begun_at"`
}

// CheckFinished refuses a data folder whose restore isn't finished.
func CheckFinished(dataDir string) error {
	u, err := readUnfinished(dataDir)
	if err != nil || u == nil {
		return err
	}
	return fmt.Errorf("the restore into %s isn't finished: give it again, and it goes on: imgsrv restore %s --data-dir %s", dataDir, u.Place, dataDir)
}

func readUnfinished(dataDir string) (*unfinished, error) {
	text, err := os.ReadFile(filepath.Join(dataDir, unfinishedName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for an unfinished restore: %w", err)
	}
	var u unfinished
	if err := json.Unmarshal(text, &u); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dataDir, unfinishedName), err)
	}
	return &u, nil
}

// claimFolders marks empty folders as those of a restore; folders that wait for the rest of the same one stay as they are.
func claimFolders(want unfinished, before *unfinished, dataDir, storageDir string) error {
	if before != nil {
		if before.Stream != want.Stream || before.Sequence != want.Sequence {
			return fmt.Errorf("restore into %s: another restore was begun there, of stream %s up to event %d: finish that one, or remove the folder", dataDir, before.Stream, before.Sequence)
		}
		return nil
	}
	if err := secretfile.Sweep(dataDir); err != nil { // of a restore that was killed as it began
		return err
	}
	for _, dir := range []string{dataDir, storageDir} {
		if err := checkEmpty(dir); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(want, "", "  ")
	if err == nil {
		err = secretfile.Replace(filepath.Join(dataDir, unfinishedName), append(text, '\n'))
	}
	if err != nil {
		return fmt.Errorf("mark %s as being restored: %w", dataDir, err)
	}
	return nil
}

func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look into %s: %w", dir, err)
	}
	for _, entry := range entries {
		if entry.Name() != "lock" { // ours
			return fmt.Errorf("restore into %s: %w; it holds %s", dir, ErrNotEmpty, entry.Name())
		}
	}
	return nil
}

// release ends a restore: the folder is a server's.
func release(dataDir string) error {
	err := os.Remove(filepath.Join(dataDir, unfinishedName))
	if err == nil {
		var dir *os.File
		if dir, err = os.Open(dataDir); err == nil {
			err = errors.Join(dir.Sync(), dir.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("end the restore: %w", err)
	}
	return nil
}
