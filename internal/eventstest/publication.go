package eventstest

import (
	"fmt"
	"time"

	"github.com/imgsrv/imgsrv/events"
)

// Session is a session with one virtual machine of one qcow2 file, for amd64: what a test changes before it
// gives it to [History.Initiate]. The file's content is named after image and version.
func Session(image, version string, aliases ...string) events.Upload {
	return events.Upload{
		Image: image, Version: version, OS: "debian", Release: "bookworm", Description: "A test image", Visibility: events.Public, Aliases: aliases,
		InitiatedBy: "publisher",
		Variants: []events.UploadVariant{{
			Variant: events.Variant{Architecture: "amd64", Type: events.VirtualMachine, Flavour: events.DefaultFlavour},
			Files:   []events.UploadFile{{Format: "disk.qcow2", Size: 196608, State: events.FilePending}},
		}},
	}
}

// Initiate opens a session and returns its id; "" and the refusal where the rules refuse it. ID and
// InitiatedAt are filled in.
func (h *History) Initiate(tb TB, session events.Upload) (string, error) {
	tb.Helper()
	session.ID, session.InitiatedAt = h.newID(), h.now
	cmd := events.InitiateUpload{
		Session: session, Version: h.Version(session.Image, session.Version),
		AliasOfVersionName: h.Alias(session.Image, session.Version), Image: h.Image(session.Image),
		VersionOfAliasName: map[string]events.Current[events.Version]{},
		IsArchitecture:     func(name string) bool { return name == "amd64" || name == "x86_64" },
	}
	for _, alias := range session.Aliases {
		cmd.VersionOfAliasName[alias] = h.Version(session.Image, alias)
	}
	cmd.Present = h.present(tb, session)
	if err := h.decide(tb)(events.Initiate(cmd)); err != nil {
		return "", err
	}
	h.ids = append(h.ids, session.ID)
	return session.ID, nil
}

// present are the blobs that a session is told of. Those that aren't there are promoted first.
func (h *History) present(tb TB, session events.Upload) map[events.Digest]events.Current[events.Blob] {
	tb.Helper()
	present := map[events.Digest]events.Current[events.Blob]{}
	for _, f := range session.Files() {
		if f.State != events.FilePresent {
			continue
		}
		if known := h.Blob(f.Digest); known.Sequence == 0 || known.State.State != events.BlobIsPresent {
			h.Append(tb, events.PromoteBlob(events.Blob{Digest: f.Digest, Size: f.Size, MediaType: "application/octet-stream"}, known)...)
		}
		present[f.Digest] = h.Blob(f.Digest)
	}
	return present
}

// CompleteFile lets the first pending file of a session arrive.
func (h *History) CompleteFile(tb TB, id string) error {
	tb.Helper()
	upload := h.Upload(id)
	for ref, f := range upload.State.Files() {
		if f.State != events.FilePending {
			continue
		}
		content := fmt.Sprintf("%s %s %s %s", upload.State.Image, upload.State.Version, ref.Variant, ref.Format)
		cmd := events.CompleteFile{File: ref, Size: f.Size, Digest: Digest(content), Ingress: ref.Variant + "." + ref.Format, At: h.now}
		if !ref.IsAttachment() {
			cmd.Combined = Digest("metadata of " + content)
		}
		return h.decide(tb)(events.Complete(cmd, upload))
	}
	return events.Refuse(events.CodeFileComplete, "all files of session %s are there", id)
}

// CompleteUpload hands a session to its job.
func (h *History) CompleteUpload(tb TB, id string) error {
	tb.Helper()
	return h.decide(tb)(events.CompleteUpload(h.Upload(id), h.now))
}

// Abort ends an open session; Expire does so for its age.
func (h *History) Abort(tb TB, id string) error {
	tb.Helper()
	upload := h.Upload(id)
	return h.decide(tb)(events.AbortUpload(upload, h.Version(upload.State.Image, upload.State.Version), "not wanted"))
}

// Expire is as [History.Abort].
func (h *History) Expire(tb TB, id string) error {
	tb.Helper()
	upload := h.Upload(id)
	return h.decide(tb)(events.ExpireUpload(upload, h.Version(upload.State.Image, upload.State.Version)))
}

// Advance starts a job's next step, or completes it where it runs: materialize makes the metadata tarball
// of each variant that has a root, promote records the blobs, publish publishes.
func (h *History) Advance(tb TB, jobID string) error {
	tb.Helper()
	job := h.Job(jobID)
	step, ok := job.State.Next()
	if !ok {
		return events.Refuse(events.CodeStepOutOfOrder, "job %s has ended", jobID)
	}
	if job.State.Step(step).State != events.StepRunning {
		return h.decide(tb)(events.StartStep(job, step, h.now))
	}
	files := append([]events.JobFile(nil), job.State.Files...)
	switch step {
	case events.StepPublish:
		return h.publish(tb, job)
	case events.StepInspect:
		for i := range files {
			files[i].MediaType = "application/octet-stream"
			if files[i].Format == "disk.qcow2" {
				files[i].MediaType = "application/x-qemu-disk"
				files[i].Disk = &events.DiskInfo{Version: 3, VirtualSize: 10 << 30, ClusterSize: 64 << 10, Compression: "zlib"}
			}
		}
	case events.StepMaterialize:
		for _, v := range h.Upload(job.State.UploadID).State.Variants {
			if _, ok := v.Root(); ok {
				files = append(files, events.JobFile{Variant: v.Name(), Format: events.FormatMetadata, Size: 560, Origin: events.OriginMade,
					Digest: Digest("metadata of " + v.Name()), MediaType: "application/x-xz"})
			}
		}
	case events.StepPromote:
		for _, f := range files {
			blob := events.Blob{Digest: f.Digest, Size: f.Size, MediaType: f.MediaType}
			h.Append(tb, events.PromoteBlob(blob, h.Blob(f.Digest))...)
		}
	}
	return h.decide(tb)(events.CompleteStep(job, step, files, h.now))
}

func (h *History) publish(tb TB, job events.Current[events.Job]) error {
	tb.Helper()
	upload := h.Upload(job.State.UploadID).State
	aliases := map[string]events.Current[events.Alias]{}
	for _, alias := range upload.Aliases {
		aliases[alias] = h.Alias(upload.Image, alias)
	}
	return h.decide(tb)(events.Publish(events.PublishVersion{
		Job: job, Upload: upload, Version: h.Version(upload.Image, upload.Version), Image: h.Image(upload.Image), Aliases: aliases, At: h.now,
	}))
}

// FailStep fails the attempt that runs; it will be repeated.
func (h *History) FailStep(tb TB, jobID string) error {
	tb.Helper()
	job := h.Job(jobID)
	step, _ := job.State.Next()
	if job.State.Step(step) == nil {
		return events.Refuse(events.CodeStepOutOfOrder, "job %s has ended", jobID)
	}
	// An error of a tool may hold anything, also what PostgreSQL can't.
	return h.decide(tb)(events.FailStep(job, step, "disk \x00 full \\u0000", h.now, h.now.Add(5*time.Second)))
}

// FailJob gives a job up at the step that runs.
func (h *History) FailJob(tb TB, jobID string, problem events.Problem) error {
	tb.Helper()
	job := h.Job(jobID)
	step, _ := job.State.Next()
	if job.State.Step(step) == nil {
		return events.Refuse(events.CodeStepOutOfOrder, "job %s has ended", jobID)
	}
	return h.decide(tb)(events.FailJob(job, h.Version(job.State.Image, job.State.Version), step, problem, h.now))
}

// RetryJob begins a failed job again.
func (h *History) RetryJob(tb TB, jobID string) error {
	tb.Helper()
	job := h.Job(jobID)
	return h.decide(tb)(events.RetryJob(job, h.Upload(job.State.UploadID), h.Version(job.State.Image, job.State.Version)))
}

// CancelJob ends a job that hasn't published.
func (h *History) CancelJob(tb TB, jobID, by, reason string) error {
	tb.Helper()
	job := h.Job(jobID)
	return h.decide(tb)(events.CancelJob(job, h.Version(job.State.Image, job.State.Version), by, reason, h.now))
}

// MoveAlias points an alias at a version by hand.
func (h *History) MoveAlias(tb TB, image, alias, to string) error {
	tb.Helper()
	return h.decide(tb)(events.MoveAlias(image, alias, to, h.Version(image, to), h.Image(image), h.Version(image, alias), false, h.Alias(image, alias)))
}

// RemoveAlias ends an alias.
func (h *History) RemoveAlias(tb TB, image, alias string) error {
	tb.Helper()
	return h.decide(tb)(events.RemoveAlias(h.Alias(image, alias), image, alias))
}

// Publish takes a session the whole way to a published version and returns its id. Any refusal fails the test.
func (h *History) Publish(tb TB, session events.Upload) string {
	tb.Helper()
	id, err := h.Initiate(tb, session)
	if err != nil {
		tb.Fatalf("initiate %s %s: %v", session.Image, session.Version, err)
	}
	for !h.Upload(id).State.Complete {
		if err := h.CompleteFile(tb, id); err != nil {
			tb.Fatalf("complete a file of %s: %v", id, err)
		}
	}
	if err := h.CompleteUpload(tb, id); err != nil {
		tb.Fatalf("complete session %s: %v", id, err)
	}
	job := events.JobIDFor(id)
	for h.Job(job).State.State != events.JobStateSucceeded {
		if err := h.Advance(tb, job); err != nil {
			tb.Fatalf("advance job %s: %v", job, err)
		}
	}
	return id
}

// decide appends what a rule has decided, or passes its refusal on.
func (h *History) decide(tb TB) func([]events.Change, error) error {
	return func(changes []events.Change, err error) error {
		tb.Helper()
		if err == nil {
			h.Append(tb, changes...)
		}
		return err
	}
}
