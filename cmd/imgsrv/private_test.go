package main

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/internal/incus"
	"github.com/imgsrv/imgsrv/internal/lxctest"
)

// publishSmall publishes a container of a few bytes and gives its root.
func (p *publisher) publishSmall(image, version, visibility string) []byte {
	p.t.Helper()
	f := file{format: "rootfs.squashfs", data: []byte("hsqs of " + image + " " + version)}
	body := request(image, version, "container", []string{"latest"}, f)
	body["visibility"] = visibility
	p.publish(body, f)
	return f.data
}

// readerToken issues a token that reads the images of a pattern.
func (p *publisher) readerToken(images string) (id, token string) {
	p.t.Helper()
	return p.tokenOf(map[string]any{"role": "reader", "images": images})
}

func (p *publisher) tokenOf(role map[string]any) (id, token string) {
	p.t.Helper()
	var issued struct{ ID, Token string }
	if resp := p.call("POST", "/api/tokens", map[string]any{"roles": []any{role}}, &issued); resp.StatusCode != 201 {
		p.t.Fatalf("issue a token: %d", resp.StatusCode)
	}
	return issued.ID, issued.Token
}

func (p *publisher) revoke(id string) {
	p.t.Helper()
	if resp := p.call("DELETE", "/api/tokens/"+id, nil, nil); resp.StatusCode != 204 {
		p.t.Fatalf("revoke a token: %d", resp.StatusCode)
	}
}

const rootOf = "/api/images/%s/versions/%s/variants/amd64.container.default/formats/rootfs.squashfs"

// A real client that can send nothing but an address sees the private images of its token beside the public ones, gets their
// bytes, and nothing of others; until the token is revoked.
func TestARealClientReadsPrivateImagesByItsAddress(t *testing.T) {
	t.Parallel()
	node := startChild(t, nodeFlags(t))
	p := node.publisher(t)
	p.publishSmall("debian", "1", "public")
	root := p.publishSmall("team-a-secret", "1", "private")
	p.publishSmall("team-b-secret", "1", "private")

	images := func(lxc *lxctest.Client) []string {
		var names []string
		for _, image := range lxc.List() {
			names = append(names, image.Names()[0])
		}
		slices.Sort(names)
		return names
	}
	public := lxctest.New(t, node.HTTPSURL, node.CertFile)
	if got := images(public); !slices.Equal(got, []string{"debian"}) {
		t.Errorf("without a token lxc lists %v", got)
	}
	for name, address := range map[string]func(token string) string{
		"in the path":                         func(token string) string { return node.HTTPSURL + "/r/" + token },
		"in the path with a slash at its end": func(token string) string { return node.HTTPSURL + "/r/" + token + "/" },
		"as the password": func(token string) string {
			return strings.Replace(node.HTTPSURL, "https://", "https://anybody:"+token+"@", 1)
		},
	} {
		t.Run("token "+name, func(t *testing.T) {
			id, token := p.readerToken("team-a-*")
			lxc := lxctest.New(t, address(token), node.CertFile)
			if diff := cmp.Diff([]string{"debian", "team-a-secret"}, images(lxc)); diff != "" {
				t.Errorf("lxc lists (-want +got):\n%s", diff)
			}
			exported := lxc.Export("team-a-secret/latest")
			got, err := os.ReadFile(exported.Root)
			if err != nil || !bytes.Equal(got, root) {
				t.Errorf("lxc exported %q: %v", got, err)
			}
			lxc.Export("debian") // public images come through the same address
			if out, err := lxc.Run("image", "info", "under-test:team-b-secret"); err == nil {
				t.Errorf("lxc sees an image of others:\n%s", out)
			}
			p.revoke(id)
			for _, args := range [][]string{{"image", "list", "under-test:"}, {"image", "export", "under-test:team-a-secret", t.TempDir()}} {
				if out, err := lxc.Run(args...); err == nil && strings.Contains(out, "team-a") {
					t.Errorf("lxc %v after the token was revoked:\n%s", args, out)
				}
			}
		})
	}
	node.stop(t)
}

func TestATokenInThePathReadsARemoteAndNothingElse(t *testing.T) {
	t.Parallel()
	node := startChild(t, nodeFlags(t))
	p := node.publisher(t)
	own, foreign, public := p.publishSmall("team-a", "1", "private"), p.publishSmall("team-b", "1", "private"), p.publishSmall("debian", "1", "public")
	id, token := p.readerToken("team-a")
	_, publishers := p.tokenOf(map[string]any{"role": "publisher", "images": "team-a"})
	stranger := node.stranger(t)
	base := "/r/" + token

	var nothing []byte
	stranger.call("GET", "/nothing/at/all", nil, &nothing)
	is404 := func(method, path string, header ...string) {
		t.Helper()
		var body []byte
		resp := stranger.call(method, path, nil, &body, header...)
		if resp.StatusCode != 404 {
			t.Errorf("%s %s: %d", method, strings.ReplaceAll(path, token, "TOKEN"), resp.StatusCode)
		}
		if strings.Contains(string(body)+fmt.Sprint(resp.Header), token) {
			t.Errorf("%s: the answer repeats the token: %s %v", path, body, resp.Header)
		}
		if resp.Header.Get("Location") != "" || resp.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s: headers %v", path, resp.Header)
		}
	}
	gets := func(path string, want []byte, cache string) *http.Response {
		t.Helper()
		var got []byte
		resp := stranger.call("GET", path, nil, &got)
		if resp.StatusCode != 200 || want != nil && !bytes.Equal(got, want) {
			t.Errorf("%s: %d with %q", strings.ReplaceAll(path, token, "TOKEN"), resp.StatusCode, got)
		}
		if resp.Header.Get("Cache-Control") != cache || resp.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %v", path, resp.Header)
		}
		return resp
	}
	ownFile, foreignFile, publicFile := fmt.Sprintf(rootOf, "team-a", "1"), fmt.Sprintf(rootOf, "team-b", "1"), fmt.Sprintf(rootOf, "debian", "1")
	first := gets(base+"/streams/v1/images.json", nil, "private, no-cache")
	gets(base+"/streams/v1/index.json", nil, "private, no-cache")
	gets(base+ownFile, own, "private, max-age=31536000, immutable")
	gets(base+publicFile, public, "private, max-age=31536000, immutable")
	if resp := stranger.call("GET", base+"/streams/v1/images.json", nil, nil, "If-None-Match", first.Header.Get("ETag")); resp.StatusCode != 304 {
		t.Errorf("the tag it has: %d", resp.StatusCode)
	}

	is404("GET", base+foreignFile)
	is404("GET", foreignFile)
	is404("GET", ownFile)
	for _, path := range []string{"", "/", "/api/whoami", "/api/images", "/api/images/team-a", "/api/events", "/api/tokens", "/healthz", "/api/images/team-a/history",
		"/cas/sha256/" + digestOf(own)[:2] + "/" + digestOf(own), "/cas/sha256/" + digestOf(foreign)[:2] + "/" + digestOf(foreign),
		"/streams/v1/../../api/whoami", "/streams/v1/none.json", "/api/uploads/tus/"} {
		is404("GET", base+path)
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		is404(method, base+"/streams/v1/index.json")
		is404(method, base+ownFile)
	}
	// What isn't good is answered as what isn't there; and so is what may do more than read, even of what is public.
	for name, bad := range map[string]string{"unknown": "imgsrv_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "no token": "x", "a publisher's": publishers, "the admin's": node.Token} {
		for _, path := range []string{"/streams/v1/index.json", ownFile, publicFile} {
			var body []byte
			// Credentials in the header don't help.
			resp := stranger.call("GET", "/r/"+bad+path, nil, &body, "Authorization", "Bearer "+node.Token)
			if resp.StatusCode != 404 || !bytes.Equal(body, nothing) {
				t.Errorf("%s token, %s: %d with %s, want what any unknown path gets", name, path, resp.StatusCode, body)
			}
		}
	}
	var images incus.Products
	if stranger.call("GET", base+"/streams/v1/images.json", nil, &images, "Authorization", "Bearer "+node.Token); len(images.Products) != 2 {
		t.Errorf("%d products for a path token with the admin's in the header, want those of the path's", len(images.Products))
	}

	// Revoked: at once, also what is cached.
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+token))
	if resp := stranger.call("GET", "/streams/v1/images.json", nil, nil, "Authorization", basic); resp.StatusCode != 200 {
		t.Errorf("basic authentication: %d", resp.StatusCode)
	}
	p.revoke(id)
	is404("GET", base+"/streams/v1/images.json", "If-None-Match", first.Header.Get("ETag"))
	is404("GET", base+"/streams/v1/index.json")
	is404("GET", base+ownFile)
	is404("GET", base+publicFile)
	for _, authorization := range []string{basic, "Bearer " + token} {
		if resp := stranger.call("GET", "/streams/v1/images.json", nil, nil, "Authorization", authorization); resp.StatusCode != 401 {
			t.Errorf("a revoked token in the header: %d", resp.StatusCode)
		}
	}
	node.stop(t)
}

// sink keeps what is logged.
type sink struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Whatever becomes of a request, its token is in no log line, at no level, in no metric and in no answer.
func TestTokensOfAddressesAreNowhereToBeSeen(t *testing.T) {
	t.Parallel()
	logged := &sink{}
	flags := nodeFlags(t)
	flags.MetricsListen = "127.0.0.1:0"
	node := startWith(t, flags, testHooks{}, slog.New(slog.NewJSONHandler(logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	node.router.Get("/streams/v1/panics", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("late") {
			_, _ = io.WriteString(w, "a part")
		}
		panic(fmt.Sprintf("request %s %s %v %s", r.RequestURI, r.URL, r.URL, r.Referer()))
	})

	p := node.publisher(t)
	large := file{format: "rootfs.squashfs", data: append([]byte("hsqs"), bytes.Repeat([]byte{7}, 8<<20)...)}
	body := request("team-a", "1", "container", []string{"latest"}, large)
	body["visibility"] = "private"
	p.publish(body, large)
	id, token := p.readerToken("team-a")
	badToken := "imgsrv_" + strings.Repeat("Zz9_", 10) + "abc"
	seen := map[string]bool{}

	var answers strings.Builder
	ask := func(method, path string, header ...string) {
		t.Helper()
		var got []byte
		resp, err := node.stranger(t).try(method, path, nil, &got, header...)
		if err != nil { // the late panic cuts the connection
			fmt.Fprintln(&answers, strings.ReplaceAll(err.Error(), node.HTTPURL+path, "")) // the client knows what it asked for
			return
		}
		seen[fmt.Sprint(resp.StatusCode)] = true
		fmt.Fprintln(&answers, resp.Header, string(got[:min(len(got), 1<<10)]))
	}
	// abort asks for a large file and goes away in the middle of it.
	abort := func(path string, header ...string) {
		t.Helper()
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(node.HTTPURL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		lines := "GET " + path + " HTTP/1.1\r\nHost: x\r\n"
		for i := 0; i+1 < len(header); i += 2 {
			lines += header[i] + ": " + header[i+1] + "\r\n"
		}
		if _, err := io.WriteString(conn, lines+"\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1000)); err != nil {
			t.Errorf("abort: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	use := func(secret string) {
		basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+secret))
		referer := node.HTTPURL + "/r/" + secret + "/streams/v1/index.json"
		for _, path := range []string{"/streams/v1/index.json", "/streams/v1/images.json", "/streams/v1/none", fmt.Sprintf(rootOf, "team-a", "none"),
			fmt.Sprintf(rootOf, "other", "1"), "/api/images", "/api/events", "", "/streams/v1/../../x", "/streams/v1/panics", "/streams/v1/panics?late=1", "/" + secret} {
			for _, method := range []string{"GET", "HEAD", "POST", "BREW"} {
				ask(method, "/r/"+secret+path, "Referer", referer)
			}
			if path != "" && path != "/"+secret && path != "/api/events" { // which doesn't end
				ask("GET", path, "Authorization", basic, "Referer", referer)
				ask("POST", path, "Authorization", basic)
			}
		}
		for _, path := range []string{"//r/" + secret + "/streams/v1/index.json", "/prefix/r/" + secret + "/streams/v1/index.json", "/R/" + secret + "/x", "/%72/" + secret + "/x", "/r%2F" + secret + "/x"} {
			ask("GET", path)
		}
		ask("GET", "/r/"+secret+"/streams/v1/index.json", "Imgsrv-Min-Sequence", "no number")
		ask("GET", "/r/"+secret+fmt.Sprintf(rootOf, "team-a", "1"), "Range", "bytes=99999999-")
	}
	use(token)
	for range 3 {
		abort("/r/" + token + fmt.Sprintf(rootOf, "team-a", "1"))
		abort(fmt.Sprintf(rootOf, "team-a", "1"), "Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("x:"+token)))
	}
	use(badToken)
	p.revoke(id)
	use(token)
	// A client that speaks HTTP where TLS is expected, as lxc does first.
	plain, err := http.Get(strings.Replace(node.HTTPSURL, "https://", "http://x:"+token+"@", 1) + "/r/" + token + "/streams/v1/index.json")
	if err == nil {
		_ = plain.Body.Close()
	}
	metrics, err := http.Get(node.MetricsURL)
	if err != nil {
		t.Fatal(err)
	}
	scraped, err := io.ReadAll(metrics.Body)
	if err := errors.Join(err, metrics.Body.Close()); err != nil {
		t.Fatal(err)
	}
	node.end(t) // what is logged at the end counts too

	for _, status := range []string{"200", "401", "404", "405", "416", "500"} {
		if !seen[status] {
			t.Errorf("no request was answered %s: the test doesn't reach what it is about", status)
		}
	}
	log := logged.String()
	for _, want := range []string{`"path":"/r/…/streams/v1/index.json"`, `"path":"/r/…"`, "request panicked", `"route":"/streams/v1/*"`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	for where, text := range map[string]string{"log": log, "metrics": string(scraped), "answers": answers.String()} {
		if len(text) < 1000 {
			t.Errorf("%s: only %d bytes", where, len(text))
		}
		for name, secret := range map[string]string{"token": token, "bad token": badToken, "admin's token": node.Token} {
			for form, needle := range map[string]string{"as it is": secret, "without prefix": secret[len("imgsrv_"):], "its first half": secret[:len(secret)/2],
				"in base64": base64.StdEncoding.EncodeToString([]byte("x:" + secret)), "in base64, the middle": base64.StdEncoding.EncodeToString([]byte("x:" + secret))[8:40]} {
				if i := strings.Index(text, needle); i >= 0 {
					t.Errorf("the %s %s is in the %s: …%s…", name, form, where, text[max(0, i-300):min(len(text), i+100)])
				}
			}
		}
	}
}
