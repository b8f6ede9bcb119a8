package api_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/store/blob"
)

func TestAnUploadIsFollowedToItsPublication(t *testing.T) {
	t.Parallel()
	expiry := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	n := newNode(t, func(c *api.Config) {
		c.ExpiresAt = func(string) (time.Time, bool) { return expiry, true }
	})
	data := []byte("0123456789")
	body := session("debian", "12.5.0", data, "latest", "stable")
	body["variants"].([]any)[0].(map[string]any)["files"].([]any)[0].(map[string]any)["sha256"] = sha(data)
	id := n.want(n.do(http.MethodPost, "/api/images", body), 201)["upload_session_id"].(string)
	jobID := events.JobIDFor(id)

	status := func() map[string]any { return n.want(n.do(http.MethodGet, "/api/uploads/"+id, nil, anonymous), 200) }
	file := map[string]any{"variant": variantName, "format": "disk.qcow2", "state": "pending", "offset": 0.0, "size": 10.0, "sha256": sha(data)}
	want := map[string]any{"id": id, "state": "uploading", "image": "debian", "version": "12.5.0", "files": []any{file}, "expires_at": "2026-11-25T12:00:00Z"}
	if diff := cmp.Diff(want, status()); diff != "" {
		t.Fatal(diff)
	}

	intake, err := n.blobs.CreateIntake(t.Context(), id, 0, blob.IntakeSpec{SizeBytes: 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := intake.Append(t.Context(), &limited{data: data[:4]}); err == nil {
		t.Fatal("the reader was to break")
	}
	file["offset"], file["tus_url"] = 4.0, n.url+"/api/uploads/tus/"+id+".0"
	if diff := cmp.Diff(want, status()); diff != "" {
		t.Fatal(diff)
	}

	n.handOver(id, data)
	delete(file, "tus_url")
	delete(want, "expires_at")
	file["state"], file["offset"] = "complete", 10.0
	want["state"], want["job_url"] = "queued", n.url+"/api/jobs/"+jobID
	if diff := cmp.Diff(want, status()); diff != "" {
		t.Fatal(diff)
	}
	n.problem(n.do(http.MethodDelete, "/api/uploads/"+id, nil), 409, "publishing")

	n.finish(jobID)
	want["state"], want["version_url"] = "published", n.url+"/api/images/debian/versions/12.5.0"
	if diff := cmp.Diff(want, status()); diff != "" {
		t.Fatal(diff)
	}
	// What is said to be published is visible, its aliases too, with no waiting.
	got := n.want(n.do(http.MethodGet, "/api/images/debian/versions/stable", nil), 200)
	if got["version"] != "12.5.0" {
		t.Errorf("stable is %v", got["version"])
	}
}

// limited is a connection that breaks.
type limited struct{ data []byte }

func (l *limited) Read(p []byte) (int, error) {
	if len(l.data) == 0 {
		return 0, context.Canceled
	}
	n := copy(p, l.data)
	l.data = l.data[n:]
	return n, nil
}

func TestPublishedIsSaidEvenWhileProjectionsStand(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t, func(c *api.Config) { c.VisibleWait = 20 * time.Millisecond })
	id := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))), 201)["upload_session_id"].(string)
	n.handOver(id, []byte("x"))
	n.finish(events.JobIDFor(id))
	if got := n.want(n.do(http.MethodGet, "/api/uploads/"+id, nil), 200); got["state"] != "published" {
		t.Errorf("state is %v", got["state"])
	}
	if got := n.want(n.do(http.MethodGet, "/api/jobs/"+events.JobIDFor(id), nil), 200); got["state"] != "succeeded" {
		t.Errorf("state is %v", got["state"])
	}
}

func TestAnAbortedSessionFreesItsVersion(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	id := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))), 201)["upload_session_id"].(string)
	a := n.do(http.MethodDelete, "/api/uploads/"+id, nil)
	got := n.want(a, 200)
	if got["state"] != "aborted" || got["reason"] != "aborted by admin" || a.Header.Get("Imgsrv-Sequence") != "4" {
		t.Errorf("answer: %v, %v", got, a.Header)
	}
	again := n.do(http.MethodDelete, "/api/uploads/"+id, nil)
	if n.want(again, 200)["state"] != "aborted" || again.Header.Get("Imgsrv-Sequence") != "3" {
		t.Errorf("again: %s, %v", again.body, again.Header)
	}
	n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))), 201)
}

func TestSessionsAndJobsOfPrivateImagesAreForThoseWhoMaySeeThem(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	body := session("secret", "1", []byte("x"))
	body["visibility"] = "private"
	id := n.publish(body, []byte("x"))
	open := n.publish(session("debian", "1", []byte("y")), []byte("y"))
	for _, path := range []string{"/api/uploads/" + id, "/api/jobs/" + events.JobIDFor(id)} {
		n.problem(n.do(http.MethodGet, path, nil, anonymous), 404, "not-found")
		n.want(n.do(http.MethodGet, path, nil), 200)
	}
	listed := func(options ...option) []string {
		var ids []string
		for _, job := range n.want(n.do(http.MethodGet, "/api/jobs", nil, options...), 200)["jobs"].([]any) {
			ids = append(ids, job.(map[string]any)["id"].(string))
		}
		return ids
	}
	if diff := cmp.Diff([]string{events.JobIDFor(open)}, listed(anonymous)); diff != "" {
		t.Errorf("for nobody: %s", diff)
	}
	if diff := cmp.Diff([]string{events.JobIDFor(open), events.JobIDFor(id)}, listed()); diff != "" {
		t.Errorf("for the admin: %s", diff)
	}
}

func TestWhatIsNoIDIsNotFound(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, id := range []string{"x", "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b", "0199A1B2-C3D4-7E5F-8A6B-7C8D9E0F1A2B", "%3E", "a.b", "*"} {
		n.problem(n.do(http.MethodGet, "/api/uploads/"+id, nil), 404, "not-found")
		n.problem(n.do(http.MethodDelete, "/api/uploads/"+id, nil), 404, "not-found")
		n.problem(n.do(http.MethodGet, "/api/jobs/"+id, nil), 404, "not-found")
		n.problem(n.do(http.MethodPost, "/api/jobs/"+id+"/retry", nil), 404, "not-found")
	}
}
