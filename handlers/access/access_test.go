package access_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

func TestTheAdminsTokenIsMadeOnceAndKeptPrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "admin.token")
	token, made, err := access.AdminToken(path)
	if err != nil || !made || !strings.HasPrefix(token, "imgsrv_") || len(token) < 40 {
		t.Fatalf("token %q, made %t: %v", token, made, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v: %v", info.Mode(), err)
	}
	again, made, err := access.AdminToken(path)
	if err != nil || made || again != token {
		t.Fatalf("token %q, made %t: %v", again, made, err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("files %v: %v", files, err)
	}
	if err := os.WriteFile(path, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := access.AdminToken(path); err == nil {
		t.Error("an empty token was taken")
	}
	if _, _, err := access.AdminToken(filepath.Join(path, "below", "a", "file")); err == nil {
		t.Error("a path that can't be was taken")
	}
}

func TestWhoMakesARequest(t *testing.T) {
	t.Parallel()
	guard := access.NewGuard("the-token")
	for name, test := range map[string]struct {
		header                string
		authenticate, writing int // status of the refusal; 0: none
		principal             string
	}{
		"nobody":                 {"", 0, 401, ""},
		"the admin":              {"Bearer the-token", 0, 0, "admin"},
		"in lower case":          {"bearer the-token", 0, 0, "admin"},
		"another token":          {"Bearer the-token2", 401, 401, ""},
		"an empty token":         {"Bearer ", 401, 401, ""},
		"another scheme":         {"Digest the-token", 401, 401, ""},
		"without a space":        {"the-token", 401, 401, ""},
		"basic":                  {"Basic " + base64.StdEncoding.EncodeToString([]byte("anybody:the-token")), 0, 0, "admin"},
		"basic, wrong":           {"Basic " + base64.StdEncoding.EncodeToString([]byte("the-token:wrong")), 401, 401, ""},
		"basic, without a colon": {"Basic " + base64.StdEncoding.EncodeToString([]byte("the-token")), 401, 401, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			if test.header != "" {
				r.Header.Set("Authorization", test.header)
			}
			for call, want := range map[string]int{"Authenticate": test.authenticate, "Holder": test.writing} {
				ask := guard.Authenticate
				if call == "Holder" {
					ask = func(r *http.Request) (access.Principal, error) { return guard.Holder(r, events.RolePublisher) }
				}
				p, err := ask(r)
				switch {
				case want == 0 && (err != nil || p.Name != test.principal || p.MayServer(events.RoleAdmin) != (p.Name == "admin")):
					t.Errorf("%s: %+v, %v", call, p, err)
				case want != 0 && (err == nil || problem.From(err).Status != want || p.MaySomewhere(events.RoleReader)):
					t.Errorf("%s: %+v, %v, want status %d", call, p, err, want)
				}
			}
		})
	}
}

func TestAnOuterHandlerSeesWhoWasAuthenticatedInside(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer x")
	admin, err := access.NewGuard("x").Authenticate(r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, seen := access.Record(context.Background())
	if seen.Name != "" {
		t.Errorf("somebody before anybody: %+v", seen)
	}
	if inner := access.With(ctx, admin); access.From(inner).Name != admin.Name || seen.Name != admin.Name {
		t.Errorf("inside %+v, outside %+v", access.From(inner), *seen)
	}
	if access.From(ctx).Name != "" {
		t.Error("the outer context has changed")
	}
}
