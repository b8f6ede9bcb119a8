package api_test

import (
	"html"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/provenance"
)

var href = regexp.MustCompile(`href="([^"]*)"`)

// crawl follows links below a folder, as wget -r -np does, and gives what was found by its path.
func crawl(n *node, top string, options ...option) map[string]answer {
	found := map[string]answer{}
	var visit func(path string)
	visit = func(path string) {
		if _, seen := found[path]; seen || !strings.HasPrefix(path, top) {
			return
		}
		a := n.do(http.MethodGet, path, nil, options...)
		found[path] = a
		if !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") {
			return
		}
		here, err := url.Parse(path)
		if err != nil {
			n.t.Fatal(err)
		}
		for _, link := range href.FindAllStringSubmatch(string(a.body), -1) {
			to, err := here.Parse(html.UnescapeString(link[1]))
			if err != nil || to.Host != "" {
				n.t.Fatalf("%s has the link %s: %v", path, link[1], err)
			}
			visit(to.String())
		}
	}
	visit(top)
	return found
}

func TestEverythingIsFoundByFollowingLinks(t *testing.T) {
	t.Parallel()
	change, key := signing(t)
	n := newNode(t, change)
	data := pattern(100_000)
	body := twoVariants("debian", "12.5.0+b1~rc2", data, "latest")
	body["description"] = "Debian <12> & more"
	n.publish(body, data)
	secret := session("secret", "1", data)
	secret["visibility"] = "private"
	n.publish(secret, data)

	found := crawl(n, "/images/", anonymous)
	var files []string
	for _, name := range []string{"12.5.0+b1~rc2", "latest"} {
		folder := "/images/debian/" + name + "/"
		sums, signature := found[folder+"SHA256SUMS"], found[folder+"SHA256SUMS.minisig"]
		if said, err := key.Public().Verify(sums.body, signature.body); err != nil || !said.Answers("debian", name) {
			t.Errorf("signature of %s: %+v, %v", name, said, err)
		}
		listed, err := provenance.ParseChecksums(sums.body)
		if err != nil || len(listed) != 3 {
			t.Fatalf("%s: %v, %v", name, listed, err)
		}
		files = append(files, folder, folder+"SHA256SUMS", folder+"SHA256SUMS.minisig")
		for file, sum := range listed {
			files = append(files, folder+file)
			a := found[folder+file]
			if a.StatusCode != 200 || sha(a.body) != sum || a.Header.Get("ETag") != `"sha256:`+sum+`"` {
				t.Errorf("%s%s: %d, ETag %s", folder, file, a.StatusCode, a.Header.Get("ETag"))
			}
			if got := a.Header.Get("Content-Disposition"); got != `attachment; filename="`+file+`"` {
				t.Errorf("%s is saved as %s", file, got)
			}
		}
	}
	files = append(files, "/images/", "/images/debian/")
	var paths []string
	for path, a := range found {
		paths = append(paths, path)
		if strings.HasSuffix(path, "/") && (a.StatusCode != 200 || a.Header.Get("Content-Type") != "text/html; charset=utf-8") {
			t.Errorf("%s: %d, %s", path, a.StatusCode, a.Header.Get("Content-Type"))
		}
	}
	slices.Sort(files)
	slices.Sort(paths)
	if diff := cmp.Diff(files, paths); diff != "" {
		t.Errorf("paths (-want +found):\n%s", diff)
	}
	if page := string(found["/images/debian/"].body); !strings.Contains(page, "Debian &lt;12&gt; &amp; more") || !strings.Contains(page, "alias of 12.5.0") {
		t.Errorf("the page of an image:\n%s", page)
	}

	// Who may read the private image finds it in the same way.
	if own := crawl(n, "/images/"); own["/images/secret/1/secret-1-amd64.virtual-machine.default.disk.qcow2"].StatusCode != 200 {
		t.Errorf("with a token: %d paths, and not the private one", len(own))
	}
	for path := range crawl(n, "/images/secret/") {
		n.problem(n.do(http.MethodGet, path, nil, anonymous), 404, "not-found")
	}
}

func TestPagesAreCachedAndMovedToFolders(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := pattern(1000)
	n.publish(session("debian", "12.5.0", data, "latest"), data)
	for path, cache := range map[string]string{"/images/": "private, no-cache", "/images/debian/": "public, no-cache", "/images/debian/latest/": "public, no-cache"} {
		a := n.do(http.MethodGet, path, nil, anonymous)
		etag := a.Header.Get("ETag")
		if a.StatusCode != 200 || a.Header.Get("Cache-Control") != cache {
			t.Errorf("%s: %d, Cache-Control %q", path, a.StatusCode, a.Header.Get("Cache-Control"))
		}
		if again := n.do(http.MethodGet, path, nil, anonymous, withHeader("If-None-Match", etag)); etag == "" || again.StatusCode != 304 {
			t.Errorf("%s again with %q: %d", path, etag, again.StatusCode)
		}
		if head := n.do(http.MethodHead, path, nil, anonymous); head.StatusCode != 200 || head.ContentLength != int64(len(a.body)) || len(head.body) != 0 {
			t.Errorf("HEAD %s: %d, %d bytes", path, head.StatusCode, head.ContentLength)
		}
		// Also behind a proxy that cuts the path's beginning off: the target is relative.
		followed := n.do(http.MethodGet, strings.TrimSuffix(path, "/"), nil, anonymous)
		moved := followed.Request.Response
		if moved == nil || followed.Request.URL.Path != path || followed.StatusCode != 200 {
			t.Fatalf("%s without its slash leads to %s, %d", path, followed.Request.URL, followed.StatusCode)
		}
		folders := strings.Split(path, "/")
		if want := "./" + folders[len(folders)-2] + "/"; moved.StatusCode != 308 || moved.Header.Get("Location") != want {
			t.Errorf("%s without its slash: %d to %q, want %q", path, moved.StatusCode, moved.Header.Get("Location"), want)
		}
	}
	file := "/images/debian/latest/debian-12.5.0-amd64.virtual-machine.default.disk.qcow2"
	part := n.do(http.MethodGet, file, nil, anonymous, withHeader("Range", "bytes=10-19"))
	if part.StatusCode != 206 || string(part.body) != string(data[10:20]) || part.Header.Get("Cache-Control") != "public, no-cache" {
		t.Errorf("a range: %d, %d bytes, %s", part.StatusCode, len(part.body), part.Header.Get("Cache-Control"))
	}
	if a := n.do(http.MethodHead, strings.Replace(file, "latest", "12.5.0", 1), nil, anonymous); a.Header.Get("Cache-Control") != "public, max-age=31536000, immutable" {
		t.Errorf("of a version: %s", a.Header.Get("Cache-Control"))
	}
	for _, path := range []string{"/images/none/", "/images/debian/13/", "/images/debian/12.5.0/disk.qcow2", "/images/debian/latest/" + strings.Repeat("x", 300),
		"/images/debian/12.5.0/SHA256SUMS.minisig", "/images/..%2Fdebian/", "/images/debian/%2e%2e/x"} {
		n.problem(n.do(http.MethodGet, path, nil, anonymous), 404, "not-found")
	}
	n.problem(n.do(http.MethodDelete, "/images/debian/12.5.0/", nil), 405, "method-not-allowed")

	paths := n.want(n.do(http.MethodGet, "/openapi.json", nil), 200)["paths"].(map[string]any)
	for _, path := range []string{"/images/", "/images/{image}/", "/images/{image}/{version}/", "/images/{image}/{version}/{file}", "/images/{image}/{version}/SHA256SUMS"} {
		if _, ok := paths[path]; !ok {
			t.Errorf("%s is not described", path)
		}
	}
}
