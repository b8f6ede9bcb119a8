package main

import (
	"slices"
	"strings"
	"testing"
)

// Who may not read a private image can't find out what is in it by its digest.
func TestGuessingDigestsRevealsNothing(t *testing.T) {
	t.Parallel()
	_, node := server(t)
	admin := node.publisher(t)
	secret := file{format: "disk.raw", data: []byte(rawDisk(4096))}
	secret.sha256 = digestOf(secret.data)
	body := vm("team-a-secret", "1", nil, secret)
	body["visibility"] = "private"
	admin.publish(body, secret)
	cas := "/cas/sha256/" + secret.sha256[:2] + "/" + secret.sha256

	as := func(name, images string) *publisher {
		var issued struct{ Token string }
		admin.call("POST", "/api/principals", map[string]any{"name": name, "roles": []any{map[string]any{"role": "publisher", "images": images}}}, nil)
		admin.call("POST", "/api/tokens", map[string]any{"principal": name}, &issued)
		return &publisher{t: t, base: node.HTTPURL, token: issued.Token}
	}
	mine, other := as("a", "team-a-*"), as("b", "team-b-*")
	if session := mine.open(vm("team-a-copy", "1", nil, secret)); session.Files[0].State != "present" {
		t.Errorf("who may read the bytes has to send them again: %+v", session.Files)
	}
	session := other.open(vm("team-b-copy", "1", nil, secret))
	if session.Files[0].State != "pending" {
		t.Errorf("another publisher is told that the bytes are there: %+v", session.Files)
	}
	if resp := other.call("GET", cas, nil, nil); resp.StatusCode != 404 {
		t.Errorf("another publisher gets the bytes: %d", resp.StatusCode)
	}
	// Who has the bytes may publish them, and then read them.
	other.upload(session, secret)
	if job := other.await(session); job.State != "succeeded" {
		t.Fatalf("job %s: %+v", job.State, job.Error)
	}
	if resp := other.call("GET", cas, nil, nil); resp.StatusCode != 200 {
		t.Errorf("its own bytes: %d", resp.StatusCode)
	}
}

// Two sessions of a new image may declare its visibility differently. What was declared private must not become public by the other,
// and what is private now must not show by what it was declared as.
func TestWhatWasDeclaredPrivateStaysPrivate(t *testing.T) {
	t.Parallel()
	_, node := server(t)
	p, anybody := node.publisher(t), node.stranger(t)
	declare := func(image, version, visibility string, f file) map[string]any {
		body := vm(image, version, nil, f)
		body["visibility"] = visibility
		return body
	}
	disk := func(n int) file { return file{format: "disk.raw", data: []byte(rawDisk(n))} }

	secret, open := disk(1024), disk(2048)
	private := p.open(declare("first-public", "2", "private", secret))
	p.publish(declare("first-public", "1", "public", open), open)
	p.upload(private, secret)
	if job := p.await(private); job.State != "failed" || job.Error.Code != "visibility-differs" || !job.Error.Final {
		t.Errorf("a private version of an image that has become public: %s, %+v", job.State, job.Error)
	}
	digest := digestOf(secret.data)
	for _, path := range []string{"/api/images/first-public/versions/2", "/cas/sha256/" + digest[:2] + "/" + digest} {
		if resp := anybody.call("GET", path, nil, nil); resp.StatusCode != 404 {
			t.Errorf("anybody gets %s: %d", path, resp.StatusCode)
		}
	}

	hidden := p.open(declare("first-private", "9-hidden", "public", disk(512)))
	p.publish(declare("first-private", "1", "private", open), open)
	p.upload(hidden, disk(512))
	job := p.await(hidden)
	var jobs []byte
	anybody.call("GET", "/api/jobs", nil, &jobs)
	if strings.Contains(string(jobs), "9-hidden") || !strings.Contains(string(jobs), "first-public") {
		t.Errorf("anybody's list of jobs: %s", jobs)
	}
	for _, path := range []string{"/api/uploads/" + hidden.ID, "/api/jobs/" + job.ID, "/api/images/first-private"} {
		if resp := anybody.call("GET", path, nil, nil); resp.StatusCode != 404 {
			t.Errorf("anybody gets %s: %d", path, resp.StatusCode)
		}
		if resp := p.call("GET", path, nil, nil); resp.StatusCode != 200 {
			t.Errorf("who may doesn't get %s: %d", path, resp.StatusCode)
		}
	}
}

// A page of jobs says nothing of those that it leaves out.
func TestPagesOfJobsAreOfWhatTheCallerSees(t *testing.T) {
	t.Parallel()
	_, node := server(t)
	p := node.publisher(t)
	disk := file{format: "disk.raw", data: []byte(rawDisk(512))}
	for _, image := range []string{"team-a-open", "team-a-secret", "team-b-secret"} {
		body := vm(image, "1", nil, disk)
		if strings.HasSuffix(image, "secret") {
			body["visibility"] = "private"
		}
		p.publish(body, disk)
	}
	broken := file{format: "disk.qcow2", data: []byte("no qcow2")}
	session := p.open(vm("team-a-open", "2", nil, broken))
	p.upload(session, broken)
	if job := p.await(session); job.State != "failed" {
		t.Fatalf("job %s", job.State)
	}
	callers := everyCaller(t, p)
	for name, want := range map[string]string{"nobody": "open/1", "a reader of team-a-*": "open/1 secret/1", "a publisher of team-a-*": "open/1 open/2 secret/1",
		"an operator of team-a-*": "open/1 open/2 secret/1", "a reader of team-b-*": "b-secret/1 open/1", "an operator": "b-secret/1 open/1 open/2 secret/1"} {
		c := callers[slices.IndexFunc(callers, func(c caller) bool { return c.name == name })]
		var got []string
		for after := ""; ; {
			var page struct {
				Jobs []struct{ Image, Version string }
				Next string
			}
			p.call("GET", "/api/jobs?limit=1&after="+after, nil, &page, "Authorization", c.header)
			for _, job := range page.Jobs {
				got = append(got, strings.ReplaceAll(strings.TrimPrefix(job.Image, "team-a-"), "team-", "")+"/"+job.Version)
			}
			if after = page.Next; after == "" {
				break
			}
			if len(page.Jobs) != 1 {
				t.Errorf("%s gets a page of %d, and more after it", name, len(page.Jobs))
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s sees %v, want %s", name, got, want)
		}
	}
}
