package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/internal/incus"
)

func TestASessionTellsWhereItsFilesGo(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.do(http.MethodPost, "/api/images", session("debian", "12.5.0", []byte("some bytes"), "latest"))
	got := n.want(a, http.StatusCreated)
	id := got["upload_session_id"].(string)
	b64 := base64.StdEncoding.EncodeToString
	want := map[string]any{
		"upload_session_id": id, "state": "uploading", "status_url": n.url + "/api/uploads/" + id,
		"files": []any{map[string]any{"variant": variantName, "format": "disk.qcow2", "state": "pending", "size": 10.0,
			"tus": map[string]any{"create_url": n.url + "/api/uploads/tus/",
				"metadata": "session " + b64([]byte(id)) + ",variant " + b64([]byte(variantName)) + ",format " + b64([]byte("disk.qcow2"))}}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if a.Header.Get("Location") != n.url+"/api/uploads/"+id || a.Header.Get("Imgsrv-Sequence") != "2" {
		t.Errorf("headers: %v", a.Header)
	}

	upload := n.upload(id).State
	metadata := upload.Variants[0].Metadata
	if metadata == nil {
		t.Fatal("no metadata tarball was made")
	}
	again, err := incus.Metadata{Architecture: "amd64", CreationDate: upload.InitiatedAt, Name: "debian", OS: "debian", Release: "bookworm", Version: "12.5.0"}.Tarball()
	if err != nil {
		t.Fatal(err)
	}
	if sha(again) != metadata.Digest.Hex() || sha(metadata.Data) != metadata.Digest.Hex() || metadata.Format != events.FormatMetadata {
		t.Errorf("metadata is not what the request says: %+v", metadata)
	}
	sessions, err := n.blobs.Sessions()
	if err != nil || len(sessions) != 1 || sessions[0].ID != id {
		t.Errorf("the byte store knows the sessions %v (%v)", sessions, err)
	}
}

func TestAGivenMetadataFileComesBeforeItsRoot(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	body := session("debian", "1", []byte("x"))
	body["variants"].([]any)[0].(map[string]any)["files"] = []any{
		map[string]any{"format": "disk.qcow2", "size": 1}, map[string]any{"format": "incus.tar.xz", "size": 2}}
	got := n.want(n.do(http.MethodPost, "/api/images", body), http.StatusCreated)
	var formats []string
	for _, f := range got["files"].([]any) {
		formats = append(formats, f.(map[string]any)["format"].(string))
	}
	if diff := cmp.Diff([]string{"incus.tar.xz", "disk.qcow2"}, formats); diff != "" {
		t.Error(diff)
	}
	if n.upload(got["upload_session_id"].(string)).State.Variants[0].Metadata != nil {
		t.Error("metadata was made beside the given one")
	}
}

func TestASessionIsRefusedWithARule(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *api.Config) { c.MaxUploadBytes = 1 << 60 })
	file := func(key string, value any) func(map[string]any) {
		return func(body map[string]any) {
			body["variants"].([]any)[0].(map[string]any)["files"].([]any)[0].(map[string]any)[key] = value
		}
	}
	variant := func(key string, value any) func(map[string]any) {
		return func(body map[string]any) { body["variants"].([]any)[0].(map[string]any)[key] = value }
	}
	top := func(key string, value any) func(map[string]any) {
		return func(body map[string]any) { body[key] = value }
	}
	for name, test := range map[string]struct {
		change   func(map[string]any)
		status   int
		code     string
		location string
		says     string
	}{
		"image name":               {top("image", "../etc"), 422, "invalid-request", "image", "lower-case"},
		"version name":             {top("version", "a/b"), 422, "invalid-request", "version", "letters"},
		"alias name":               {top("aliases", []string{"no space"}), 422, "invalid-request", "aliases[0]", "alias"},
		"unknown field":            {top("colour", "red"), 422, "invalid-request", "colour", "unexpected"},
		"unknown visibility":       {top("visibility", "secret"), 422, "invalid-request", "visibility", "public"},
		"no variants":              {top("variants", []any{}), 422, "invalid-request", "variants", "at least one"},
		"unknown architecture":     {variant("architecture", "z80"), 422, "invalid-request", "variants[0].architecture", "riscv64"},
		"unknown type":             {variant("type", "jail"), 422, "invalid-request", "variants[0].type", "container"},
		"flavour":                  {variant("flavour", "Big.One"), 422, "invalid-request", "variants[0].flavour", "flavour"},
		"format name":              {file("format", ".hidden"), 422, "invalid-request", "variants[0].files[0].format", "format"},
		"no size":                  {file("size", 0), 422, "invalid-request", "variants[0].files[0].size", "length"},
		"size of another type":     {file("size", "big"), 422, "invalid-request", "variants[0].files[0].size", "integer"},
		"digest":                   {file("sha256", strings.Repeat("A", 64)), 422, "invalid-request", "variants[0].files[0].sha256", "lower-case"},
		"alias is the version":     {top("aliases", []string{"1"}), 422, "invalid-request", "aliases[0]", "differs"},
		"alias is an architecture": {top("aliases", []string{"arm64"}), 409, "alias-clash", "", "architecture"},
		"support that has ended":   {top("support_eol", "2001-02-03"), 422, "invalid-request", "support_eol", "after the day"},
		"a word for yes or no":     {top("requirements", map[string]string{"secureboot": "off"}), 422, "invalid-request", "requirements.secureboot", "true or false"},
		"a label's name":           {top("labels", map[string]string{"a b": "c"}), 422, "invalid-request", "labels.a b", "label"},
		"nothing for templates": {func(body map[string]any) {
			file("format", "disk.raw")(body)
			body["cloud_init"] = true
		}, 422, "invalid-request", "cloud_init", "brings its own"},
		"no room": {file("size", int64(1)<<55), 507, "storage-full", "", "room"},
	} {
		t.Run(name, func(t *testing.T) {
			body := session("debian", "1", []byte("x"))
			test.change(body)
			doc := n.problem(n.do(http.MethodPost, "/api/images", body), test.status, test.code)
			text := doc["detail"].(string)
			if test.location != "" {
				rules, _ := doc["errors"].([]any)
				if len(rules) != 1 || rules[0].(map[string]any)["location"] != test.location {
					t.Fatalf("broken rules: %v, want one at %s", doc["errors"], test.location)
				}
				text = rules[0].(map[string]any)["message"].(string)
			}
			if !strings.Contains(text, test.says) {
				t.Errorf("text %q doesn't say %q", text, test.says)
			}
		})
	}
	if head, err := n.events.Head(t.Context()); err != nil || head != 0 {
		t.Errorf("refused requests left %d events (%v)", head, err)
	}
	if sessions, err := n.blobs.Sessions(); err != nil || len(sessions) != 0 {
		t.Errorf("refused requests left folders: %v (%v)", sessions, err)
	}
}

func TestABodyIsRefusedBeforeItIsUnderstood(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.problem(n.do(http.MethodPost, "/api/images", `{"image":`), 400, "bad-request")
	n.problem(n.do(http.MethodPost, "/api/images", ""), 400, "bad-request")
	n.problem(n.do(http.MethodPost, "/api/images", `{} {}`), 400, "bad-request")
	n.problem(n.do(http.MethodPost, "/api/images", `"`+strings.Repeat("x", 1<<20)+`"`), 413, "too-large")
	n.problem(n.do(http.MethodPost, "/api/images", `a: b`, withHeader("Content-Type", "application/yaml")), 415, "unsupported-media-type")
	// Who may not write learns nothing of the body.
	n.problem(n.do(http.MethodPost, "/api/images", `{"image":`, anonymous), 401, "unauthorized")
}

func TestAFileOverTheCapIsRefusedBeforeItsBytes(t *testing.T) {
	t.Parallel()
	n := newNode(t, func(c *api.Config) { c.MaxUploadBytes = 9 })
	n.problem(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("ten bytes."))), 413, "too-large")
	n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("ten bytes")[:9])), 201)
}

func TestAVersionThatIsTakenNamesItsSession(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := []byte("bytes")
	id := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", data)), 201)["upload_session_id"].(string)
	doc := n.problem(n.do(http.MethodPost, "/api/images", session("debian", "1", data)), 409, "version-in-progress")
	if doc["status_url"] != n.url+"/api/uploads/"+id {
		t.Errorf("status_url is %v", doc["status_url"])
	}
	n.handOver(id, data)
	n.finish(events.JobIDFor(id))
	doc = n.problem(n.do(http.MethodPost, "/api/images", session("debian", "1", data)), 409, "version-exists")
	if doc["status_url"] != n.url+"/api/uploads/"+id {
		t.Errorf("status_url is %v", doc["status_url"])
	}
}

func TestAnIdempotencyKeyMakesARepetitionTheSameSession(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	key := withHeader("Idempotency-Key", "build 7")
	data := []byte("bytes")
	opened := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", data), key), 201)

	synonym := session("debian", "1", data)
	synonym["variants"].([]any)[0].(map[string]any)["architecture"] = "amd64"
	again := n.want(n.do(http.MethodPost, "/api/images", synonym, key), 201)
	if diff := cmp.Diff(opened, again); diff != "" {
		t.Errorf("the repetition differs: %s", diff)
	}
	n.problem(n.do(http.MethodPost, "/api/images", session("debian", "1", data, "latest"), key), 422, "idempotency-key-reused")
	n.problem(n.do(http.MethodPost, "/api/images", session("debian", "1", data), withHeader("Idempotency-Key", "build 8")), 409, "version-in-progress")

	id := opened["upload_session_id"].(string)
	n.handOver(id, data)
	n.finish(events.JobIDFor(id))
	a := n.do(http.MethodPost, "/api/images", session("debian", "1", data), key)
	done := n.want(a, 201)
	if done["upload_session_id"] != id || done["state"] != "published" || done["files"].([]any)[0].(map[string]any)["state"] != "complete" {
		t.Errorf("after the publication: %v", done)
	}
	if sessions, err := n.blobs.Sessions(); err != nil || len(sessions) != 1 {
		t.Errorf("folders: %v (%v)", sessions, err)
	}
}

func TestURLsNameTheServerAsTheClientDoes(t *testing.T) {
	t.Parallel()
	cfg, n := parts(t)
	handler, err := api.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(handler)
	defer server.Close()
	body, err := json.Marshal(session("debian", "1", []byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/api/images", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "images.example.org:8443"
	withToken(adminToken)(req)
	// Anybody can send these.
	withHeader("X-Forwarded-Host", "evil.example.org")(req)
	withHeader("X-Forwarded-Proto", "http")(req)
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() //nolint:errcheck // only read
	got := n.want(readAll(t, resp), 201)
	want := "https://images.example.org:8443/api/uploads/" + got["upload_session_id"].(string)
	if got["status_url"] != want || resp.Header.Get("Location") != want {
		t.Errorf("status_url %v, Location %s", got["status_url"], resp.Header.Get("Location"))
	}
}

func TestNoRequestOfASessionIsOurFault(t *testing.T) {
	t.Parallel()
	n := newStoppedNode(t)
	opened := 0
	rapid.Check(t, func(t *rapid.T) {
		// Mostly fine values, so that all rules are reached, and now and then anything.
		text := func(label string, fine ...string) string {
			if rapid.IntRange(0, 19).Draw(t, label+" is odd") == 0 {
				return rapid.String().Draw(t, label)
			}
			return rapid.SampledFrom(fine).Draw(t, label)
		}
		size := func() int64 {
			if rapid.IntRange(0, 9).Draw(t, "size is odd") == 0 {
				return rapid.Int64().Draw(t, "size")
			}
			return rapid.Int64Range(1, 100).Draw(t, "size")
		}
		var variants []any
		for range rapid.IntRange(1, 2).Draw(t, "variants") {
			var files []any
			for range rapid.IntRange(1, 2).Draw(t, "files") {
				files = append(files, map[string]any{"format": text("format", "disk.qcow2", "incus.tar.xz", "rootfs.squashfs", "disk.raw"), "size": size(),
					"sha256": text("sha256", "", sha([]byte("x")))})
			}
			variants = append(variants, map[string]any{"architecture": text("architecture", "amd64", "x86_64", "riscv64"), "flavour": text("flavour", "", "default", "big"),
				"type": text("type", "virtual-machine", "container"), "files": files})
		}
		body := map[string]any{"image": text("image", "debian", "fedora"), "version": text("version", "1", "2", "3.0", "latest"), "os": text("os", "", "debian"),
			"release": text("release", "", "bookworm"), "description": text("description", "", "A disk\nof two lines"), "visibility": text("visibility", "public", "private"),
			"aliases": []string{text("alias", "latest", "stable", "1", "big")}, "variants": variants}
		switch a := n.do(http.MethodPost, "/api/images", body, withHeader("Idempotency-Key", rapid.SampledFrom([]string{"", "a", "b\xff"}).Draw(t, "key"))); a.StatusCode {
		case 201:
			opened++
		case 409, 422, 507:
		default:
			t.Fatalf("%d: %s", a.StatusCode, a.body)
		}
	})
	if opened == 0 {
		t.Error("no request was fine")
	}
}

func BenchmarkOpenLargestSession(b *testing.B) {
	n := newStoppedNode(b)
	version := 0
	for b.Loop() {
		version++
		body := session("debian", fmt.Sprint(version), []byte("x"))
		var variants []any
		for i := range events.MaxFiles {
			variants = append(variants, map[string]any{"architecture": "amd64", "type": "virtual-machine", "flavour": fmt.Sprintf("f%d", i),
				"files": []any{map[string]any{"format": "disk.qcow2", "size": 1}}})
		}
		body["variants"] = variants
		n.want(n.do(http.MethodPost, "/api/images", body), 201)
	}
}

func TestBytesThatAreThereNeedNoUpload(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := []byte("well-known bytes")
	n.publish(session("debian", "1", data), data)

	second := session("debian", "2", data)
	file := second["variants"].([]any)[0].(map[string]any)["files"].([]any)[0].(map[string]any)
	file["sha256"] = sha(data)
	got := n.want(n.do(http.MethodPost, "/api/images", second), 201)
	sent := got["files"].([]any)[0].(map[string]any)
	if sent["state"] != "present" || sent["tus"] != nil || got["state"] != "queued" {
		t.Errorf("answer: %v", got)
	}
	id := got["upload_session_id"].(string)
	if got["job_url"] != n.url+"/api/jobs/"+events.JobIDFor(id) {
		t.Errorf("job_url is %v", got["job_url"])
	}
	if upload := n.upload(id).State; !upload.Complete || upload.Variants[0].Files[0].Digest.Hex() != sha(data) {
		t.Errorf("session: %+v", upload)
	}

	// A wrong size can't be those bytes.
	third := session("debian", "3", data)
	file = third["variants"].([]any)[0].(map[string]any)["files"].([]any)[0].(map[string]any)
	file["sha256"], file["size"] = sha(data), len(data)+1
	got = n.want(n.do(http.MethodPost, "/api/images", third), 201)
	if got["files"].([]any)[0].(map[string]any)["state"] != "pending" {
		t.Errorf("answer: %v", got)
	}
}

func TestALostBlobIsTakenInAgain(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	digest := events.Digest("sha256:" + sha([]byte("lost")))
	n.append(func(context.Context) ([]events.Change, error) {
		return events.PromoteBlob(events.Blob{Digest: digest, Size: 4}, events.Current[events.Blob]{}), nil
	})
	if _, _, err := n.blobs.OpenBlob(digest.Hex()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	body := session("debian", "1", []byte("lost"))
	body["variants"].([]any)[0].(map[string]any)["files"].([]any)[0].(map[string]any)["sha256"] = digest.Hex()
	got := n.want(n.do(http.MethodPost, "/api/images", body), 201)
	if got["state"] != "uploading" {
		t.Errorf("answer: %v", got)
	}
}

func TestRacingSessionsOfOneVersionHaveOneWinner(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const racers = 8
	statuses := make(chan int, racers)
	for range racers {
		go func() {
			statuses <- n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))).StatusCode
		}()
	}
	count := map[int]int{}
	for range racers {
		count[<-statuses]++
	}
	if diff := cmp.Diff(map[int]int{201: 1, 409: racers - 1}, count); diff != "" {
		t.Error(diff)
	}
	if sessions, err := n.blobs.Sessions(); err != nil || len(sessions) != 1 {
		t.Errorf("folders: %v (%v)", sessions, err)
	}
}

// Where the clock was set back, a later publication still moves its aliases.
func TestALaterSessionIsLaterWhateverTheClockSays(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	ahead := "0fffffff-ffff-7fff-bfff-ffffffffffff" // in some decades
	if _, err := n.events.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: events.AliasMoved{Alias: events.Alias{Image: "debian", Alias: "latest", Version: "0", UploadID: ahead}}}); err != nil {
		t.Fatal(err)
	}
	body := session("debian", "1", []byte("x"))
	body["aliases"] = []any{"latest"}
	got := n.want(n.do(http.MethodPost, "/api/images", body), http.StatusCreated)
	if id := got["upload_session_id"].(string); id <= ahead || !events.IsID(id) {
		t.Errorf("the session is %s, the one before was %s", id, ahead)
	}
}
