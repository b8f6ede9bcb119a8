package story_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/internal/eventstest"
	"github.com/imgsrv/imgsrv/internal/story"
)

func texts(h *eventstest.History) (out []string) {
	for _, line := range story.Tell(h.Events) {
		out = append(out, strings.TrimPrefix(line.Version+": "+line.Text, ": "))
	}
	return out
}

func TestAttachmentsAreTold(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	session := eventstest.Session("debian", "1")
	session.Variants[0].Files[0].State, session.Variants[0].Files[0].Digest = events.FilePresent, eventstest.Digest("disk")
	session.Attachments = []events.UploadFile{{Format: "notes.md", Size: 300, State: events.FilePending}}
	id := h.Publish(t, session)
	told := texts(h)
	for _, want := range []string{
		"1: opened upload session " + id + " for disk.qcow2 of amd64.virtual-machine.default (192.0 KiB, known already), attachment notes.md (300 B)",
		"1: uploaded attachment notes.md: 300 B, " + string(eventstest.Digest("debian 1 attachments notes.md")),
		"1: published: amd64.virtual-machine.default (disk.qcow2, incus.tar.xz), with notes.md, uploaded by publisher",
	} {
		if !slices.Contains(told, want) {
			t.Errorf("no line %q in\n%s", want, strings.Join(told, "\n"))
		}
	}
}

func TestATroubledPublicationIsToldStepByStep(t *testing.T) {
	t.Parallel()
	h := eventstest.New()
	id, err := h.Initiate(t, eventstest.Session("debian", "1", "latest"))
	must(t, err)
	must(t, h.CompleteFile(t, id))
	must(t, h.CompleteUpload(t, id))
	job := events.JobIDFor(id)
	must(t, h.Advance(t, job))
	must(t, h.FailStep(t, job))
	must(t, h.Advance(t, job))
	must(t, h.FailJob(t, job, events.Problem{Code: "storage", Detail: "no space"}))
	must(t, h.RetryJob(t, job))
	for h.Job(job).State.State != events.JobStateSucceeded {
		must(t, h.Advance(t, job))
	}
	must(t, h.RemoveAlias(t, "debian", "latest"))
	want := []string{
		"1: opened upload session " + id + " for disk.qcow2 of amd64.virtual-machine.default (192.0 KiB), to be latest",
		"1: uploaded disk.qcow2 of amd64.virtual-machine.default: 192.0 KiB, " + string(eventstest.Digest("debian 1 amd64.virtual-machine.default disk.qcow2")),
		"1: all files are there; job " + job + " takes them on",
		"1: job " + job + " is queued",
		"1: verify failed after 1s: disk \x00 full \\u0000; again in 5s",
		"1: verify begins again, attempt 2",
		"1: the job failed at verify after 1s (attempt 2): no space (it can be retried)",
		"1: the version's name is free again",
		"1: job " + job + " is retried, for the first time",
		"1: verify done after 1s", "1: inspect done after 1s", "1: materialize done after 1s", "1: promote done after 3s",
		"1: published: amd64.virtual-machine.default (disk.qcow2, incus.tar.xz), uploaded by publisher",
		"1: publish done after 1s; the job took 17s",
		"the image is public; debian, bookworm, A test image",
		"1: alias latest → 1",
		"1: alias latest removed; it was 1",
	}
	if diff := cmp.Diff(want, texts(h)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever happens to an image: each beginning of its history is a beginning of its story, but for a step that
// ran when the beginning ended.
func TestTheBeginningOfAHistoryIsTheBeginningOfItsStory(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		all := eventstest.Draw(t, 30).Events
		cut := rapid.IntRange(0, len(all)).Draw(t, "cut")
		whole, part := story.Tell(all), story.Tell(all[:cut])
		running := func(lines []story.Line) (rest []story.Line) {
			for _, line := range lines {
				if line.Text == "" {
					t.Fatalf("event %d has an empty line", line.Sequence)
				}
				if !strings.HasSuffix(line.Text, " runs") {
					rest = append(rest, line)
				}
			}
			return rest
		}
		told, want := running(part), running(whole)
		if diff := cmp.Diff(want[:len(told)], told, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-whole +part):\n%s", diff)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
