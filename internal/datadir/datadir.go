// Package datadir makes a node's data folder and keeps it for one process. It knows nothing of what the
// folder holds.
package datadir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Lock is a process's hold on a data folder. The kernel ends it with the process, however that ends.
type Lock struct{ file *os.File }

// InUseError says that another process holds the folder.
type InUseError struct {
	Dir string
	PID int // 0: unknown
}

func (e *InUseError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("data folder %s is in use by another imgsrv: stop it, or choose another folder with --data-dir", e.Dir)
	}
	return fmt.Sprintf("data folder %s is in use by the imgsrv with process id %d: stop it, or choose another folder with --data-dir", e.Dir, e.PID)
}

// Open makes the folder where it is missing, and takes it. The error is an *InUseError where another
// process has it.
func Open(dir string) (*Lock, error) {
	// Others may pass, so that a PostgreSQL of another user reaches its folder inside; each part has its own mode.
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // G301: a PostgreSQL of another user has to pass through
		return nil, fmt.Errorf("make the data folder: %w: choose another one with --data-dir", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the data folder: %w: choose another one with --data-dir", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer file.Close() //nolint:errcheck // nothing was written
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the data folder: %w", err)
		}
		holder := make([]byte, 20)
		n, _ := file.ReadAt(holder, 0) //nolint:errcheck // without it the error names no process
		pid, _ := strconv.Atoi(strings.TrimSpace(string(holder[:n])))
		return nil, &InUseError{Dir: dir, PID: pid}
	}
	if err := errors.Join(file.Truncate(0), writePID(file)); err != nil {
		return nil, errors.Join(fmt.Errorf("write to the data folder: %w", err), file.Close())
	}
	return &Lock{file}, nil
}

func writePID(file *os.File) error {
	_, err := file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// Close gives the folder free.
func (l *Lock) Close() error {
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("unlock the data folder: %w", err)
	}
	return nil
}
