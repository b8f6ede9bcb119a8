package browser_test

import (
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/handlers/browser"
)

// serve runs one request through the middleware, over TLS or not. The handler counts how often it is reached.
func serve(t *testing.T, cfg browser.Config, method string, header http.Header, https bool) (http.Header, int, int) {
	t.Helper()
	reached := 0
	handler := browser.Middleware(cfg)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached++
		w.WriteHeader(http.StatusTeapot)
	}))
	server := httptest.NewUnstartedServer(handler)
	if https {
		server.StartTLS()
	} else {
		server.Start()
	}
	defer server.Close()
	r, err := http.NewRequest(method, server.URL+"/api/uploads/tus/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header = header
	resp, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.Header, resp.StatusCode, reached
}

func TestEveryAnswerSaysWhatABrowserMayDoWithIt(t *testing.T) {
	t.Parallel()
	for _, https := range []bool{false, true} {
		h, _, _ := serve(t, browser.Config{HSTS: 48 * time.Hour}, "GET", nil, https)
		want := map[string]string{"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Referrer-Policy": "no-referrer",
			"Strict-Transport-Security": "", "Access-Control-Allow-Origin": ""}
		if https {
			want["Strict-Transport-Security"] = "max-age=172800"
		}
		for name, value := range want {
			if got := h.Get(name); got != value {
				t.Errorf("HTTPS %v: %s: %q, want %q", https, name, got, value)
			}
		}
	}
	if h, _, _ := serve(t, browser.Config{}, "GET", nil, true); h.Get("Strict-Transport-Security") != "" {
		t.Error("Strict-Transport-Security without being asked for")
	}
}

func TestScriptsOfNamedSitesMayCall(t *testing.T) {
	t.Parallel()
	const site = "https://builds.example:8443"
	named, all := []string{site, "http://localhost:3000"}, []string{"*"}
	for name, test := range map[string]struct {
		origins     []string
		origin      string
		allow       string // Access-Control-Allow-Origin
		credentials string
	}{
		"off":          {nil, site, "", ""},
		"named":        {named, site, site, "true"},
		"another":      {named, "https://evil.example", "", ""},
		"another port": {named, "https://builds.example", "", ""},
		"subdomain":    {named, "https://x.builds.example:8443", "", ""},
		"null":         {named, "null", "", ""},
		"all":          {all, "https://evil.example", "*", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, status, reached := serve(t, browser.Config{Origins: test.origins}, "GET", http.Header{"Origin": {test.origin}}, false)
			if h.Get("Access-Control-Allow-Origin") != test.allow || h.Get("Access-Control-Allow-Credentials") != test.credentials || status != http.StatusTeapot || reached != 1 {
				t.Errorf("request: %d, %v", status, h)
			}
			if vary := strings.Join(h.Values("Vary"), ", "); test.origins != nil && !strings.Contains(vary, "Origin") {
				t.Errorf("the answer depends on the origin, and Vary is %q", vary)
			}
			exposed := h.Get("Access-Control-Expose-Headers")
			for _, header := range []string{"Upload-Offset", "Upload-Expires", "Location", "Tus-Resumable", "Etag", "Imgsrv-Sequence", "Imgsrv-At-Sequence", "Repr-Digest"} {
				if strings.Contains(", "+exposed+",", ", "+header+",") != (test.allow != "") {
					t.Errorf("exposed: %q; %s", exposed, header)
				}
			}
			for _, method := range []string{"POST", "PATCH", "DELETE", "PUT", "HEAD"} {
				h, status, reached := serve(t, browser.Config{Origins: test.origins}, "OPTIONS", http.Header{"Origin": {test.origin}, "Access-Control-Request-Method": {method},
					"Access-Control-Request-Headers": {"authorization,content-type,tus-resumable,upload-length,upload-metadata,upload-offset"}}, false)
				if h.Get("Access-Control-Allow-Origin") != test.allow || h.Get("Access-Control-Allow-Credentials") != test.credentials {
					t.Errorf("preflight of %s: %d, %v", method, status, h)
				}
				if test.allow != "" && (status != http.StatusNoContent || reached != 0 || h.Get("Access-Control-Allow-Methods") != method ||
					!strings.Contains(h.Get("Access-Control-Allow-Headers"), "upload-offset") || h.Get("X-Content-Type-Options") != "nosniff") {
					t.Errorf("preflight of %s: %d, %v", method, status, h)
				}
			}
		})
	}
	// A header that no route reads isn't allowed.
	h, _, _ := serve(t, browser.Config{Origins: named}, "OPTIONS", http.Header{"Origin": {site}, "Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {"x-forwarded-for"}}, false)
	if h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a preflight with an unknown header: %v", h)
	}
}

// What an answer of ours carries is of no use to a script that may not read it.
func TestOurOwnHeadersAreExposedAndAllowed(t *testing.T) {
	t.Parallel()
	const site = "https://builds.example"
	name := regexp.MustCompile(`"(Imgsrv-[A-Za-z-]+)"`)
	var found []string
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, filepath.Join("..", "browser")) {
			return err
		}
		text, err := os.ReadFile(path)
		for _, match := range name.FindAllStringSubmatch(string(text), -1) {
			found = append(found, match[1])
		}
		return err
	})
	if err != nil || !slices.Contains(found, "Imgsrv-Sequence") {
		t.Fatalf("found %v, %v", found, err)
	}
	h, _, _ := serve(t, browser.Config{Origins: []string{site}}, "GET", http.Header{"Origin": {site}}, false)
	exposed := strings.ToLower(h.Get("Access-Control-Expose-Headers"))
	for _, header := range found {
		h, _, _ := serve(t, browser.Config{Origins: []string{site}}, "OPTIONS", http.Header{"Origin": {site}, "Access-Control-Request-Method": {"GET"},
			"Access-Control-Request-Headers": {strings.ToLower(header)}}, false)
		if !strings.Contains(exposed, strings.ToLower(header)) && h.Get("Access-Control-Allow-Origin") == "" {
			t.Errorf("%s may be neither sent nor read by scripts of a named site", header)
		}
	}
}

func TestWhatIsNoOriginIsRefused(t *testing.T) {
	t.Parallel()
	for _, origins := range [][]string{nil, {"*"}, {"https://a.example"}, {"http://localhost:3000", "https://a.example:1"}, {"http://[::1]:3000"}} {
		if err := browser.CheckOrigins(origins); err != nil {
			t.Errorf("%v: %v", origins, err)
		}
	}
	for _, origins := range [][]string{{""}, {"a.example"}, {"https://a.example/"}, {"https://a.example/x"}, {"https://*.a.example"}, {"null"}, {"ftp://a.example"},
		{"https://u:p@a.example"}, {"https://a.example", "*"}, {"*", "https://a.example"}, {"https://a.example?x"}, {"https://"}, {"https://:80"}} {
		if err := browser.CheckOrigins(origins); err == nil {
			t.Errorf("%v is taken for origins", origins)
		}
	}
}
