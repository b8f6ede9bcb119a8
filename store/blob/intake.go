package blob

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// IntakeSpec says what an intake is going to receive. At most one of Prefix and PrefixState may be given; with either,
// a second SHA-256 that began with the prefix runs over the data: what Incus calls the fingerprint of a split image
// (metadata tarball, then disk).
type IntakeSpec struct {
	SizeBytes   int64
	Prefix      []byte // the bytes; nil: none
	PrefixState []byte // what HashState of a completed intake returned; nil: none
}

// Intake is one file that is being uploaded. It holds no file open and needs no closing; several handles on one file
// may live at once, in several processes. The truth is the state file: an offset and the hash states of just so many
// bytes, saved only after those bytes were synced.
//
// A process that is killed may leave data beyond that offset. Append cuts it off. Hashing it would be quicker for the
// client, but nothing says that the tail is what was sent: after a power failure it can be zeros, and after a failed
// sync the page cache shows bytes that the disk never got. As a long Append saves its state every 128 MiB, the cut
// costs little.
type Intake struct {
	store   *Store
	session string
	n       int

	mu    sync.Mutex // guards state; never held over I/O
	state *intakeState
}

// CreateIntake makes the n-th file (from 0) of a session ready to receive. One that exists with the same
// specification is returned with what it has; with another specification the error is ErrSpec. If its hash state was
// lost, the data is hashed again from its start, for which ctx may be needed. Without the session: fs.ErrNotExist.
func (s *Store) CreateIntake(ctx context.Context, session string, n int, spec IntakeSpec) (*Intake, error) {
	in, err := s.createIntake(ctx, session, n, spec)
	if err != nil {
		return nil, fmt.Errorf("create intake %s/%d: %w", session, n, err)
	}
	return in, nil
}

func (s *Store) createIntake(ctx context.Context, session string, n int, spec IntakeSpec) (_ *Intake, err error) {
	if err := errors.Join(checkName("session", session), checkFileNumber(n)); err != nil {
		return nil, err
	}
	fresh, err := newState(spec)
	if err != nil {
		return nil, err
	}
	in := &Intake{store: s, session: session, n: n}
	f, err := s.disk.Open(s.dataPath(session, n), unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK, uploadMode)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closeData(f)) }()
	if in.state, err = s.existingState(session, n, f, fresh); err != nil || in.state != nil {
		return in, err
	}
	if err := lockData(f); err != nil {
		return nil, err
	}
	// Whoever had the lock before may just have made the state.
	if in.state, err = s.existingState(session, n, f, fresh); err != nil || in.state != nil {
		return in, err
	}
	if in.state, err = s.rehash(ctx, f, fresh); err != nil {
		return nil, err
	}
	return in, s.saveState(s.statePath(session, n), in.state)
}

// existingState returns the state of an intake that is there already and fits the data f and the fresh state, or nil
// if there is none to go on with.
func (s *Store) existingState(session string, n int, f *os.File, fresh *intakeState) (*intakeState, error) {
	st, err := loadState(s.statePath(session, n))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrStateLost):
		return nil, nil
	case err != nil:
		return nil, err
	case st.size != fresh.size || !bytes.Equal(st.start, fresh.start):
		return nil, ErrSpec
	}
	return st, checkData(f, st)
}

// rehash makes the state that fits the data in f, which the caller has locked, by reading all of it. More bytes than
// declared can't have been received; they are cut off.
func (s *Store) rehash(ctx context.Context, f *os.File, fresh *intakeState) (*intakeState, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > fresh.size {
		if err := s.disk.Truncate(f, fresh.size); err != nil {
			return nil, err
		}
	}
	if err := s.disk.SyncData(f); err != nil {
		return nil, err
	}
	hashes, err := fresh.hashes()
	if err != nil {
		return nil, err
	}
	n, err := hashInto(ctx, io.NewSectionReader(f, 0, fresh.size), hashes...)
	if err != nil {
		return nil, fmt.Errorf("hash again: %w", err)
	}
	return fresh.advanced(n, hashes)
}

// OpenIntake finds an intake. Without one the error is fs.ErrNotExist; ErrStateLost and ErrDataLost say that it can't
// go on as it is. It reads the state only and is cheap; another's Append may be running meanwhile.
func (s *Store) OpenIntake(session string, n int) (*Intake, error) {
	if err := errors.Join(checkName("session", session), checkFileNumber(n)); err != nil {
		return nil, fmt.Errorf("open intake: %w", err)
	}
	st, err := s.readIntake(session, n)
	if err != nil {
		return nil, fmt.Errorf("open intake %s/%d: %w", session, n, err)
	}
	return &Intake{store: s, session: session, n: n, state: st}, nil
}

func (s *Store) readIntake(session string, n int) (*intakeState, error) {
	st, err := loadState(s.statePath(session, n))
	info, dataErr := statRegular(s.dataPath(session, n))
	switch {
	case errors.Is(err, fs.ErrNotExist) && dataErr == nil && info.Size() > 0:
		return nil, ErrStateLost
	case err != nil:
		return nil, err
	case errors.Is(dataErr, fs.ErrNotExist):
		return nil, ErrDataLost
	case dataErr != nil:
		return nil, dataErr
	case info.Size() < st.offset:
		return nil, fmt.Errorf("%w: %d of %d bytes", ErrDataLost, info.Size(), st.offset)
	}
	return st, nil
}

func (in *Intake) current() *intakeState {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.state
}

// Offset is how many bytes are received, hashed and synced, as this handle last saw it.
func (in *Intake) Offset() int64 { return in.current().offset }

// Size is how many bytes the complete file has.
func (in *Intake) Size() int64 { return in.current().size }

// Append receives from r at Offset, never more than is missing, and returns by how many bytes Offset grew. These are
// durable, also when an error is returned: r's own, the cause of ctx, or that of the file system (IsFull). An r that
// ends early is no error. One writer at a time: with another Append under way it fails with ErrBusy, on a handle that
// another Append has overtaken with ErrMoved, both without touching the data.
//
// ctx is looked at between reads; what arrived is still saved after it ended.
func (in *Intake) Append(ctx context.Context, r io.Reader) (n int64, err error) {
	began := in.current()
	if began.complete() {
		return 0, nil
	}
	err = in.append(ctx, began, r)
	if n = in.Offset() - began.offset; err != nil {
		return n, fmt.Errorf("append to intake %s/%d at %d: %w", in.session, in.n, began.offset, err)
	}
	return n, nil
}

func (in *Intake) append(ctx context.Context, st *intakeState, r io.Reader) (err error) {
	s := in.store
	f, err := openFile(s.dataPath(in.session, in.n), unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeData(f)) }()
	if err := lockData(f); err != nil {
		return err
	}
	saved, err := loadState(s.statePath(in.session, in.n))
	if err != nil {
		return err
	}
	if !bytes.Equal(saved.encode(), st.encode()) {
		return ErrMoved
	}
	if err := checkData(f, st); err != nil {
		return err
	}
	if err := s.disk.Truncate(f, st.offset); err != nil {
		return err
	}
	hashes, err := st.hashes()
	if err != nil {
		return err
	}
	for !st.complete() {
		got, readErr, writeErr := s.pump(ctx, f, st.offset, min(s.checkpoint, st.size-st.offset), r, hashes)
		if got > 0 {
			if err := s.disk.SyncData(f); err != nil {
				return errors.Join(readErr, writeErr, err)
			}
			next, err := st.advanced(got, hashes)
			if err == nil {
				err = s.saveState(s.statePath(in.session, in.n), next)
			}
			if err != nil {
				return errors.Join(readErr, writeErr, fmt.Errorf("save state: %w", err))
			}
			st = next
			in.mu.Lock()
			in.state = next
			in.mu.Unlock()
		}
		if errors.Is(readErr, io.EOF) {
			return writeErr
		}
		if readErr != nil || writeErr != nil {
			return errors.Join(readErr, writeErr)
		}
	}
	return nil
}

// Sums returns the SHA-256 of the file and, if there is a prefix, that of the prefix followed by the file (else ""),
// as 64 hex digits each. Before the last byte: ErrIncomplete.
func (in *Intake) Sums() (sha256hex, combinedhex string, err error) {
	st := in.current()
	if !st.complete() {
		return "", "", fmt.Errorf("sums of intake %s/%d at %d of %d: %w", in.session, in.n, st.offset, st.size, ErrIncomplete)
	}
	hashes, err := st.hashes()
	if err != nil {
		return "", "", fmt.Errorf("sums of intake %s/%d: %w", in.session, in.n, err)
	}
	sha256hex = hex.EncodeToString(hashes[0].Sum(nil))
	if len(hashes) > 1 {
		combinedhex = hex.EncodeToString(hashes[1].Sum(nil))
	}
	return sha256hex, combinedhex, nil
}

// HashState returns the state of SHA-256 after the whole file, to be the PrefixState of another intake. Before the
// last byte: ErrIncomplete.
func (in *Intake) HashState() ([]byte, error) {
	st := in.current()
	if !st.complete() {
		return nil, fmt.Errorf("hash state of intake %s/%d: %w", in.session, in.n, ErrIncomplete)
	}
	return bytes.Clone(st.sum), nil
}

// DropIntake removes an intake's data and state. One that is not there is no error; one that is being written to is
// ErrBusy. Links in the ingress stay.
func (s *Store) DropIntake(session string, n int) error {
	if err := errors.Join(checkName("session", session), checkFileNumber(n)); err != nil {
		return fmt.Errorf("drop intake: %w", err)
	}
	if err := s.dropIntake(session, n); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop intake %s/%d: %w", session, n, err)
	}
	return nil
}

func (s *Store) dropIntake(session string, n int) (err error) {
	f, err := openFile(s.dataPath(session, n), unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err == nil {
		defer func() { err = errors.Join(err, closeData(f)) }()
		err = lockData(f)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The state goes last: whatever a crash leaves in between is seen as ErrDataLost, never as an intake to resume.
	if err := s.removeIfThere(s.dataPath(session, n)); err != nil {
		return err
	}
	if err := s.removeIfThere(s.statePath(session, n)); err != nil {
		return err
	}
	return s.disk.SyncFolder(s.sessionFolder(session))
}

// lockData makes the caller the only writer of an intake until closeData, or ErrBusy. The lock (flock(2)) belongs to
// the open file: two handles of one process exclude each other too, and it ends with a process that is killed.
func lockData(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return ErrBusy
		default:
			return os.NewSyscallError("flock", err)
		}
	}
}

// closeData gives up the lock, if it is held, and closes. Closing alone would leave the lock to a child process for as
// long as that is between fork and exec, with a copy of every open file.
func closeData(f *os.File) error {
	return errors.Join(os.NewSyscallError("flock", unix.Flock(int(f.Fd()), unix.LOCK_UN)), f.Close())
}

// checkData compares the length of the data with what is known to have been synced.
func checkData(f *os.File, st *intakeState) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return ErrNotRegular
	}
	if info.Size() < st.offset {
		return fmt.Errorf("%w: %d of %d bytes", ErrDataLost, info.Size(), st.offset)
	}
	return nil
}
