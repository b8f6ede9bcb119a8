package catalog_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/store/catalog"
)

func TestJobsAreListedNewestFirstByStateInPages(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	want := map[events.JobState][]string{}
	for i := range 9 {
		id, err := h.Initiate(t, eventstest.Session("debian", fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		job := events.JobIDFor(id)
		steps := []error{h.CompleteFile(t, id), h.CompleteUpload(t, id)}
		state := events.JobStateQueued
		switch i % 3 {
		case 1:
			state = events.JobStateRunning
			steps = append(steps, h.Advance(t, job))
		case 2:
			state = events.JobStateFailed
			steps = append(steps, h.Advance(t, job), h.FailJob(t, job, events.Problem{Code: "storage", Detail: "no space"}))
		}
		if err := errors.Join(steps...); err != nil {
			t.Fatal(err)
		}
		want[state] = append(want[state], job)
		want[""] = append(want[""], job)
	}
	c := fromHistory(t, h)
	for state, jobs := range want {
		slices.Reverse(jobs)
		for limit := 1; limit <= 10; limit += 2 {
			var got []string
			filter := catalog.JobFilter{State: state, Limit: limit, Shown: catalog.JobsShown{Operator: catalog.Everything}}
			for {
				page, next, err := c.Jobs(t.Context(), filter)
				if err != nil {
					t.Fatal(err)
				}
				for _, row := range page {
					got = append(got, row.Job.ID)
				}
				if next == "" {
					break
				}
				filter.After = next
			}
			if diff := cmp.Diff(jobs, got); diff != "" {
				t.Errorf("state %q in pages of %d (-want +got):\n%s", state, limit, diff)
			}
		}
	}
	for _, state := range []events.JobState{"", events.JobStateQueued} {
		if _, _, err := c.Jobs(t.Context(), catalog.JobFilter{State: state, After: "nonsense"}); !errors.Is(err, catalog.ErrBadCursor) {
			t.Errorf("a made-up cursor gives %v, want ErrBadCursor", err)
		}
	}
	if _, _, err := c.Versions(t.Context(), "debian", "bm9uc2Vuc2U", 0); !errors.Is(err, catalog.ErrBadCursor) {
		t.Errorf("a made-up cursor gives %v, want ErrBadCursor", err)
	}
}

func TestAJobAndItsSessionAreReadAsTheirLastEventsSay(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	session := eventstest.Session("debian", "1")
	session.Variants[0].Metadata = &events.MadeFile{Format: events.FormatMetadata, Digest: eventstest.Digest("m"), Data: []byte("bytes")}
	id, err := h.Initiate(t, session)
	if err != nil {
		t.Fatal(err)
	}
	open, err := h.Initiate(t, eventstest.Session("debian", "2"))
	if err != nil {
		t.Fatal(err)
	}
	job := events.JobIDFor(id)
	if err := errors.Join(h.CompleteFile(t, id), h.CompleteUpload(t, id), h.Advance(t, job), h.FailStep(t, job)); err != nil {
		t.Fatal(err)
	}
	c := fromHistory(t, h)

	wantJob := h.Job(job)
	// The error holds a character 0, which PostgreSQL can't, and a text that only looks like one.
	wantJob.State.Steps[0].Error = "disk \uFFFD full \\u0000"
	gotJob, err := c.Job(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(catalog.JobRow{Job: wantJob.State, UpdatedAt: wantJob.Event.Time, Sequence: wantJob.Sequence}, gotJob, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("job (-want +got):\n%s", diff)
	}

	wantUpload := h.Upload(id)
	wantUpload.State.Variants[0].Metadata.Data = nil
	gotUpload, err := c.Upload(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	want := catalog.UploadRow{Session: wantUpload.State, UpdatedAt: wantUpload.Event.Time, Sequence: wantUpload.Sequence, Job: &wantJob.State}
	if diff := cmp.Diff(want, gotUpload, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("upload (-want +got):\n%s", diff)
	}
	if got, err := c.Upload(t.Context(), open); err != nil || got.Job != nil || got.Session.State != events.SessionOpen {
		t.Errorf("an open session is %+v, %v, want one without a job", got, err)
	}
}
