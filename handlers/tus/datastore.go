package tus

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/tus/tusd/v2/pkg/handler"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/problem"
	"github.com/imgsrv/imgsrv/internal/faults"
	"github.com/imgsrv/imgsrv/internal/tusname"
	"github.com/imgsrv/imgsrv/store/blob"
)

// dataStore is imgsrv's intake as tusd sees it. tusd's own file store rewrites its info file in place and
// never syncs; and it has no place for hash states.
type dataStore struct{ h *Handler }

func (s dataStore) NewUpload(ctx context.Context, info handler.FileInfo) (handler.Upload, error) {
	session, n, ok := parseUploadID(info.ID)
	if !ok {
		return nil, handler.ErrNotFound
	}
	intake, err := s.h.store.OpenIntake(session, n)
	if err == nil {
		return &tusUpload{h: s.h, session: session, n: n, intake: intake}, nil
	}
	if errors.Is(err, blob.ErrDataLost) { // it can only be begun again
		if err := s.h.store.DropIntake(session, n); err != nil {
			return nil, s.h.tusError(ctx, err)
		}
	}
	upload, err := s.h.log.Upload(ctx, session)
	if err != nil {
		return nil, s.h.tusError(ctx, err)
	}
	ref, file, ok := upload.State.FileAt(n)
	if !ok {
		return nil, handler.ErrNotFound
	}
	spec, err := s.h.intakeSpec(&upload.State, ref, file)
	if err != nil {
		return nil, s.h.tusError(ctx, err)
	}
	intake, err = s.h.store.CreateIntake(ctx, session, n, spec)
	if errors.Is(err, fs.ErrNotExist) {
		// The session's folder went with an expiry that is being recorded now, or by hand.
		return nil, s.h.tusError(ctx, events.Refuse(events.CodeSessionClosed, "upload session %s takes no more files", session))
	}
	if err != nil {
		return nil, s.h.tusError(ctx, err)
	}
	return &tusUpload{h: s.h, session: session, n: n, intake: intake}, nil
}

func (s dataStore) GetUpload(ctx context.Context, id string) (handler.Upload, error) {
	session, n, ok := parseUploadID(id)
	if !ok {
		return nil, handler.ErrNotFound
	}
	intake, err := s.h.store.OpenIntake(session, n)
	switch {
	case err == nil:
		return &tusUpload{h: s.h, session: session, n: n, intake: intake}, nil
	case errors.Is(err, blob.ErrName):
		return nil, handler.ErrNotFound
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, blob.ErrDataLost) && !errors.Is(err, blob.ErrStateLost):
		return nil, s.h.tusError(ctx, err)
	}
	// No bytes here: the file may be complete, and its fact tells; a crash may have left a part of what was to be removed then. Else
	// the upload was never created, or lost its bytes: a creation repairs it, or begins again.
	upload, err := s.h.log.Upload(ctx, session)
	if err != nil {
		return nil, s.h.tusError(ctx, err)
	}
	_, file, ok := upload.State.FileAt(n)
	switch {
	case !ok:
		return nil, handler.ErrNotFound
	case file.State == events.FileComplete:
		return &tusUpload{h: s.h, session: session, n: n, completeSize: file.Size}, nil
	case upload.State.State != events.SessionOpen:
		return nil, s.h.tusError(ctx, events.Refuse(events.CodeSessionClosed, "upload session %s is %s", session, upload.State.State))
	}
	return nil, handler.ErrNotFound
}

func (s dataStore) AsTerminatableUpload(upload handler.Upload) handler.TerminatableUpload {
	return upload.(*tusUpload)
}

func (s dataStore) AsLengthDeclarableUpload(upload handler.Upload) handler.LengthDeclarableUpload {
	return upload.(*tusUpload)
}

// tusUpload is one file; intake is nil for a file that is complete and recorded.
type tusUpload struct {
	h            *Handler
	session      string
	n            int
	intake       *blob.Intake
	completeSize int64
}

// GetInfo also picks up a file that is full and unrecorded, so that an answer with the full offset always
// means a recorded file.
func (u *tusUpload) GetInfo(ctx context.Context) (handler.FileInfo, error) {
	info := handler.FileInfo{ID: tusname.ID(u.session, u.n)}
	if u.intake == nil {
		info.Size, info.Offset = u.completeSize, u.completeSize
		return info, nil
	}
	info.Size, info.Offset = u.intake.Size(), u.intake.Offset()
	if info.Offset == info.Size {
		if err := u.h.finish(ctx, u.session, u.n); err != nil {
			return info, u.h.tusError(ctx, err)
		}
	}
	return info, nil
}

func (u *tusUpload) WriteChunk(ctx context.Context, offset int64, src io.Reader) (int64, error) {
	if u.intake == nil {
		return 0, nil
	}
	if offset != u.intake.Offset() {
		return 0, handler.ErrMismatchOffset
	}
	faults.Point("before receive", "")
	n, err := u.intake.Append(ctx, src)
	faults.Point("after receive", "")
	if err != nil {
		return n, u.h.tusError(ctx, err)
	}
	return n, nil
}

// FinishUpload has nothing to do: beforeFinish does it, where an error reaches the client.
func (u *tusUpload) FinishUpload(context.Context) error { return nil }

func (u *tusUpload) GetReader(context.Context) (io.ReadCloser, error) {
	return nil, handler.ErrNotImplemented
}

func (u *tusUpload) Terminate(ctx context.Context) error {
	if err := u.h.store.DropIntake(u.session, u.n); err != nil {
		return u.h.tusError(ctx, err)
	}
	return nil
}

// DeclareLength is called for a length that a creation left open; the session has declared it.
func (u *tusUpload) DeclareLength(ctx context.Context, length int64) error {
	if u.intake != nil && length != u.intake.Size() {
		return u.h.tusError(ctx, problem.New(events.CodeFileMismatch, "the length is not the declared one"))
	}
	return nil
}
