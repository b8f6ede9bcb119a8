package events

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// publishing brings a job to the beginning of its publish step.
func publishing(t *testing.T, u Upload) (Current[Job], Current[Version], Upload) {
	t.Helper()
	changes, err := initiate(u)
	if err != nil {
		t.Fatal(err)
	}
	upload, version := after[Upload](t, changes), after[Version](t, changes)
	for _, v := range upload.State.Variants {
		for _, f := range v.Files {
			changes, err := Complete(CompleteFile{File: FileRef{v.Name(), f.Format}, Size: f.Size, Digest: digestA, Combined: digestB, Ingress: f.Format, At: testTime}, upload)
			if err != nil {
				t.Fatal(err)
			}
			upload.State = Fold(upload.State, changes[0].Fact)
		}
	}
	changes, err = CompleteUpload(upload, testTime)
	if err != nil {
		t.Fatal(err)
	}
	upload.State = Fold(upload.State, changes[0].Fact)
	job := after[Job](t, changes)
	for _, step := range Steps() {
		changes, err := StartStep(job, step, testTime)
		if err != nil {
			t.Fatal(err)
		}
		job.State, job.Sequence = Fold(job.State, changes[0].Fact), job.Sequence+1
		if step == StepPublish {
			break
		}
		files := job.State.Files
		if step == StepMaterialize {
			files = append(files, JobFile{Variant: "amd64.virtual-machine.default", Format: FormatMetadata, Size: 8, Digest: digestB, Origin: OriginMade})
		}
		if changes, err = CompleteStep(job, step, files, testTime); err != nil {
			t.Fatal(err)
		}
		job.State, job.Sequence = Fold(job.State, changes[0].Fact), job.Sequence+1
	}
	return job, version, upload.State
}

func TestAPublicationIsOneBatch(t *testing.T) {
	t.Parallel()
	job, version, upload := publishing(t, testSession())
	changes, err := Publish(PublishVersion{Job: job, Upload: upload, Version: version, At: testTime.Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	var types []Type
	subjects := map[string]bool{}
	for _, c := range changes {
		types = append(types, c.Fact.Type())
		subjects[c.Fact.Entity().Subject()] = true
	}
	want := []Type{"imgsrv.version.published.v1", "imgsrv.job.succeeded.v1", "imgsrv.image.described.v1", "imgsrv.alias.moved.v2"}
	if diff := cmp.Diff(want, types); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	if len(subjects) != len(changes) {
		t.Errorf("%d facts on %d subjects: a batch takes one fact per subject", len(changes), len(subjects))
	}
	manifest := Fold(version.State, changes[0].Fact).Manifest
	v := manifest.Variants[0]
	if v.Fingerprint != digestB.Hex() || v.Root != "disk.qcow2" || v.Metadata != FormatMetadata || len(v.Formats) != 3 {
		t.Errorf("variant %+v, want three formats and the fingerprint of metadata and disk", v)
	}
	if manifest.UploadedAt != testTime || manifest.PublishedAt != testTime.Add(time.Minute) {
		t.Errorf("times %v and %v", manifest.UploadedAt, manifest.PublishedAt)
	}
}

func TestAPublicationNeedsItsReservation(t *testing.T) {
	t.Parallel()
	job, version, upload := publishing(t, testSession())
	for _, change := range []func(*Version){
		func(v *Version) { v.State = StateReleased },
		func(v *Version) { v.State = StatePublished },
		func(v *Version) { v.UploadID = "other" },
	} {
		v := version
		change(&v.State)
		if _, err := Publish(PublishVersion{Job: job, Upload: upload, Version: v}); !IsCode(err, CodeVersionInProgress) {
			t.Errorf("with version %+v: %v", v.State, err)
		}
	}
}

// An image may become public while a private version of it is on its way.
func TestWhatWasDeclaredPrivateIsNotPublishedForAll(t *testing.T) {
	t.Parallel()
	session := testSession()
	session.Visibility = Private
	job, version, upload := publishing(t, session)
	for visibility, refused := range map[Visibility]bool{Public: true, Private: false} {
		image := Current[Image]{State: Image{Name: upload.Image, Visibility: visibility}, Sequence: 3}
		if _, err := Publish(PublishVersion{Job: job, Upload: upload, Version: version, Image: image}); IsCode(err, CodeVisibility) != refused {
			t.Errorf("a private version of a %s image: %v", visibility, err)
		}
	}
}

func TestAliasesMoveForwardOnlyAtPublication(t *testing.T) {
	t.Parallel()
	job, version, upload := publishing(t, testSession())
	for name, test := range map[string]struct {
		names string // session of the version that the alias names
		moves bool
	}{
		"an older publication": {"019aba00-0000-7000-8000-000000000001", true},
		"a newer publication":  {laterID, false},
	} {
		alias := Current[Alias]{State: Alias{Image: upload.Image, Alias: "latest", Version: "12.4", UploadID: test.names}, Sequence: 3}
		changes, err := Publish(PublishVersion{Job: job, Upload: upload, Version: version, Aliases: map[string]Current[Alias]{"latest": alias}})
		if err != nil {
			t.Fatal(err)
		}
		last := changes[len(changes)-1]
		if moved, ok := last.Fact.(AliasMoved); ok != test.moves || ok && (moved.Alias.Version != "12.5.0" || last.Expect != 3) {
			t.Errorf("the alias names %s: last fact %+v, want moved: %v", name, last, test.moves)
		}
	}
}

func TestAnImageIsDescribedWhenThereIsNews(t *testing.T) {
	t.Parallel()
	job, version, upload := publishing(t, testSession())
	known := Image{Name: upload.Image, OS: "debian", Release: "bookworm", Description: "kept", Visibility: Public, Flavours: []string{"default"}}
	for name, test := range map[string]struct {
		change func(*Image)
		news   bool
	}{
		"nothing new":       {func(*Image) {}, false},
		"another release":   {func(i *Image) { i.Release = "trixie" }, true},
		"a new flavour":     {func(i *Image) { i.Flavours = []string{"cloud"} }, true},
		"private stays":     {func(i *Image) { i.Visibility = Private }, false},
		"description stays": {func(i *Image) { i.Description = "kept too" }, false},
	} {
		image := known
		test.change(&image)
		changes, err := Publish(PublishVersion{Job: job, Upload: upload, Version: version, Image: Current[Image]{State: image, Sequence: 2}})
		if err != nil {
			t.Fatal(err)
		}
		if v := Fold(version.State, changes[0].Fact); v.Manifest.Visibility != image.Visibility {
			t.Errorf("%s: the version is %s in a %s image", name, v.Manifest.Visibility, image.Visibility)
		}
		described := false
		for _, c := range changes {
			if f, ok := c.Fact.(ImageDescribed); ok {
				described = true
				if f.Description != image.Description || f.Release != "bookworm" || c.Expect != 2 {
					t.Errorf("%s: described as %+v", name, f)
				}
			}
		}
		if described != test.news {
			t.Errorf("%s: described %v, want %v", name, described, test.news)
		}
	}
}

func TestStepsRunInOrderAndOnce(t *testing.T) {
	t.Parallel()
	job, version, _ := publishing(t, testSession())
	if _, err := StartStep(job, StepVerify, testTime); !IsCode(err, CodeStepOutOfOrder) {
		t.Errorf("an earlier step: %v", err)
	}
	if _, err := CompleteStep(job, StepPromote, nil, testTime); !IsCode(err, CodeStepOutOfOrder) {
		t.Errorf("completing an earlier step: %v", err)
	}
	changes, err := FailStep(job, StepPublish, "no luck", testTime, testTime.Add(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	job.State = Fold(job.State, changes[0].Fact)
	if _, err := FailJob(job, version, StepPublish, Problem{}, testTime); !IsCode(err, CodeStepOutOfOrder) {
		t.Errorf("giving up between two attempts: %v", err)
	}
	changes, err = StartStep(job, StepPublish, testTime)
	if err != nil {
		t.Fatal(err)
	}
	job.State = Fold(job.State, changes[0].Fact)
	if s := job.State.Step(StepPublish); s.Attempt != 2 || s.Error != "no luck" {
		t.Errorf("second attempt: %+v", s)
	}
}

func TestAFailedJobFreesItsVersionAndCanBeRetriedUnlessRefused(t *testing.T) {
	t.Parallel()
	job, version, upload := publishing(t, testSession())
	for _, final := range []bool{true, false} {
		changes, err := FailJob(job, version, StepPublish, Problem{Code: "x", Detail: "y", Final: final}, testTime)
		if err != nil || len(changes) != 2 {
			t.Fatalf("%v %v", changes, err)
		}
		failed := Current[Job]{State: Fold(job.State, changes[0].Fact), Sequence: 50}
		free := Current[Version]{State: Fold(version.State, changes[1].Fact), Sequence: 51}
		if failed.State.State != JobStateFailed || free.State.State != StateReleased {
			t.Fatalf("job %s, version %s", failed.State.State, free.State.State)
		}
		retry, err := RetryJob(failed, Current[Upload]{State: upload}, free)
		if final {
			if !IsCode(err, CodeJobRefused) {
				t.Errorf("retry of refused content: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		again := Fold(failed.State, retry[0].Fact)
		if next, ok := again.Next(); !ok || next != StepPromote || again.Retries != 1 {
			t.Errorf("retried job goes on at %s (%v), retries %d", next, ok, again.Retries)
		}
		if v := Fold(free.State, retry[1].Fact); v.State != StateReserved || retry[1].Expect != 51 {
			t.Errorf("version is %s after a retry", v.State)
		}
		for state, code := range map[VersionState]Code{StatePublished: CodeVersionExists, StateWithdrawn: CodeVersionExists, StateReserved: CodeVersionInProgress} {
			if _, err := RetryJob(failed, Current[Upload]{State: upload}, Current[Version]{State: Version{State: state}}); !IsCode(err, code) {
				t.Errorf("retry with a %s version: %v", state, err)
			}
		}
	}
	if _, err := RetryJob(job, Current[Upload]{}, version); !IsCode(err, CodeJobNotFailed) {
		t.Errorf("retry of a running job: %v", err)
	}
}

func TestAJobsIDDerivesFromItsUploads(t *testing.T) {
	t.Parallel()
	id, err := uuid.Parse(JobIDFor(testUpload))
	if err != nil || id.Version() != 7 || id.Variant() != uuid.RFC4122 || id.String() == testUpload {
		t.Fatalf("job id %v: %v", id, err)
	}
	if sec, _ := id.Time().UnixTime(); sec != func() int64 { s, _ := uuid.MustParse(testUpload).Time().UnixTime(); return s }() {
		t.Error("the job's id has another time than the upload's")
	}
	if JobIDFor(testUpload) != id.String() || JobIDFor(laterID) == id.String() {
		t.Error("job ids are not a function of the upload's")
	}
	if JobIDFor("nonsense") != "" {
		t.Error("a job id for something that is no upload id")
	}
}

func TestAliasesAreMovedAndRemovedByHand(t *testing.T) {
	t.Parallel()
	published := Current[Version]{State: Version{Image: "a", Version: "1", State: StatePublished, UploadID: testUpload}}
	image := Current[Image]{State: Image{Name: "a", Flavours: []string{"cloud"}}, Sequence: 4}
	current := Current[Alias]{State: Alias{Image: "a", Alias: "stable", Version: "2", UploadID: laterID}, Sequence: 9}
	changes, err := MoveAlias("a", "stable", "1", published, image, Current[Version]{}, false, current)
	if err != nil || len(changes) != 2 || changes[1].Expect != 9 {
		t.Fatalf("moving back: %v %v", changes, err)
	}
	for name, test := range map[string]struct {
		alias    string
		target   Current[Version]
		image    Current[Image]
		same     Version
		arch     bool
		wantCode Code
	}{
		"no such version":      {"stable", Current[Version]{State: Version{State: StateReserved}}, image, Version{}, false, CodeNotFound},
		"no such image":        {"stable", published, Current[Image]{}, Version{}, false, CodeNotFound},
		"named as a version":   {"stable", published, image, Version{State: StatePublished}, false, CodeAliasClash},
		"named as a lost one":  {"stable", published, image, Version{State: StateWithdrawn}, false, CodeAliasClash},
		"a withdrawn version":  {"stable", Current[Version]{State: Version{State: StateWithdrawn, Withdrawal: &Withdrawal{Reason: "bad"}}}, image, Version{}, false, CodeNotFound},
		"named as a flavour":   {"cloud", published, image, Version{}, false, CodeAliasClash},
		"named as the default": {"default", published, image, Version{}, false, CodeAliasClash},
		"an architecture":      {"amd64", published, image, Version{}, true, CodeAliasClash},
		"a path":               {"../x", published, image, Version{}, false, CodeInvalid},
	} {
		if _, err := MoveAlias("a", test.alias, "1", test.target, test.image, Current[Version]{State: test.same}, test.arch, current); !IsCode(err, test.wantCode) {
			t.Errorf("%s: %v, want %s", name, err, test.wantCode)
		}
	}
	changes, err = RemoveAlias(current, "a", "stable")
	if err != nil {
		t.Fatal(err)
	}
	removed := Current[Alias]{State: Fold(current.State, changes[0].Fact), Sequence: 10}
	if _, err := RemoveAlias(removed, "a", "stable"); !IsCode(err, CodeNotFound) {
		t.Errorf("removing twice: %v", err)
	}
}

func TestAJobIsCancelledUntilItHasPublished(t *testing.T) {
	t.Parallel()
	job, version, upload := publishing(t, testSession())
	changes, err := CancelJob(job, version, "operator", "wrong file", testTime)
	if err != nil || len(changes) != 2 {
		t.Fatalf("%v %v", changes, err)
	}
	cancelled := Current[Job]{State: Fold(job.State, changes[0].Fact), Sequence: 50}
	free := Current[Version]{State: Fold(version.State, changes[1].Fact), Sequence: 51}
	if j := cancelled.State; j.State != JobStateCancelled || j.Problem.Detail != "cancelled by operator: wrong file" || !j.Problem.Final || free.State.State != StateReleased {
		t.Errorf("job %s, problem %+v, version %s", j.State, j.Problem, free.State.State)
	}
	if _, ok := cancelled.State.Next(); ok {
		t.Error("a cancelled job goes on")
	}
	if changes, err := CancelJob(cancelled, free, "operator", "", testTime); err != nil || len(changes) != 0 {
		t.Errorf("cancelling twice: %v %v", changes, err)
	}
	if _, err := RetryJob(cancelled, Current[Upload]{State: upload}, free); !IsCode(err, CodeJobNotFailed) {
		t.Errorf("retry of a cancelled job: %v", err)
	}
	if _, err := CancelJob(Current[Job]{}, free, "operator", "", testTime); !IsCode(err, CodeNotFound) {
		t.Errorf("cancelling what isn't there: %v", err)
	}
	for final, code := range map[bool]Code{true: CodeJobEnded, false: ""} {
		changes, err := FailJob(job, version, StepPublish, Problem{Code: "x", Detail: "y", Final: final}, testTime)
		if err != nil {
			t.Fatal(err)
		}
		failed := Current[Job]{State: Fold(job.State, changes[0].Fact), Sequence: 50}
		// Another session may have taken the name meanwhile: it keeps it.
		others := Current[Version]{State: Version{State: StateReserved, UploadID: laterID}, Sequence: 60}
		changes, err = CancelJob(failed, others, "operator", "", testTime)
		if code == "" && (err != nil || len(changes) != 1) || code != "" && !IsCode(err, code) {
			t.Errorf("cancelling a failed job, final %v: %v %v", final, changes, err)
		}
	}
	published, err := Publish(PublishVersion{Job: job, Upload: upload, Version: version, At: testTime, Aliases: map[string]Current[Alias]{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range published {
		if f, ok := c.Fact.(JobSucceeded); ok {
			if _, err := CancelJob(Current[Job]{State: f.Job, Sequence: 70}, version, "operator", "", testTime); !IsCode(err, CodeJobEnded) {
				t.Errorf("cancelling a published job: %v", err)
			}
		}
	}
}
