package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// LinkToIngress gives the complete file of an intake to a job under the given name, by a hard link, or by copying
// where links can't go. The intake stays until DropIntake, so that what records the hand-over may fail in between. Run
// again it does nothing, also when the intake is gone by then. ErrIncomplete before the last byte.
func (s *Store) LinkToIngress(ctx context.Context, session string, n int, job, name string) error {
	err := errors.Join(checkName("session", session), checkFileNumber(n), checkName("job", job), checkName("file", name))
	if err == nil {
		err = s.linkToIngress(ctx, session, n, job, name)
	}
	if err != nil {
		return fmt.Errorf("give intake %s/%d to job %s as %s: %w", session, n, job, name, err)
	}
	return nil
}

func (s *Store) linkToIngress(ctx context.Context, session string, n int, job, name string) error {
	to := filepath.Join(s.jobFolder(job), name)
	st, err := s.readIntake(session, n)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrDataLost) {
		if _, thereErr := statRegular(to); thereErr == nil {
			return s.syncJob(job)
		}
	}
	if err != nil {
		return err
	}
	if !st.complete() {
		return fmt.Errorf("%w: %d of %d bytes", ErrIncomplete, st.offset, st.size)
	}
	from := s.dataPath(session, n)
	data, err := statRegular(from)
	if err != nil {
		return err
	}
	if data.Size() != st.size {
		return &SizeMismatchError{What: "uploaded data", WantBytes: st.size, GotBytes: data.Size()}
	}
	if err := s.makeFolder(s.jobFolder(job)); err != nil {
		return err
	}
	err = s.linkOrCopy(ctx, from, s.jobFolder(job), to, "", st.size, uploadMode)
	if errors.Is(err, fs.ErrExist) {
		// Of an earlier run, then; the name is the job's own.
		there, statErr := statRegular(to)
		if statErr != nil {
			return statErr
		}
		if there.Size() != st.size {
			return &SizeMismatchError{What: "ingress file " + name, WantBytes: st.size, GotBytes: there.Size()}
		}
		err = nil
	}
	if err != nil {
		return err
	}
	return s.syncJob(job)
}

// WriteIngress gives a job a small file that imgsrv made itself, atomically and durably. Run again with other bytes,
// the last ones stand.
func (s *Store) WriteIngress(job, name string, data []byte) error {
	err := errors.Join(checkName("job", job), checkName("file", name))
	if err == nil {
		err = s.makeFolder(s.jobFolder(job))
	}
	if err == nil {
		err = s.replaceFile(filepath.Join(s.jobFolder(job), name), data, uploadMode)
	}
	if err == nil {
		err = s.syncJob(job)
	}
	if err != nil {
		return fmt.Errorf("write ingress %s/%s: %w", job, name, err)
	}
	return nil
}

// OpenIngress opens a job's file for reading; the caller closes it. Not there: fs.ErrNotExist.
func (s *Store) OpenIngress(job, name string) (*os.File, error) {
	if err := errors.Join(checkName("job", job), checkName("file", name)); err != nil {
		return nil, fmt.Errorf("open ingress: %w", err)
	}
	f, _, err := openRegular(filepath.Join(s.jobFolder(job), name))
	if err != nil {
		return nil, fmt.Errorf("open ingress %s/%s: %w", job, name, err)
	}
	return f, nil
}

// RemoveIngress removes all files of a job. A job without any is no error.
func (s *Store) RemoveIngress(job string) error {
	if err := checkName("job", job); err != nil {
		return err
	}
	if err := s.removeFolder(s.jobs(), job); err != nil {
		return fmt.Errorf("remove ingress %s: %w", job, err)
	}
	return nil
}

// IngressJobs lists the jobs that have a folder, in the order of their IDs.
func (s *Store) IngressJobs() ([]Entry, error) {
	entries, err := listActivity(s.jobs())
	if err != nil {
		return nil, fmt.Errorf("list ingress: %w", err)
	}
	return entries, nil
}

// syncJob makes the entries of a job's folder durable, and the entry that names the folder: whoever made it may not
// have come to that.
func (s *Store) syncJob(job string) error {
	if err := s.disk.SyncFolder(s.jobFolder(job)); err != nil {
		return err
	}
	return s.disk.SyncFolder(s.jobs())
}

// CreateIngress opens an empty file of a job for writing: of what imgsrv makes itself and can't hold in memory. A file of that name
// from an earlier run is replaced. The caller writes and closes it; Admit makes it durable.
func (s *Store) CreateIngress(job, name string) (*os.File, error) {
	err := errors.Join(checkName("job", job), checkName("file", name))
	if err == nil {
		err = s.makeFolder(s.jobFolder(job))
	}
	path := filepath.Join(s.jobFolder(job), name)
	if err == nil {
		err = s.removeIfThere(path)
	}
	var f *os.File
	if err == nil {
		f, err = s.disk.Open(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, uploadMode)
	}
	if err != nil {
		return nil, fmt.Errorf("make ingress %s/%s: %w", job, name, err)
	}
	return f, nil
}
