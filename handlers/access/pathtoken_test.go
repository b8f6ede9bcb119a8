package access_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/handlers/access"
)

// seen is what a handler behind PathToken sees of a request.
type seen struct {
	Path, RawPath, RequestURI, Query, Authorization, Referer string
	Token                                                    string
	ByPath                                                   bool
	Shown                                                    string
}

func through(r *http.Request) (seen, http.Header) {
	var s seen
	w := httptest.NewRecorder()
	access.PathToken(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s = seen{Path: r.URL.Path, RawPath: r.URL.RawPath, RequestURI: r.RequestURI, Query: r.URL.RawQuery,
			Authorization: r.Header.Get("Authorization"), Referer: r.Referer(), Shown: access.ShownPath(r)}
		s.Token, s.ByPath = access.PathTokenFrom(r.Context())
	})).ServeHTTP(w, r)
	return s, w.Header()
}

const pathToken = "imgsrv_0123456789abcdefghijklmnopqrstuvwxyzABCD-_e"

func TestATokenInThePathIsTakenOut(t *testing.T) {
	t.Parallel()
	const file = "/api/images/deb/versions/12.5.0+b1~rc2/variants/amd64.virtual-machine.default/formats/disk.qcow2"
	for _, rest := range []string{"/streams/v1/index.json", "/streams/v1/images.json", file} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := httptest.NewRequest(method, "https://host"+access.PathTokenBase+pathToken+rest+"?q=1", nil)
			r.Header.Set("Authorization", "Bearer another")
			r.Header.Set("Referer", "https://host/r/"+pathToken+"/")
			got, header := through(r)
			want := seen{Path: rest, RequestURI: rest + "?q=1", Query: "q=1", Token: pathToken, ByPath: true, Shown: "/r/…" + rest}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s %s (-want +got):\n%s", method, rest, diff)
			}
			if header.Get("Referrer-Policy") != "no-referrer" {
				t.Errorf("headers %v", header)
			}
			if r.Header.Get("Authorization") == "" || !strings.Contains(r.URL.Path, pathToken) {
				t.Error("the caller's request was changed")
			}
		}
	}
}

func TestWhatIsNoReadingOfARemoteLeadsNowhere(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ method, path string }{
		{"POST", "/streams/v1/index.json"}, {"DELETE", "/streams/v1/index.json"}, {"OPTIONS", "/streams/v1/index.json"},
		{"GET", ""}, {"GET", "/"}, {"GET", "/streams/v1"}, {"GET", "/healthz"}, {"GET", "/api/images"}, {"GET", "/api/images/deb"},
		{"GET", "/api/images/deb/versions/1"}, {"GET", "/api/events"}, {"GET", "/api/tokens"},
		{"GET", "/cas/sha256/00/" + strings.Repeat("0", 64)}, {"GET", "/streams/v1/../../api/events"}, {"GET", "/streams/v1/%2e%2e/%2e%2e/api/events"},
		{"GET", "//streams/v1/index.json"}, {"GET", "/streams/v1//index.json"}, {"GET", "/streams/v1/%00"},
		{"GET", "/api/images/a/versions/b/variants/c/formats/"}, {"GET", "/api/images//versions/b/variants/c/formats/d"},
		{"GET", "/api/images/a/versions/b/variants/c/formats/d/e"}, {"GET", "/r/" + pathToken + "/streams/v1/index.json"},
	} {
		got, _ := through(httptest.NewRequest(test.method, "/r/"+pathToken+test.path, nil))
		if got.Path != "/r/…" || got.Token != "" || !got.ByPath || got.Shown != "/r/…" || strings.Contains(got.RequestURI, pathToken) {
			t.Errorf("%s %s goes on as %+v", test.method, test.path, got)
		}
	}
	for _, path := range []string{"/r/", "/r//streams/v1/index.json", "/r/a%20b/streams/v1/index.json", "/r/%2e%2e/streams/v1/index.json",
		"/%72%2F" + pathToken + "/api/events", "/r%2F" + pathToken + "/api/events"} {
		if got, _ := through(httptest.NewRequest("GET", path, nil)); got.Path != "/r/…" || got.Token != "" || got.RawPath != "" {
			t.Errorf("%s goes on as %+v", path, got)
		}
	}
}

func TestOtherPathsGoOnAsTheyAre(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/", "/r", "/rr/x", "/streams/v1/index.json", "/api/images/a%2Fb"} {
		r := httptest.NewRequest("POST", path, nil)
		r.Header.Set("Authorization", "Bearer x")
		got, header := through(r)
		want := seen{Path: r.URL.Path, RawPath: r.URL.RawPath, RequestURI: path, Authorization: "Bearer x", Shown: r.URL.Path}
		if diff := cmp.Diff(want, got); diff != "" || len(header) != 0 {
			t.Errorf("%s (-want +got):\n%s%v", path, diff, header)
		}
	}
	r := httptest.NewRequest("GET", "/api/images", nil)
	r.Header.Set("Referer", "https://host/r/"+pathToken+"/streams/v1/index.json")
	if got, _ := through(r); got.Referer != "" {
		t.Errorf("the address that the client came from: %s", got.Referer)
	}
	r.Header.Set("Referer", "https://host/a/page")
	if got, _ := through(r); got.Referer != "https://host/a/page" {
		t.Errorf("another address: %s", got.Referer)
	}
	if token, ok := access.PathTokenFrom(context.Background()); ok || token != "" {
		t.Errorf("a token from nowhere: %q", token)
	}
}

// Somebody gets the address wrong.
func TestATokenInAnotherPlaceOfThePathIsNotShown(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"//r/" + pathToken + "/streams/v1/index.json", "/imgsrv/r/" + pathToken, "/R/" + pathToken + "/x", "/" + pathToken, "/streams/v1/%69mgsrv_" + pathToken[7:]} {
		if got, _ := through(httptest.NewRequest("GET", "http://host"+path, nil)); strings.Contains(got.Shown, "0123456789") {
			t.Errorf("%s is shown as %s", path, got.Shown)
		}
	}
}

func FuzzPathToken(f *testing.F) {
	for _, seed := range []string{"/streams/v1/index.json", "/streams/v1/../../x", "/api/images/a/versions/b/variants/c/formats/d", "//", "/%2e%2e/", "/a%2Fb", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, rest string) {
		r, err := http.NewRequest("GET", "http://host/r/"+pathToken+rest, nil)
		if err != nil {
			return
		}
		got, _ := through(r)
		if strings.Contains(got.Path+got.RawPath+got.RequestURI+got.Shown, pathToken) && !strings.Contains(rest, pathToken) {
			t.Fatalf("%q shows the token: %+v", rest, got)
		}
		if got.Token != "" && !strings.HasPrefix(got.Path, "/streams/v1/") && !strings.HasPrefix(got.Path, "/api/images/") {
			t.Fatalf("%q leads to %s", rest, got.Path)
		}
		if strings.Contains(got.Path, "/../") || strings.Contains(got.Path, "//") || strings.Contains(got.Path, "/./") {
			t.Fatalf("%q goes on as %s", rest, got.Path)
		}
	})
}
