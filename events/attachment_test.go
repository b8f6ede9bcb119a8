package events

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A session waits for its attachments, and the published manifest lists them beside the variants, which know
// nothing of them.
func TestAttachmentsGoWithTheVersion(t *testing.T) {
	t.Parallel()
	u := testSession()
	u.Variants[0].Files = u.Variants[0].Files[:1]
	u.Attachments = []UploadFile{{Format: "disk.qcow2", Size: 7, State: FilePending}, {Format: "notes.md", Size: 3, State: FilePresent, Digest: digestB}}
	changes, err := initiate(u)
	if err != nil {
		t.Fatal(err)
	}
	upload, version := after[Upload](t, changes), after[Version](t, changes)
	for _, file := range []FileRef{{"amd64.virtual-machine.default", "disk.qcow2"}, {AttachmentVariant, "disk.qcow2"}} {
		if upload.State.Complete {
			t.Fatalf("complete without %s", file)
		}
		size := map[bool]int64{true: 7, false: 100}[file.IsAttachment()]
		if changes, err = Complete(CompleteFile{File: file, Size: size, Digest: digestA, Combined: digestB, Ingress: "x", At: testTime}, upload); err != nil {
			t.Fatal(err)
		}
		upload = after[Upload](t, changes)
	}
	if !upload.State.Complete {
		t.Fatal("all is there, and the session isn't complete")
	}
	if changes, err = CompleteUpload(upload, testTime); err != nil {
		t.Fatal(err)
	}
	job := after[Job](t, changes)
	for _, step := range Steps() {
		if changes, err = StartStep(job, step, testTime); err != nil {
			t.Fatal(err)
		}
		job = after[Job](t, changes)
		if step == StepPublish {
			break
		}
		files := job.State.clone().Files
		for i := range files {
			files[i].MediaType = "text/plain"
		}
		if changes, err = CompleteStep(job, step, files, testTime); err != nil {
			t.Fatal(err)
		}
		job = after[Job](t, changes)
	}
	if changes, err = Publish(PublishVersion{Job: job, Upload: upload.State, Version: version, At: testTime}); err != nil {
		t.Fatal(err)
	}
	manifest := after[Version](t, changes).State.Manifest
	want := []ManifestAttachment{{"disk.qcow2", digestA, 7, "text/plain"}, {"notes.md", digestB, 3, "text/plain"}}
	if diff := cmp.Diff(want, manifest.Attachments); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
	if len(manifest.Variants) != 1 || len(manifest.Variants[0].Formats) != 1 {
		t.Errorf("variants %+v, want one of one format", manifest.Variants)
	}
}

func TestASessionIsNotChangedThroughItsCopy(t *testing.T) {
	t.Parallel()
	u := testSession()
	u.Attachments = attached("notes.md")
	changed := u.clone()
	for _, f := range changed.Files() {
		f.State = FileComplete
	}
	for ref, f := range u.Files() {
		if f.State != FilePending {
			t.Errorf("%s is %s", ref, f.State)
		}
	}
}
