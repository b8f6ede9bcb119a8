package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAnImageAppearsWithItsFirstVersion(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))), 201)
	for _, path := range []string{"/api/images/debian", "/api/images/debian/versions", "/api/images/debian/versions/1", "/api/images/No.Name", "/api/images/debian%2Fx"} {
		n.problem(n.do(http.MethodGet, path, nil), 404, "not-found")
	}
	if got := n.want(n.do(http.MethodGet, "/api/images", nil), 200); len(got["images"].([]any)) != 0 {
		t.Errorf("images: %v", got)
	}
	n.publish(session("debian", "2", []byte("bytes"), "latest", "stable"), []byte("bytes"))
	got := n.want(n.do(http.MethodGet, "/api/images/debian", nil, anonymous), 200)
	if _, ok := got["published_at"].(string); !ok {
		t.Errorf("published_at: %v", got["published_at"])
	}
	delete(got, "published_at")
	want := map[string]any{"name": "debian", "os": "debian", "release": "bookworm", "visibility": "public", "latest_version": "2", "version_count": 1.0,
		"aliases": map[string]any{"latest": "2", "stable": "2"}, "url": n.url + "/api/images/debian", "versions_url": n.url + "/api/images/debian/versions"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestImagesAndVersionsAreListedByPage(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, image := range []string{"c", "a", "b"} {
		n.publish(session(image, "1", []byte("x")), []byte("x"))
	}
	n.publish(session("a", "2", []byte("x"), "latest"), []byte("x"))
	n.publish(session("a", "3", []byte("x")), []byte("x"))
	walk := func(path, list, name string) []string {
		var got []string
		next := n.url + path + "?limit=1"
		for range 10 {
			a := n.do(http.MethodGet, next, nil)
			page := n.want(a, 200)
			for _, entry := range page[list].([]any) {
				got = append(got, entry.(map[string]any)[name].(string))
			}
			if next, _, _ = strings.Cut(strings.TrimPrefix(a.Header.Get("Link"), "<"), ">"); next == "" {
				break
			}
		}
		return got
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, walk("/api/images", "images", "name")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"3", "2", "1"}, walk("/api/images/a/versions", "versions", "version")); diff != "" {
		t.Error(diff)
	}
	second := n.want(n.do(http.MethodGet, "/api/images/a/versions", nil), 200)["versions"].([]any)[1].(map[string]any)
	delete(second, "published_at")
	want := map[string]any{"image": "a", "version": "2", "aliases": []any{"latest"}, "variants": []any{variantName}, "url": n.url + "/api/images/a/versions/2"}
	if diff := cmp.Diff(want, second); diff != "" {
		t.Error(diff)
	}
	n.problem(n.do(http.MethodGet, "/api/images/a/versions?after=!", nil), 400, "bad-request")
	n.problem(n.do(http.MethodGet, "/api/images?limit=1001", nil), 422, "invalid-request")
}

func TestAManifestNamesEveryFileAndIsRevalidated(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := []byte("the disk")
	id := n.publish(session("debian", "12.5.0+1~rc", data, "latest"), data)
	a := n.do(http.MethodGet, "/api/images/debian/versions/latest", nil, anonymous)
	got := n.want(a, 200)
	delete(got, "published_at")
	version := n.url + "/api/images/debian/versions/12.5.0+1~rc"
	want := map[string]any{"image": "debian", "version": "12.5.0+1~rc", "os": "debian", "release": "bookworm", "visibility": "public", "published_by": "admin",
		"aliases": []any{"latest"}, "url": version, "job_url": got["job_url"],
		"variants": []any{map[string]any{"name": variantName, "architecture": "amd64", "type": "virtual-machine", "flavour": "default",
			"formats": []any{map[string]any{"format": "disk.qcow2", "digest": "sha256:" + sha(data), "size": 8.0, "media_type": "application/x-qemu-disk", "origin": "uploaded",
				"url": version + "/variants/" + variantName + "/formats/disk.qcow2", "blob_url": n.url + "/cas/sha256/" + sha(data)[:2] + "/" + sha(data)}}}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n.want(n.do(http.MethodGet, got["job_url"].(string), nil), 200)["upload_url"] != n.url+"/api/uploads/"+id {
		t.Errorf("job_url %v leads elsewhere", got["job_url"])
	}

	etag := a.Header.Get("ETag")
	for _, header := range []string{etag, `"other", ` + etag, "W/" + etag, "*"} {
		same := n.do(http.MethodGet, "/api/images/debian/versions/latest", nil, anonymous, withHeader("If-None-Match", header))
		if same.StatusCode != http.StatusNotModified || len(same.body) != 0 || same.Header.Get("ETag") != etag {
			t.Errorf("If-None-Match %s: %d %s", header, same.StatusCode, same.body)
		}
	}
	moved := n.do(http.MethodPut, "/api/images/debian/aliases/stable", map[string]any{"version": "12.5.0+1~rc"})
	n.want(moved, 200)
	other := n.do(http.MethodGet, "/api/images/debian/versions/latest", nil, withHeader("If-None-Match", etag),
		withHeader("Imgsrv-Min-Sequence", moved.Header.Get("Imgsrv-Sequence")))
	if aliases := n.want(other, 200)["aliases"]; !cmp.Equal(aliases, []any{"latest", "stable"}) {
		t.Errorf("after the move: %v", aliases)
	}
}

func TestPrivateImagesAreNotThereForNobody(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	body := session("secret", "1", []byte("hush"), "latest")
	body["visibility"] = "private"
	n.publish(body, []byte("hush"))
	file := "/variants/" + variantName + "/formats/disk.qcow2"
	for _, path := range []string{"/api/images/secret", "/api/images/secret/versions", "/api/images/secret/versions/1", "/api/images/secret/versions/1" + file,
		"/cas/sha256/" + sha([]byte("hush"))[:2] + "/" + sha([]byte("hush"))} {
		n.problem(n.do(http.MethodGet, path, nil, anonymous), 404, "not-found")
		a := n.do(http.MethodGet, path, nil)
		if a.StatusCode != 200 {
			t.Errorf("%s: %d for the admin", path, a.StatusCode)
		}
		if cache := a.Header.Get("Cache-Control"); strings.Contains(cache, "public") {
			t.Errorf("%s: a shared cache may keep it: %s", path, cache)
		}
	}
	if got := n.want(n.do(http.MethodGet, "/api/images", nil, anonymous), 200); len(got["images"].([]any)) != 0 {
		t.Errorf("listed for nobody: %v", got)
	}
	if got := n.want(n.do(http.MethodGet, "/api/images", nil), 200); len(got["images"].([]any)) != 1 {
		t.Errorf("listed for the admin: %v", got)
	}
}

func TestAliasesMoveAndEnd(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.publish(session("debian", "1", []byte("x")), []byte("x"))
	n.publish(session("debian", "2", []byte("x"), "latest"), []byte("x"))
	resolve := func(sequence string) string {
		return n.want(n.do(http.MethodGet, "/api/images/debian/versions/latest", nil, withHeader("Imgsrv-Min-Sequence", sequence)), 200)["version"].(string)
	}
	put := func(alias, version string) answer {
		return n.do(http.MethodPut, "/api/images/debian/aliases/"+alias, map[string]any{"version": version})
	}
	back := put("latest", "1")
	want := map[string]any{"image": "debian", "alias": "latest", "version": "1", "version_url": n.url + "/api/images/debian/versions/1"}
	if diff := cmp.Diff(want, n.want(back, 200)); diff != "" {
		t.Error(diff)
	}
	if got := resolve(back.Header.Get("Imgsrv-Sequence")); got != "1" {
		t.Errorf("latest is %s after the roll-back", got)
	}
	if again := put("latest", "1"); again.Header.Get("Imgsrv-Sequence") != back.Header.Get("Imgsrv-Sequence") {
		t.Errorf("moving it to where it is made event %s", again.Header.Get("Imgsrv-Sequence"))
	}

	n.problem(put("latest", "3"), 404, "not-found")
	n.problem(put("1", "2"), 409, "alias-clash")
	n.problem(put("amd64", "2"), 409, "alias-clash")
	n.problem(put("default", "2"), 409, "alias-clash")
	n.problem(put("a%20b", "2"), 422, "invalid-request")
	n.problem(put("ok", "a/b"), 422, "invalid-request")
	n.problem(n.do(http.MethodPut, "/api/images/debian/aliases/ok", `{"version":"1","force":true}`), 422, "invalid-request")
	n.problem(n.do(http.MethodPut, "/api/images/debian/aliases/ok", `{}`), 422, "invalid-request")
	n.problem(n.do(http.MethodPut, "/api/images/none/aliases/ok", `{"version":"1"}`), 404, "not-found")

	removed := n.do(http.MethodDelete, "/api/images/debian/aliases/latest", nil)
	n.want(removed, 204)
	sequence := removed.Header.Get("Imgsrv-Sequence")
	n.problem(n.do(http.MethodGet, "/api/images/debian/versions/latest", nil, withHeader("Imgsrv-Min-Sequence", sequence)), 404, "not-found")
	n.problem(n.do(http.MethodDelete, "/api/images/debian/aliases/latest", nil), 404, "not-found")
	if head, err := n.events.Head(t.Context()); err != nil || fmt.Sprint(head) != sequence {
		t.Errorf("head is %d (%v), the removal was %s", head, err, sequence)
	}
}
