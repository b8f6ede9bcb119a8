package access_test

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// FuzzAuthorization shows any credentials. Only the token itself gets in, as a bearer or as a password; whatever else is a 401 that
// doesn't repeat what was shown; and only what has the form of a JSON Web Token is asked about elsewhere.
func FuzzAuthorization(f *testing.F) {
	const token = "imgsrv_0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"
	directory := access.NewDirectory(access.DirectoryConfig{Logger: slog.New(slog.DiscardHandler)})
	directory.AddBuiltIn(token)
	elsewhere := errors.New("unknown issuer")
	basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	for _, header := range []string{
		"", "Bearer " + token, "bearer  " + token + " ", "BEARER " + token + "x", "Bearer", "Bearer ", "Bearer " + strings.ToUpper(token), token, "Basic " + token,
		basic(":" + token), basic("anybody:" + token), basic(token + ":"), basic(token), basic("a:b:" + token), "Basic !!!", "Basic Og==", "Basic ",
		"Bearer eyJhbGciOiJub25lIn0.e30.", "Bearer imgsrv_a.b.c", "Bearer ..", "Digest username=\"admin\"", "Bearer " + token[:20] + "\x00" + token[20:], "Bearer \xff",
	} {
		f.Add(header)
	}
	f.Fuzz(func(t *testing.T, header string) {
		asked := ""
		guard := directory.Guard(func(_ context.Context, raw string) (access.Principal, error) {
			asked = raw
			return access.Principal{}, elsewhere
		})
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Authorization", header)
		p, err := guard.Authenticate(r)
		if asked != "" && (strings.HasPrefix(asked, "imgsrv_") || strings.Count(asked, ".") != 2 || !errors.Is(err, elsewhere) || p.Name != "") {
			t.Fatalf("%q was asked about elsewhere as %q: %q, %v", header, asked, p.Name, err)
		}
		scheme, credentials, _ := strings.Cut(header, " ")
		_, password, isBasic := r.BasicAuth()
		right := strings.EqualFold(scheme, "Bearer") && strings.TrimSpace(credentials) == token || isBasic && password == token
		switch {
		case right:
			if err != nil || p.Name == "" || !p.MayServer(events.RoleAdmin) {
				t.Fatalf("%q is %q, %v", header, p.Name, err)
			}
		case header == "":
			if err != nil || p.Name != "" || p.MaySomewhere(events.RoleReader) {
				t.Fatalf("nobody is %q, %v", p.Name, err)
			}
		case err == nil || p.Name != "" || p.MaySomewhere(events.RoleReader):
			t.Fatalf("%q is %q, %v", header, p.Name, err)
		case asked == "":
			if details := problem.From(err); details.Status != http.StatusUnauthorized {
				t.Fatalf("%q: %d", header, details.Status)
			}
			if shown := strings.TrimSpace(credentials); len(shown) > 12 && strings.Contains(err.Error(), shown) {
				t.Fatalf("%q is repeated: %v", header, err)
			}
		}
	})
}
