package api

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
)

// States of an upload session as clients see them: those of the session until its files are there, then those
// of its job.
const (
	stateUploading  = "uploading"
	stateQueued     = "queued"
	statePublishing = "publishing"
	statePublished  = "published"
	stateFailed     = "failed"
	stateAborted    = "aborted"
	stateExpired    = "expired"
)

type idInput struct {
	ID string `path:"id" doc:"UUID" example:"0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"`
}

type uploadOutput struct {
	Sequence uint64 `header:"Imgsrv-Sequence" doc:"Sequence of the session's last event"`
	Body     uploadStatus
}

// uploadStatus is an upload session.
type uploadStatus struct {
	ID         string       `json:"id" format:"uuid"`
	State      string       `json:"state" enum:"uploading,queued,publishing,published,failed,aborted,expired"`
	Image      string       `json:"image" example:"debian-bookworm"`
	Version    string       `json:"version" example:"12.5.0"`
	Files      []fileStatus `json:"files" nullable:"false"`
	JobURL     string       `json:"job_url,omitempty" format:"uri" doc:"The publication job, once every file is there"`
	VersionURL string       `json:"version_url,omitempty" format:"uri" doc:"The version, once it is published"`
	Error      *jobError    `json:"error,omitempty" doc:"Why the publication failed"`
	Reason     string       `json:"reason,omitempty" doc:"Why the session was aborted"`
	ExpiresAt  *time.Time   `json:"expires_at,omitempty" doc:"When the session ends unless bytes arrive"`
}

// fileStatus is one declared file.
type fileStatus struct {
	Variant string `json:"variant" doc:"attachments: the file is an attachment, and format its name" example:"amd64.virtual-machine.default"`
	Format  string `json:"format" example:"disk.qcow2"`
	State   string `json:"state" enum:"pending,present,complete"`
	Offset  int64  `json:"offset" doc:"Bytes that are safe on the server"`
	Size    int64  `json:"size" doc:"Declared length in bytes"`
	SHA256  string `json:"sha256,omitempty" doc:"Of the bytes once they are there, before that as declared"`
	TUSURL  string `json:"tus_url,omitempty" format:"uri" doc:"The tus upload under way"`
}

// uploads registers GET /api/uploads/{id}: 200, 401 a wrong token, 404, 503; and DELETE: 200 with the session as
// it is then, 401, 403, 404, 409 it is being published or has ended, 503.
func (s *server) uploads() {
	read(s, huma.Operation{
		OperationID: "get-upload", Path: pathUpload, Tags: []string{tagPublish}, Summary: "Follow an upload session",
		Description: "Read from the event log: works while the database is away. `published` is said once the version can be read.",
		Errors:      []int{http.StatusNotFound},
	}, nil, func(ctx context.Context, in *idInput) (*uploadOutput, error) {
		upload, err := s.visibleUpload(ctx, in.ID)
		if err != nil {
			return nil, err
		}
		return s.uploadAnswer(ctx, upload)
	})
	write(s, events.RolePublisher, huma.Operation{
		OperationID: "abort-upload", Method: http.MethodDelete, Path: pathUpload, DefaultStatus: http.StatusOK, Tags: []string{tagPublish},
		Summary:     "Abort an upload session",
		Description: "Ends an open session and frees its version. A session whose files are all there is being published and can't be aborted. Aborting twice is once.",
		Errors:      []int{http.StatusNotFound, http.StatusConflict},
	}, s.abortUpload)
}

func (s *server) abortUpload(ctx context.Context, in *idInput) (*uploadOutput, error) {
	if !events.IsID(in.ID) {
		return nil, missing("there is no upload session %q", in.ID)
	}
	cause := jetstream.Cause{Key: "abort " + in.ID, Actor: access.From(ctx).Name, Correlation: in.ID}
	var upload events.Current[events.Upload]
	sequence, err := s.Events.Decide(ctx, cause, func(ctx context.Context) (changes []events.Change, err error) {
		if upload, err = s.Events.Upload(ctx, in.ID); err != nil {
			return nil, err
		}
		if upload.Sequence == 0 {
			return nil, missing("there is no upload session %s", in.ID)
		}
		if access.Need(access.From(ctx), upload.State.Image, events.RolePublisher) != nil {
			shown, err := s.showsSession(ctx, upload.State)
			if err == nil && !shown {
				err = missing("there is no upload session %s", in.ID)
			}
			if err == nil {
				err = access.Need(access.From(ctx), upload.State.Image, events.RolePublisher)
			}
			return nil, err
		}
		if upload.State.State == events.SessionAborted {
			return nil, nil
		}
		version, err := s.Events.Version(ctx, upload.State.Image, upload.State.Version)
		if err != nil {
			return nil, err
		}
		if changes, err = events.AbortUpload(upload, version, "aborted by "+cause.Actor); err == nil {
			upload.State = events.Fold(upload.State, changes[0].Fact)
		}
		return changes, err
	})
	if err != nil {
		return nil, err
	}
	upload.Sequence = max(upload.Sequence, sequence)
	return s.uploadAnswer(ctx, upload)
}

// visibleUpload reads a session that the caller may see.
func (s *server) visibleUpload(ctx context.Context, id string) (upload events.Current[events.Upload], err error) {
	if !events.IsID(id) {
		return upload, missing("there is no upload session %q", id)
	}
	if upload, err = s.Events.Upload(ctx, id); err != nil {
		return upload, err
	}
	if upload.Sequence == 0 {
		return upload, missing("there is no upload session %s", id)
	}
	shown, err := s.showsSession(ctx, upload.State)
	if err == nil && !shown {
		err = missing("there is no upload session %s", id)
	}
	return upload, err
}

// showsSession says whether the caller, who knows its id, may see an upload session and its job: both what the session was opened as
// and what the image is now have to allow it.
func (s *server) showsSession(ctx context.Context, u events.Upload) (bool, error) {
	p := access.From(ctx)
	if p.May(events.RolePublisher, u.Image) || p.May(events.RoleOperator, u.Image) {
		return true, nil
	}
	if !maySee(ctx, u.Image, u.Visibility) {
		return false, nil
	}
	image, err := s.Events.Image(ctx, u.Image)
	return err == nil && (image.Sequence == 0 || maySee(ctx, u.Image, image.State.Visibility)), err
}

// maySee says whether the caller may see an image of this visibility.
func maySee(ctx context.Context, image string, v events.Visibility) bool {
	return v == events.Public || access.From(ctx).May(events.RoleReader, image)
}

func (s *server) uploadAnswer(ctx context.Context, upload events.Current[events.Upload]) (*uploadOutput, error) {
	u := upload.State
	state, job, err := s.sessionState(ctx, u)
	if err != nil {
		return nil, err
	}
	status := uploadStatus{ID: u.ID, State: state, Image: u.Image, Version: u.Version, Reason: u.Reason, Error: errorOf(job.State)}
	if u.Complete {
		status.JobURL = jobURL(ctx, u.JobID)
	}
	if state == statePublished {
		s.waitVisible(ctx, job, len(u.Aliases))
		status.VersionURL = versionURL(ctx, u.Image, u.Version)
	}
	if state == stateUploading && s.ExpiresAt != nil {
		if at, ok := s.ExpiresAt(u.ID); ok {
			at = at.UTC()
			status.ExpiresAt = &at
		}
	}
	n := 0
	for ref, f := range u.Files() {
		file, err := s.fileStatus(ctx, u, ref, *f, n)
		if err != nil {
			return nil, err
		}
		status.Files = append(status.Files, file)
		n++
	}
	return &uploadOutput{Sequence: uint64(upload.Sequence), Body: status}, nil
}

func (s *server) fileStatus(ctx context.Context, u events.Upload, ref events.FileRef, f events.UploadFile, n int) (fileStatus, error) {
	file := fileStatus{Variant: ref.Variant, Format: ref.Format, State: string(f.State), Size: f.Size, SHA256: f.Declared.Hex()}
	switch {
	case f.State != events.FilePending:
		file.Offset, file.SHA256 = f.Size, f.Digest.Hex()
	case u.State == events.SessionOpen:
		offset, err := s.Offsets.Offset(u.ID, n)
		if errors.Is(err, fs.ErrNotExist) { // no upload of it has been created
			return file, nil
		}
		if err != nil {
			return file, err
		}
		file.Offset, file.TUSURL = offset, base(ctx)+pathTUS+u.ID+"."+strconv.Itoa(n)
	}
	return file, nil
}

// sessionState is the session's state for clients; once it has been handed over, that of its job.
func (s *server) sessionState(ctx context.Context, u events.Upload) (state string, job events.Current[events.Job], err error) {
	switch u.State {
	case events.SessionAborted:
		return stateAborted, job, nil
	case events.SessionExpired:
		return stateExpired, job, nil
	case events.SessionOpen:
		if u.Complete {
			return stateQueued, job, nil // the next fact makes the job
		}
		return stateUploading, job, nil
	}
	if job, err = s.Events.Job(ctx, u.JobID); err != nil {
		return "", job, err
	}
	switch job.State.State {
	case events.JobStateRunning:
		return statePublishing, job, nil
	case events.JobStateSucceeded:
		return statePublished, job, nil
	case events.JobStateFailed:
		return stateFailed, job, nil
	case events.JobStateCancelled:
		return stateAborted, job, nil
	}
	return stateQueued, job, nil
}
