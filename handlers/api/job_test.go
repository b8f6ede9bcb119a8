package api_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
)

// failed opens a session, hands it over and fails its job at the first step.
func (n *node) failed(image, version string, final bool) (uploadID, jobID string) {
	n.t.Helper()
	uploadID = n.want(n.do(http.MethodPost, "/api/images", session(image, version, []byte("x"))), 201)["upload_session_id"].(string)
	jobID = events.JobIDFor(uploadID)
	n.handOver(uploadID, []byte("x"))
	n.startStep(jobID, events.StepVerify)
	n.append(func(context.Context) ([]events.Change, error) {
		return events.FailJob(n.job(jobID), n.version(image, version), events.StepVerify, events.Problem{Code: "wrong-format", Detail: "no qcow2", Final: final}, time.Now())
	})
	return uploadID, jobID
}

func TestAJobShowsItsStepsAndItsEnd(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	upload, job := n.failed("debian", "1", true)
	got := n.want(n.do(http.MethodGet, "/api/jobs/"+job, nil, anonymous), 200)
	steps := got["steps"].([]any)
	var names []string
	for _, step := range steps {
		names = append(names, step.(map[string]any)["name"].(string))
	}
	if diff := cmp.Diff([]string{"verify", "inspect", "materialize", "promote", "publish"}, names); diff != "" {
		t.Error(diff)
	}
	verify := steps[0].(map[string]any)
	if verify["state"] != "failed" || verify["attempt"] != 1.0 || verify["error"] != "no qcow2" {
		t.Errorf("step: %v", verify)
	}
	for _, name := range []string{"started_at", "finished_at"} {
		if at, err := time.Parse(time.RFC3339Nano, verify[name].(string)); err != nil || at.Location() != time.UTC {
			t.Errorf("%s is %v (%v)", name, verify[name], err)
		}
	}
	for name, want := range map[string]any{"id": job, "state": "failed", "image": "debian", "version": "1", "upload_url": n.url + "/api/uploads/" + upload,
		"url": n.url + "/api/jobs/" + job, "error": map[string]any{"code": "wrong-format", "detail": "no qcow2", "final": true}} {
		if diff := cmp.Diff(want, got[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if status := n.want(n.do(http.MethodGet, "/api/uploads/"+upload, nil), 200); status["state"] != "failed" || status["error"].(map[string]any)["code"] != "wrong-format" {
		t.Errorf("session: %v", status)
	}
	n.problem(n.do(http.MethodPost, "/api/jobs/"+job+"/retry", nil), 409, "job-refused")
}

func TestAFailedJobIsRetried(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	_, job := n.failed("debian", "1", false)
	a := n.do(http.MethodPost, "/api/jobs/"+job+"/retry", nil)
	got := n.want(a, http.StatusAccepted)
	head, err := n.events.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got["state"] != "queued" || got["retries"] != 1.0 || got["error"] != nil || a.Header.Get("Imgsrv-Sequence") != fmt.Sprint(head) || a.Header.Get("Location") != got["url"] {
		t.Errorf("answer: %v %v", got, a.Header)
	}
	n.problem(n.do(http.MethodPost, "/api/jobs/"+job+"/retry", nil), 409, "job-not-failed")
	n.finish(job)
	if got := n.want(n.do(http.MethodGet, "/api/jobs/"+job, nil), 200); got["state"] != "succeeded" || got["version_url"] != n.url+"/api/images/debian/versions/1" {
		t.Errorf("answer: %v", got)
	}
}

func TestJobsAreListedNewestFirstByPage(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	var newest []string
	for i := range 5 {
		_, job := n.failed("debian", fmt.Sprint(i), true)
		newest = append([]string{job}, newest...)
	}
	id := n.want(n.do(http.MethodPost, "/api/images", session("debian", "ok", []byte("x"))), 201)["upload_session_id"].(string)
	n.handOver(id, []byte("x"))
	head, err := n.events.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	next := n.url + "/api/jobs?limit=2&state=failed"
	for pages := 0; next != ""; pages++ {
		a := n.do(http.MethodGet, next, nil, withHeader("Imgsrv-Min-Sequence", fmt.Sprint(head)))
		page := n.want(a, 200)
		for _, job := range page["jobs"].([]any) {
			got = append(got, job.(map[string]any)["id"].(string))
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(a.Header.Get("Link"), "<"), ">")
		if (next == "") != (page["next"] == nil) || pages > 3 {
			t.Fatalf("Link %q, next %v", a.Header.Get("Link"), page["next"])
		}
	}
	if diff := cmp.Diff(newest, got); diff != "" {
		t.Error(diff)
	}
	n.problem(n.do(http.MethodGet, "/api/jobs?after=!", nil), 400, "bad-request")
	n.problem(n.do(http.MethodGet, "/api/jobs?state=lost", nil), 422, "invalid-request")
	n.problem(n.do(http.MethodGet, "/api/jobs?limit=0", nil), 422, "invalid-request")
	n.problem(n.do(http.MethodGet, "/api/jobs?limit=many", nil), 422, "invalid-request")
}

func TestAJobIsCancelled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	_, job := n.failed("debian", "1", false)
	a := n.do(http.MethodPost, "/api/jobs/"+job+"/cancel", map[string]string{"reason": "wrong image"})
	got := n.want(a, http.StatusOK)
	if problem := got["error"].(map[string]any); got["state"] != "cancelled" || problem["detail"] != "cancelled by admin: wrong image" || a.Header.Get("Imgsrv-Sequence") == "" {
		t.Errorf("answer: %v", got)
	}
	again := n.do(http.MethodPost, "/api/jobs/"+job+"/cancel", nil)
	if got := n.want(again, http.StatusOK); got["state"] != "cancelled" || again.Header.Get("Imgsrv-Sequence") != a.Header.Get("Imgsrv-Sequence") {
		t.Errorf("once more: %v %v", got, again.Header)
	}
	n.problem(n.do(http.MethodPost, "/api/jobs/"+job+"/retry", nil), 409, "job-not-failed")
	_, refused := n.failed("debian", "2", true)
	n.problem(n.do(http.MethodPost, "/api/jobs/"+refused+"/cancel", nil), 409, "job-ended")
	n.problem(n.do(http.MethodPost, "/api/jobs/"+events.JobIDFor(job)+"/cancel", nil), 404, "not-found")
	n.problem(n.do(http.MethodPost, "/api/jobs/none/cancel", nil), 404, "not-found")
	list := n.want(n.do(http.MethodGet, "/api/jobs?state=cancelled", nil, withHeader("Imgsrv-Min-Sequence", a.Header.Get("Imgsrv-Sequence"))), 200)
	if jobs := list["jobs"].([]any); len(jobs) != 1 || jobs[0].(map[string]any)["id"] != job {
		t.Errorf("cancelled jobs: %v", jobs)
	}

	// One that is queued: its session is over, and its name free.
	data := []byte("x")
	id := n.want(n.do(http.MethodPost, "/api/images", session("debian", "3", data)), 201)["upload_session_id"].(string)
	n.handOver(id, data)
	n.want(n.do(http.MethodPost, "/api/jobs/"+events.JobIDFor(id)+"/cancel", nil), http.StatusOK)
	if got := n.want(n.do(http.MethodGet, "/api/uploads/"+id, nil), 200); got["state"] != "aborted" {
		t.Errorf("its session: %v", got)
	}
	done := n.publish(session("debian", "3", data), data)
	n.problem(n.do(http.MethodPost, "/api/jobs/"+events.JobIDFor(done)+"/cancel", nil), 409, "job-ended")
}
