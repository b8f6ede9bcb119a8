package oidc

import (
	"encoding/base64"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/imgsrv/imgsrv/events"
)

// Whatever somebody sends before anything of it is checked.
func FuzzParse(f *testing.F) {
	part := base64.RawURLEncoding.EncodeToString
	for _, header := range []string{`{"alg":"RS256","kid":"k"}`, `{"alg":"none"}`, `{"alg":"ES256","crit":["b64"],"b64":false}`, `{}`, ``} {
		for _, payload := range []string{`{"iss":"https://i","aud":["a",1,null],"exp":1e9,"nbf":"x","sub":"a\u0000b"}`, `{"exp":-1e999}`, `null`, `[]`, `{"a":{"b":[[]]}}`} {
			f.Add(part([]byte(header)) + "." + part([]byte(payload)) + ".AAAA")
		}
	}
	f.Fuzz(func(t *testing.T, raw string) {
		token, err := parse(raw)
		if err != nil {
			return
		}
		if token.algorithm == "none" || token.algorithm == "" {
			t.Errorf("algorithm %q is taken", token.algorithm)
		}
		_, _ = token.claims.checkTimes(time.Now())
		if s := token.claims.subject(); !utf8.ValidString(s) || len(s) > maxSubjectBytes+len("…") {
			t.Errorf("subject %q", s)
		}
		if token.claims.satisfy(events.Trust{}) {
			t.Error("a rule without conditions is satisfied")
		}
		for name := range token.claims {
			token.claims.satisfy(events.Trust{Claims: map[string]string{name: "*a*b*"}})
		}
	})
}
