package api_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/internal/provenance"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

func signing(t *testing.T) (func(*api.Config), *provenance.Key) {
	t.Helper()
	key, _, err := provenance.LoadKey(filepath.Join(t.TempDir(), "signing.key"))
	if err != nil {
		t.Fatal(err)
	}
	return func(cfg *api.Config) { cfg.SigningKey = key }, key
}

func sumsPath(image, version string) string {
	return "/api/images/" + image + "/versions/" + version + "/SHA256SUMS"
}

// twoVariants is a session of two variants that share the names of their formats.
func twoVariants(image, version string, data []byte, aliases ...string) map[string]any {
	body := session(image, version, data, aliases...)
	body["variants"] = append(body["variants"].([]any), map[string]any{"architecture": "arm64", "type": "virtual-machine",
		"files": []any{map[string]any{"format": "disk.qcow2", "size": len(data)}, map[string]any{"format": "disk.raw.zst", "size": len(data)}}})
	return body
}

// As somebody does who downloads with curl -OJ, and checks with the tools of every distribution.
func TestChecksumsAndSignatureHoldForRealTools(t *testing.T) {
	t.Parallel()
	testtool.Need(t, "sha256sum", "minisign", "curl")
	change, _ := signing(t)
	n := newNode(t, change)
	data := pattern(100_000)
	n.publish(twoVariants("debian", "12.5.0", data, "latest"), data)
	dir := t.TempDir()
	run := func(name string, args ...string) (string, error) {
		command := exec.CommandContext(t.Context(), name, args...)
		command.Dir = dir
		out, err := command.CombinedOutput()
		return string(out), err
	}
	for _, path := range []string{formatPath("debian", "12.5.0"), strings.Replace(formatPath("debian", "latest"), "amd64", "arm64", 1)} {
		if out, err := run("curl", "-sSfOJ", n.url+path); err != nil {
			t.Fatalf("curl: %v\n%s", err, out)
		}
	}
	for _, name := range []string{"SHA256SUMS", "SHA256SUMS.minisig"} {
		if out, err := run("curl", "-sSfO", n.url+"/api/images/debian/versions/12.5.0/"+name); err != nil {
			t.Fatalf("curl: %v\n%s", err, out)
		}
	}
	if out, err := run("curl", "-sSf", "-o", "server.pub", n.url+"/api/signing-key"); err != nil {
		t.Fatalf("curl: %v\n%s", err, out)
	}
	out, err := run("minisign", "-V", "-p", "server.pub", "-m", "SHA256SUMS")
	if err != nil || !strings.Contains(out, "image:debian version:12.5.0 published:20") {
		t.Errorf("minisign: %v\n%s", err, out)
	}
	const prefix = "debian-12.5.0-"
	want := prefix + "amd64.virtual-machine.default.disk.qcow2: OK\n" + prefix + "arm64.virtual-machine.default.disk.qcow2: OK\n"
	if out, err := run("sha256sum", "-c", "--strict", "--ignore-missing", "SHA256SUMS"); err != nil || out != want {
		t.Errorf("sha256sum: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, prefix+"arm64.virtual-machine.default.disk.qcow2"), data[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run("sha256sum", "-c", "--ignore-missing", "SHA256SUMS"); err == nil {
		t.Errorf("sha256sum takes another file:\n%s", out)
	}
}

func TestChecksumsListEveryFileAndAreAskedForAgain(t *testing.T) {
	t.Parallel()
	change, key := signing(t)
	n := newNode(t, change)
	data := pattern(1000)
	n.publish(twoVariants("debian", "12.5.0", data, "latest"), data)
	var want strings.Builder
	for _, file := range []string{"amd64.virtual-machine.default.disk.qcow2", "arm64.virtual-machine.default.disk.qcow2", "arm64.virtual-machine.default.disk.raw.zst"} {
		want.WriteString(sha(data) + "  debian-12.5.0-" + file + "\n")
	}
	for _, version := range []string{"12.5.0", "latest"} {
		sums := n.do(http.MethodGet, sumsPath("debian", version), nil, anonymous)
		if sums.StatusCode != 200 || string(sums.body) != want.String() {
			t.Errorf("%s: %d\n%s", version, sums.StatusCode, sums.body)
		}
		// Deltas and further formats come later.
		if got := sums.Header.Get("Cache-Control"); got != "public, no-cache" || sums.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s: Cache-Control %q, Content-Type %q", version, got, sums.Header.Get("Content-Type"))
		}
		signature := n.do(http.MethodGet, sumsPath("debian", version)+".minisig", nil, anonymous)
		said, err := key.Public().Verify(sums.body, signature.body)
		alias := map[string]string{"latest": "latest"}[version]
		if err != nil || said.Image != "debian" || said.Version != "12.5.0" || said.Alias != alias || said.PublishedAt.IsZero() {
			t.Errorf("signature of %s: %+v, %v", version, said, err)
		}
		// Another key means another signature, so also that of a version is asked for again.
		if got := signature.Header.Get("Cache-Control"); got != "public, no-cache" {
			t.Errorf("signature of %s: Cache-Control %q", version, got)
		}
		for _, path := range []string{sumsPath("debian", version), sumsPath("debian", version) + ".minisig", "/api/signing-key"} {
			etag := n.do(http.MethodGet, path, nil, anonymous).Header.Get("ETag")
			if a := n.do(http.MethodGet, path, nil, anonymous, withHeader("If-None-Match", etag)); etag == "" || a.StatusCode != 304 {
				t.Errorf("%s again with %q: %d", path, etag, a.StatusCode)
			}
			if a := n.do(http.MethodHead, path, nil, anonymous); a.StatusCode != 200 || len(a.body) != 0 || a.ContentLength <= 0 {
				t.Errorf("HEAD %s: %d, %d bytes", path, a.StatusCode, a.ContentLength)
			}
		}
	}
	for _, path := range []string{sumsPath("debian", "1"), sumsPath("ubuntu", "12.5.0"), sumsPath("..", "12.5.0"), sumsPath("debian", "..%2Flatest"), sumsPath("debian", "1") + ".minisig"} {
		n.problem(n.do(http.MethodGet, path, nil), 404, "not-found")
	}
}

func TestChecksumsOfPrivateImagesAreForReaders(t *testing.T) {
	t.Parallel()
	change, _ := signing(t)
	n := newNode(t, change)
	body := session("secret", "1", []byte("hush"), "latest")
	body["visibility"] = "private"
	n.publish(body, []byte("hush"))
	for _, end := range []string{"", ".minisig"} {
		for _, version := range []string{"1", "latest"} {
			const cache = "private, no-cache"
			path := sumsPath("secret", version) + end
			n.problem(n.do(http.MethodGet, path, nil, anonymous), 404, "not-found")
			if a := n.do(http.MethodGet, path, nil); a.StatusCode != 200 || a.Header.Get("Cache-Control") != cache {
				t.Errorf("%s: %d, Cache-Control %q, want %q", path, a.StatusCode, a.Header.Get("Cache-Control"), cache)
			}
		}
	}
}

func TestChecksumsWaitForASequence(t *testing.T) {
	t.Parallel()
	change, _ := signing(t)
	n := newStoppedNode(t, change, func(cfg *api.Config) { cfg.MinSequenceWait = 1 })
	opened := n.want(n.do(http.MethodPost, "/api/images", session("debian", "1", []byte("x"))), 201)
	n.handOver(opened["upload_session_id"].(string), []byte("x"))
	head, err := n.events.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{"", ".minisig"} {
		n.problem(n.do(http.MethodGet, sumsPath("debian", "1")+end, nil, withHeader("Imgsrv-Min-Sequence", strconv.FormatUint(uint64(head), 10))), 503, "not-yet")
		n.problem(n.do(http.MethodGet, sumsPath("debian", "1")+end, nil, withHeader("Imgsrv-Min-Sequence", "soon")), 400, "bad-request")
	}
}

func TestRoutesOfProvenanceAreDescribedWhereTheyAre(t *testing.T) {
	t.Parallel()
	change, _ := signing(t)
	with, without := newStoppedNode(t, change, func(cfg *api.Config) { cfg.SignedStreams = true }), newStoppedNode(t)
	const folder = "/api/images/{image}/versions/{version}/"
	for path, always := range map[string]bool{folder + "SHA256SUMS": true, folder + "SHA256SUMS.minisig": false, "/api/signing-key": false,
		"/streams/v1/index.sjson": false, "/streams/v1/images.sjson": false, "/streams/v1/signing-key.asc": false} {
		for n, want := range map[*node]bool{with: true, without: always} {
			if _, ok := n.want(n.do(http.MethodGet, "/openapi.json", nil), 200)["paths"].(map[string]any)[path]; ok != want {
				t.Errorf("%s is described: %v, want %v", path, ok, want)
			}
		}
	}
	without.problem(without.do(http.MethodGet, "/api/signing-key", nil), 404, "not-found")
}
