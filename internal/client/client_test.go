package client_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/imgsrv/imgsrv/internal/client"
)

func serve(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func TestTokenGoesToItsServerOnly(t *testing.T) {
	t.Parallel()
	var foreign atomic.Pointer[string]
	other := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got := r.Header.Get("Authorization")
		foreign.Store(&got)
		answer(w, http.StatusOK, map[string]string{"id": "x"})
	})
	var own string
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		own = r.Header.Get("Authorization")
		// The same host, another port: Go's own client would send the header along.
		http.Redirect(w, r, other.URL+r.URL.Path, http.StatusTemporaryRedirect)
	})
	c := newClient(t, server.URL, client.Options{})
	if _, err := c.Job(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if own != "Bearer secret-token" {
		t.Errorf("the server got %q", own)
	}
	if got := foreign.Load(); got == nil || *got != "" {
		t.Errorf("the other server got the header %v, want none", got)
	}
}

func TestRedirectedWriteIsAnError(t *testing.T) {
	t.Parallel()
	requests := 0
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests++
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	})
	_, err := newClient(t, server.URL, client.Options{}).CreateUpload(t.Context(), client.NewImage{})
	var p *client.Problem
	if !errors.As(err, &p) || p.Status != http.StatusFound || requests != 1 {
		t.Errorf("%v after %d requests, want a problem with status 302 after one", err, requests)
	}
}

func TestServerNames(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ in, want string }{
		{"http://127.0.0.1:8080", "http://127.0.0.1:8080"},
		{"127.0.0.1:8080", "http://127.0.0.1:8080"},
		{"localhost", "http://localhost"},
		{"https://images.example.org/", "https://images.example.org"},
		{"https://example.org/imgsrv/?x=1#y", "https://example.org/imgsrv"},
		{"[::1]:80", "http://[::1]:80"},
		{"", ""},
		{"ftp://example.org", ""},
		{"http://", ""},
		{"https://admin:geheim@example.org", ""},
		{"https://admin:geheim%zz@example.org", ""},
	} {
		u, err := client.ParseServer(c.in)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%q was taken as %s", c.in, u)
		case c.want == "" && strings.Contains(err.Error(), "geheim"):
			t.Errorf("the error for %q tells the password: %v", c.in, err)
		case c.want != "" && err != nil:
			t.Errorf("%q: %v", c.in, err)
		case c.want != "" && u.String() != c.want:
			t.Errorf("%q: got %s, want %s", c.in, u, c.want)
		}
	}
}

func TestURLsOfTheServerAreReachedFromHere(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ server, ref, want string }{
		{"https://images.example.org", "/api/jobs/1", "https://images.example.org/api/jobs/1"},
		{"https://images.example.org", "http://10.0.0.7:8080/api/jobs/1?x=y", "https://images.example.org/api/jobs/1?x=y"},
		{"https://example.org/imgsrv", "http://10.0.0.7:8080/api/jobs/1", "https://example.org/imgsrv/api/jobs/1"},
		{"https://example.org/imgsrv", "https://example.org/imgsrv/api/jobs/1", "https://example.org/imgsrv/api/jobs/1"},
		{"http://h", "/api/images/a%2Fb", "http://h/api/images/a%2Fb"},
	} {
		if got := newClient(t, c.server, client.Options{}).URL(c.ref); got != c.want {
			t.Errorf("%s at %s: got %s, want %s", c.ref, c.server, got, c.want)
		}
	}
}

func TestProblemsOfTheServerAreTyped(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		kind, body string
		want       client.Problem
		text       string
	}{
		"a problem document": {"application/problem+json",
			`{"type":"https://x/problems/version-in-progress","title":"T","status":409,"detail":"wait for it","code":"version-in-progress","status_url":"/api/uploads/7"}`,
			client.Problem{Type: "https://x/problems/version-in-progress", Title: "T", Status: 409, Detail: "wait for it", Code: "version-in-progress", StatusURL: "/api/uploads/7"},
			"wait for it"},
		"broken rules": {"application/problem+json; charset=utf-8",
			`{"title":"T","detail":"the request breaks 2 rules","code":"invalid-request","errors":[{"location":"image","message":"is empty"},{"location":"version","message":"has spaces"}]}`,
			client.Problem{Title: "T", Status: 409, Detail: "the request breaks 2 rules", Code: "invalid-request", Errors: []client.Field{{Location: "image", Message: "is empty"}, {Location: "version", Message: "has spaces"}}},
			"the request breaks 2 rules: image: is empty; version: has spaces"},
		"a page of a proxy": {"text/html", "<h1>no</h1>", client.Problem{Title: "Conflict", Status: 409}, "Conflict (HTTP 409)"},
		"broken JSON":       {"application/problem+json", `{"title":`, client.Problem{Title: "Conflict", Status: 409}, "Conflict (HTTP 409)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", c.kind)
				w.WriteHeader(http.StatusConflict)
				_, _ = w.Write([]byte(c.body))
			})
			_, err := newClient(t, server.URL, client.Options{}).CreateUpload(t.Context(), client.NewImage{})
			var got *client.Problem
			if !errors.As(err, &got) {
				t.Fatalf("error %v, want a *Problem", err)
			}
			if diff := cmp.Diff(c.want, *got, cmpopts.IgnoreUnexported(client.Problem{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if got.Error() != c.text {
				t.Errorf("for people: %q, want %q", got.Error(), c.text)
			}
		})
	}
}

func TestCreationWhoseAnswerWasLostIsMadeAgainUnderItsKey(t *testing.T) {
	t.Parallel()
	var keys []string
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		keys = append(keys, r.Header.Get("Idempotency-Key"))
		if len(keys) == 1 {
			panic(http.ErrAbortHandler)
		}
		answer(w, http.StatusCreated, client.Session{ID: "7", State: client.StateUploading})
	})
	c := newClient(t, server.URL, client.Options{})
	session, err := c.CreateUpload(t.Context(), client.NewImage{Image: "a"})
	if err != nil || session.ID != "7" {
		t.Fatalf("session %v: %v", session, err)
	}
	if len(keys) != 2 || keys[0] == "" || keys[0] != keys[1] {
		t.Errorf("keys %q, want twice the same", keys)
	}
	if _, err := c.CreateUpload(t.Context(), client.NewImage{Image: "a"}); err != nil || keys[2] == keys[0] {
		t.Errorf("another creation has the key %q of the first (%v)", keys[2], err)
	}
}

func TestCreationWhereNobodyListensFailsAtOnce(t *testing.T) {
	t.Parallel()
	server := serve(t, func(http.ResponseWriter, *http.Request) {})
	server.Close()
	_, err := newClient(t, server.URL, client.Options{Retry: client.Retry{Notice: func(err error, _ time.Duration) { t.Errorf("tried again after %v", err) }, Limit: 3}}).CreateUpload(t.Context(), client.NewImage{})
	var c *client.ConnectionError
	if !errors.As(err, &c) || !c.Refused() {
		t.Errorf("error %v, want a refused connection", err)
	}
}

func TestListsAreReadPageByPage(t *testing.T) {
	t.Parallel()
	var asked []string
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("after")+" "+r.URL.Query().Get("state"))
		switch r.URL.Query().Get("after") {
		case "":
			answer(w, http.StatusOK, map[string]any{"jobs": []client.Job{{ID: "1"}, {ID: "2"}}, "next": "2"})
		case "2":
			answer(w, http.StatusOK, map[string]any{"jobs": []client.Job{{ID: "3"}}})
		}
	})
	c := newClient(t, server.URL, client.Options{})
	var got []string
	for job, err := range c.Jobs(t.Context(), client.JobFailed) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, job.ID)
	}
	if !slices.Equal(got, []string{"1", "2", "3"}) || !slices.Equal(asked, []string{" failed", "2 failed"}) {
		t.Errorf("jobs %v by the requests %q", got, asked)
	}
	asked = nil
	for _, err := range c.Jobs(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if len(asked) != 1 {
		t.Errorf("%d pages were read for one entry", len(asked))
	}
}

func TestWaitingForAJobOutlastsAServerThatStartsAnew(t *testing.T) {
	t.Parallel()
	answers := []func(w http.ResponseWriter){
		func(w http.ResponseWriter) { answer(w, http.StatusNotFound, client.Problem{Code: client.CodeNotFound}) }, // not queued yet
		func(w http.ResponseWriter) { answer(w, http.StatusOK, client.Job{ID: "7", State: client.JobQueued}) },
		func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		func(w http.ResponseWriter) { answer(w, http.StatusServiceUnavailable, client.Problem{}) },
		func(w http.ResponseWriter) { answer(w, http.StatusOK, client.Job{ID: "7", State: client.JobRunning}) },
		func(w http.ResponseWriter) { answer(w, http.StatusOK, client.Job{ID: "7", State: client.JobFailed}) },
	}
	n := 0
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		n++
		answers[n-1](w)
	})
	var states []string
	job, err := newClient(t, server.URL, client.Options{}).WaitJob(t.Context(), "7", func(j *client.Job) { states = append(states, j.State) })
	if err != nil || job.State != client.JobFailed {
		t.Fatalf("job %v: %v", job, err)
	}
	if !slices.Equal(states, []string{client.JobQueued, client.JobRunning, client.JobFailed}) {
		t.Errorf("states %v", states)
	}
}
