package events

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// JobState is where a publication job stands.
type JobState string

// The states of a job. Failed is final when the content was refused (Problem.Final).
const (
	JobStateQueued    JobState = "queued"
	JobStateRunning   JobState = "running"
	JobStateSucceeded JobState = "succeeded"
	JobStateFailed    JobState = "failed"
	JobStateCancelled JobState = "cancelled"
)

// Step is one step of a publication.
type Step string

// Steps are the steps of a publication, in order.
const (
	StepVerify      Step = "verify"
	StepInspect     Step = "inspect"
	StepMaterialize Step = "materialize"
	StepPromote     Step = "promote"
	StepPublish     Step = "publish"
)

// Steps lists the steps of a publication in their order.
func Steps() []Step {
	return []Step{StepVerify, StepInspect, StepMaterialize, StepPromote, StepPublish}
}

// StepState is where a step stands.
type StepState string

// The states of a step. A failed step is tried again, unless its job failed.
const (
	StepPending   StepState = "pending"
	StepRunning   StepState = "running"
	StepSucceeded StepState = "succeeded"
	StepFailed    StepState = "failed"
)

// Job takes the files of one upload session to a published version.
type Job struct {
	ID       string    `json:"id"`
	UploadID string    `json:"upload_id"`
	Image    string    `json:"image"`
	Version  string    `json:"version"`
	State    JobState  `json:"state"`
	Steps    []JobStep `json:"steps"`
	Files    []JobFile `json:"files"`
	Problem  *Problem  `json:"problem,omitempty"`
	Retries  int       `json:"retries"` // how often the whole job was retried by hand
	QueuedAt time.Time `json:"queued_at"`
	EndedAt  time.Time `json:"ended_at,omitzero"`
}

// JobStep is one step's progress.
type JobStep struct {
	Name       Step      `json:"name"`
	State      StepState `json:"state"`
	Attempt    int       `json:"attempt"` // from 1; 0 while pending
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	Error      string    `json:"error,omitempty"` // of the last attempt
	RetryAt    time.Time `json:"retry_at,omitzero"`
}

// JobFile is a file on its way from ingress to blob, with what the steps have learned of it.
type JobFile struct {
	Variant   string     `json:"variant"` // AttachmentVariant for an attachment
	Format    string     `json:"format"`
	Size      int64      `json:"size"`
	Declared  Digest     `json:"declared,omitempty"`
	Digest    Digest     `json:"digest"`
	Combined  Digest     `json:"combined,omitempty"`
	Ingress   string     `json:"ingress,omitempty"` // name in the job's ingress folder; "" for a file that is a blob already
	Origin    string     `json:"origin"`
	MediaType string     `json:"media_type,omitempty"`
	Disk      *DiskInfo  `json:"disk,omitempty"`
	Incus     *ImageInfo `json:"incus,omitempty"`
}

// Problem is why a job failed.
type Problem struct {
	Code   string `json:"code"`
	Detail string `json:"detail"`
	// Final: the content itself was refused, and a retry would meet the same refusal.
	Final bool `json:"final"`
}

// JobIDFor derives the job's ID from its upload's, so that a file's place in ingress is known before the
// job exists. The result is a UUIDv7 of the same millisecond.
func JobIDFor(uploadID string) string {
	up, err := uuid.Parse(uploadID)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256([]byte("imgsrv job of " + uploadID))
	id := up
	copy(id[6:], sum[:10])
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id.String()
}

// The facts of a job. Each carries the whole job.
type (
	// JobQueued begins a job.
	JobQueued struct{ Job }
	// JobStepStarted says that a step runs; with its attempt.
	JobStepStarted struct{ Job }
	// JobStepCompleted says that a step is done; the next follows.
	JobStepCompleted struct {
		Job
		Step Step `json:"step"`
	}
	// JobStepFailed says that an attempt failed and when the next one comes.
	JobStepFailed struct {
		Job
		Step Step `json:"step"`
	}
	// JobSucceeded ends a job, and closes its publish step; in one batch with VersionPublished.
	JobSucceeded struct{ Job }
	// JobFailed ends a job; in one batch with VersionReleased.
	JobFailed struct{ Job }
	// JobRetried begins a failed job again at the step that failed, or at promote, if it had come further; in one batch
	// with VersionReserved.
	JobRetried struct{ Job }
	// JobCancelled ends a job because somebody wants so; in one batch with VersionReleased, where it still held its version.
	JobCancelled struct{ Job }
)

// JobFact is any fact of a job.
type JobFact = FactOf[Job]

// After is the job after the fact.
func (j Job) After() Job { return j }

// Entity names the job.
func (j Job) Entity() Entity { return JobEntity(j.ID) }

// Type names the fact's type.
func (JobQueued) Type() Type { return "imgsrv.job.queued.v1" }

// Type names the fact's type.
func (JobStepStarted) Type() Type { return "imgsrv.job.step_started.v1" }

// Type names the fact's type.
func (JobStepCompleted) Type() Type { return "imgsrv.job.step_completed.v1" }

// Type names the fact's type.
func (JobStepFailed) Type() Type { return "imgsrv.job.step_failed.v1" }

// Type names the fact's type.
func (JobSucceeded) Type() Type { return "imgsrv.job.succeeded.v1" }

// Type names the fact's type.
func (JobFailed) Type() Type { return "imgsrv.job.failed.v1" }

// Type names the fact's type.
func (JobRetried) Type() Type { return "imgsrv.job.retried.v1" }

// Type names the fact's type.
func (JobCancelled) Type() Type { return "imgsrv.job.cancelled.v1" }

// Next is the step that the job's last fact leads to; ok is false for a job that has ended.
func (j Job) Next() (step Step, ok bool) {
	if j.State != JobStateQueued && j.State != JobStateRunning {
		return "", false
	}
	for _, s := range j.Steps {
		if s.State != StepSucceeded {
			return s.Name, true
		}
	}
	return "", false
}

// Step finds a step.
func (j *Job) Step(name Step) *JobStep {
	for i := range j.Steps {
		if j.Steps[i].Name == name {
			return &j.Steps[i]
		}
	}
	return nil
}

func (j Job) clone() Job {
	j.Steps = slices.Clone(j.Steps)
	j.Files = slices.Clone(j.Files)
	return j
}

func newJob(u Upload, at time.Time) Job {
	j := Job{ID: u.JobID, UploadID: u.ID, Image: u.Image, Version: u.Version, State: JobStateQueued, QueuedAt: at}
	for _, s := range Steps() {
		j.Steps = append(j.Steps, JobStep{Name: s, State: StepPending})
	}
	for ref, f := range u.Files() {
		j.Files = append(j.Files, JobFile{Variant: ref.Variant, Format: ref.Format, Size: f.Size, Declared: f.Declared,
			Digest: f.Digest, Combined: f.Combined, Ingress: f.Ingress, Origin: OriginUploaded})
	}
	return j
}

// StartStep decides to begin, or begin again, the step that is next.
func StartStep(job Current[Job], step Step, at time.Time) ([]Change, error) {
	j := job.State.clone()
	if next, ok := j.Next(); !ok || next != step {
		return nil, outOfOrder(j, step)
	}
	s := j.Step(step)
	s.State, s.StartedAt, s.FinishedAt, s.RetryAt = StepRunning, at, time.Time{}, time.Time{}
	s.Attempt++
	j.State = JobStateRunning
	return []Change{{Fact: JobStepStarted{j}, Expect: job.Sequence}}, nil
}

// CompleteStep decides that the running step is done, with the files as it leaves them.
func CompleteStep(job Current[Job], step Step, files []JobFile, at time.Time) ([]Change, error) {
	j, s, err := running(job, step)
	if err != nil {
		return nil, err
	}
	s.State, s.FinishedAt, s.Error = StepSucceeded, at, ""
	j.Files = files
	return []Change{{Fact: JobStepCompleted{j, step}, Expect: job.Sequence}}, nil
}

// FailStep decides that the running attempt failed and will be repeated.
func FailStep(job Current[Job], step Step, cause string, at, retryAt time.Time) ([]Change, error) {
	j, s, err := running(job, step)
	if err != nil {
		return nil, err
	}
	s.State, s.FinishedAt, s.Error, s.RetryAt = StepFailed, at, cause, retryAt
	return []Change{{Fact: JobStepFailed{j, step}, Expect: job.Sequence}}, nil
}

// FailJob decides to give a job up at its running step.
func FailJob(job Current[Job], version Current[Version], step Step, problem Problem, at time.Time) ([]Change, error) {
	j, s, err := running(job, step)
	if err != nil {
		return nil, err
	}
	s.State, s.FinishedAt, s.Error = StepFailed, at, problem.Detail
	j.State, j.Problem, j.EndedAt = JobStateFailed, &problem, at
	return append([]Change{{Fact: JobFailed{j}, Expect: job.Sequence}}, release(j.UploadID, version)...), nil
}

// RetryJob decides to begin a failed job again. The version must be free, and is reserved anew.
func RetryJob(job Current[Job], upload Current[Upload], version Current[Version]) ([]Change, error) {
	j := job.State.clone()
	switch {
	case job.Sequence == 0:
		return nil, Refuse(CodeNotFound, "there is no such job")
	case j.State == JobStateCancelled:
		return nil, Refuse(CodeJobNotFailed, "job %s was cancelled and its files are removed: publish them again", j.ID)
	case j.State != JobStateFailed:
		return nil, Refuse(CodeJobNotFailed, "job %s is %s: only failed jobs can be retried", j.ID, j.State)
	case j.Problem != nil && j.Problem.Final:
		return nil, Refuse(CodeJobRefused, "job %s was refused for its content, which a retry can't change: %s", j.ID, j.Problem.Detail)
	}
	switch version.State.State {
	case StatePublished, StateWithdrawn:
		return nil, &Error{Code: CodeVersionExists, Upload: version.State.UploadID, Text: fmt.Sprintf("version %s of image %s has been published since by upload session %s", j.Version, j.Image, version.State.UploadID)}
	case StateReserved:
		return nil, &Error{Code: CodeVersionInProgress, Upload: version.State.UploadID, Text: fmt.Sprintf("version %s of image %s is being published by upload session %s", j.Version, j.Image, version.State.UploadID)}
	}
	for i := range j.Steps {
		// The files are promoted once more: nothing has held their blobs since the job failed.
		if j.Steps[i].State != StepSucceeded || j.Steps[i].Name == StepPromote {
			j.Steps[i] = JobStep{Name: j.Steps[i].Name, State: StepPending}
		}
	}
	j.State, j.Problem, j.EndedAt = JobStateQueued, nil, time.Time{}
	j.Retries++
	return []Change{
		{Fact: JobRetried{j}, Expect: job.Sequence},
		{Fact: VersionReserved{reserve(version.State, upload.State)}, Expect: version.Sequence},
	}, nil
}

// CodeCancelled is the code of a cancelled job's problem.
const CodeCancelled = "cancelled"

// CancelJob decides to end a job before it has published: one that waits, one that runs, and one that failed and whose files wait for
// a retry. A cancelled job can't be retried, since its files are removed. Cancelling twice is once: then there are no changes.
func CancelJob(job Current[Job], version Current[Version], by, reason string, at time.Time) ([]Change, error) {
	j := job.State.clone()
	switch {
	case job.Sequence == 0:
		return nil, Refuse(CodeNotFound, "there is no such job")
	case j.State == JobStateCancelled:
		return nil, nil
	case j.State == JobStateSucceeded:
		return nil, Refuse(CodeJobEnded, "job %s has published version %s of image %s, which can be withdrawn, but not cancelled", j.ID, j.Version, j.Image)
	case j.State == JobStateFailed && j.Problem != nil && j.Problem.Final:
		return nil, Refuse(CodeJobEnded, "job %s has failed for good already: %s", j.ID, j.Problem.Detail)
	}
	detail := "cancelled by " + by
	if reason != "" {
		detail += ": " + reason
	}
	if step, ok := j.Next(); ok {
		if s := j.Step(step); s.State == StepRunning {
			s.State, s.FinishedAt, s.Error = StepFailed, at, CodeCancelled
		}
	}
	for i := range j.Steps {
		j.Steps[i].RetryAt = time.Time{}
	}
	j.State, j.Problem, j.EndedAt = JobStateCancelled, &Problem{Code: CodeCancelled, Detail: detail, Final: true}, at
	return append([]Change{{Fact: JobCancelled{j}, Expect: job.Sequence}}, release(j.UploadID, version)...), nil
}

// PublishVersion is the command of the publish step, with all that the batch depends on.
type PublishVersion struct {
	Job     Current[Job]
	Upload  Upload
	Version Current[Version]
	Image   Current[Image]
	Aliases map[string]Current[Alias] // of each alias that the session names
	At      time.Time
}

// Publish decides the last batch of a publication: the version becomes visible, the job has succeeded,
// the image is described, the aliases move.
func Publish(cmd PublishVersion) ([]Change, error) {
	j, s, err := running(cmd.Job, StepPublish)
	if err != nil {
		return nil, err
	}
	v := cmd.Version.State
	if v.State != StateReserved || v.UploadID != j.UploadID {
		return nil, &Error{Code: CodeVersionInProgress, Upload: v.UploadID, Text: fmt.Sprintf("version %s of image %s is not reserved for upload session %s any more", j.Version, j.Image, j.UploadID)}
	}
	if cmd.Image.Sequence != 0 && cmd.Image.State.Visibility == Public && cmd.Upload.Visibility == Private {
		return nil, Refuse(CodeVisibility, "the session was opened for a private image, and image %s has become public since: nothing of it is published", j.Image)
	}
	s.State, s.FinishedAt, s.Error = StepSucceeded, cmd.At, ""
	j.State, j.EndedAt = JobStateSucceeded, cmd.At
	v.State, v.Manifest = StatePublished, newManifest(j, cmd.Upload, visibilityOf(cmd.Image, cmd.Upload), cmd.At)
	changes := []Change{
		{Fact: VersionPublished{v}, Expect: cmd.Version.Sequence},
		{Fact: JobSucceeded{j}, Expect: cmd.Job.Sequence},
	}
	changes = append(changes, describe(cmd.Image, cmd.Upload)...)
	changes = append(changes, deriveAtPublication(v.Manifest, cmd.Upload, cmd.Image.State.Policy, cmd.At)...)
	for _, alias := range cmd.Upload.Aliases {
		changes = append(changes, moveAtPublication(cmd.Aliases[alias], alias, cmd.Upload)...)
	}
	return changes, nil
}

// visibilityOf is that of the image where there is one: two sessions of a new image may have declared it
// differently. What was declared private never becomes public by it: Publish refuses that.
func visibilityOf(image Current[Image], u Upload) Visibility {
	if image.Sequence != 0 {
		return image.State.Visibility
	}
	return u.Visibility
}

func newManifest(j Job, u Upload, visibility Visibility, at time.Time) *Manifest {
	m := &Manifest{Image: u.Image, Version: u.Version, OS: u.OS, Release: u.Release, Description: u.Description, Traits: u.Traits, Visibility: visibility,
		UploadID: u.ID, JobID: j.ID, UploadedAt: u.InitiatedAt, PublishedAt: at, PublishedBy: u.InitiatedBy}
	for _, uv := range u.Variants {
		v := ManifestVariant{Variant: uv.Variant}
		var formats []string
		for _, f := range j.Files {
			if f.Variant != v.Name() {
				continue
			}
			formats = append(formats, f.Format)
			v.Formats = append(v.Formats, ManifestFormat{Format: f.Format, Digest: f.Digest, Size: f.Size, MediaType: f.MediaType, Origin: f.Origin, Disk: f.Disk, Incus: f.Incus})
		}
		metadata, hasMetadata := MetadataFormat(formats)
		root, hasRoot := RootFormat(v.Type, formats)
		for _, f := range j.Files {
			if hasMetadata && hasRoot && f.Variant == v.Name() && f.Format == root && f.Combined != "" {
				v.Metadata, v.Root, v.Fingerprint = metadata, root, f.Combined.Hex()
			}
		}
		if unified, ok := UnifiedFormat(formats); ok && v.Fingerprint == "" {
			for _, f := range v.Formats {
				if f.Format == unified {
					v.Metadata, v.Fingerprint = unified, f.Digest.Hex()
				}
			}
		}
		m.Variants = append(m.Variants, v)
	}
	for _, f := range j.Files {
		if f.Ref().IsAttachment() {
			m.Attachments = append(m.Attachments, ManifestAttachment{Name: f.Format, Digest: f.Digest, Size: f.Size, MediaType: f.MediaType})
		}
	}
	return m
}

// AbandonJob decides to fail a job that hasn't ended, wherever it stands: as [FailJob], for a job whose files are gone.
func AbandonJob(job Current[Job], version Current[Version], problem Problem, at time.Time) ([]Change, error) {
	j := job.State.clone()
	step, unfinished := j.Next()
	if job.Sequence == 0 || !unfinished {
		return nil, Refuse(CodeStepOutOfOrder, "job %s is %s", j.ID, j.State)
	}
	s := j.Step(step)
	s.State, s.FinishedAt, s.Error, s.RetryAt = StepFailed, at, problem.Detail, time.Time{}
	j.State, j.Problem, j.EndedAt = JobStateFailed, &problem, at
	return append([]Change{{Fact: JobFailed{j}, Expect: job.Sequence}}, release(j.UploadID, version)...), nil
}

func running(job Current[Job], step Step) (Job, *JobStep, error) {
	j := job.State.clone()
	next, ok := j.Next()
	s := j.Step(step)
	if !ok || next != step || s.State != StepRunning {
		return j, nil, outOfOrder(j, step)
	}
	return j, s, nil
}

func outOfOrder(j Job, step Step) error {
	return Refuse(CodeStepOutOfOrder, "job %s is %s and not at step %s", j.ID, j.State, step)
}
