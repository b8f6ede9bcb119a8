package api_test

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/access/oidc"
	"github.com/imgsrv/imgsrv/handlers/api"
	"github.com/imgsrv/imgsrv/internal/oidctest"
)

// withTrust gives the API trust rules, and a guard that knows them.
func withTrust(t *testing.T, issuer *oidctest.Issuer) func(*api.Config) {
	return func(cfg *api.Config) {
		quiet := slog.New(slog.DiscardHandler)
		rules := oidc.NewRules(cfg.Events, quiet)
		verifier, err := oidc.New(oidc.Config{Rules: rules.Living, Logger: quiet, CAFile: issuer.CAFile})
		if err != nil {
			t.Fatal(err)
		}
		directory := access.NewDirectory(access.DirectoryConfig{Log: cfg.Events, Logger: quiet, Trusted: rules.Has})
		directory.AddBuiltIn(adminToken)
		ctx, stop := context.WithCancel(context.Background())
		var done sync.WaitGroup
		done.Go(func() { _ = rules.Run(ctx) })
		done.Go(func() { _ = directory.Run(ctx) })
		t.Cleanup(func() { stop(); done.Wait(); _ = verifier.Close() })
		cfg.TrustRules, cfg.OIDC, cfg.Guard = rules, verifier, directory.Guard(verifier.Authenticate)
	}
}

func trustRule(issuer *oidctest.Issuer, name, claim, images, ttl string) map[string]any {
	body := map[string]any{"name": name, "issuer": issuer.URL, "audience": "https://images.example.org", "claims": map[string]string{"repository": claim},
		"roles": []any{map[string]string{"role": "publisher", "images": images}}}
	if ttl != "" {
		body["token_ttl"] = ttl
	}
	return body
}

func TestATrustRuleIsAddedListedAndRemoved(t *testing.T) {
	t.Parallel()
	issuer := oidctest.New(t, oidctest.ECDSA(t, "k1"))
	n := newStoppedNode(t, withTrust(t, issuer))
	answer := n.do(http.MethodPost, "/api/trust-rules", trustRule(issuer, "main", "acme/images", "acme-*", "90m"))
	added := n.want(answer, 201)
	id := added["id"].(string)
	if answer.Header.Get("Location") != n.url+"/api/trust-rules/"+id || answer.Header.Get("Imgsrv-Sequence") != "1" || added["token_ttl"] != "1h30m0s" {
		t.Errorf("answer %v %v", answer.Header, added)
	}
	listed := n.want(n.do(http.MethodGet, "/api/trust-rules", nil), 200)["trust_rules"].([]any)
	shown := n.want(n.do(http.MethodGet, "/api/trust-rules/"+id, nil), 200)
	if len(listed) != 1 || shown["name"] != "main" || shown["claims"].(map[string]any)["repository"] != "acme/images" || shown["added_by"] != "admin" {
		t.Errorf("listed %v, shown %v", listed, shown)
	}
	for name, change := range map[string]func(map[string]any){
		"the name again":    func(map[string]any) {},
		"an admin":          func(b map[string]any) { b["name"], b["roles"] = "x", []any{map[string]string{"role": "admin"}} },
		"no claims":         func(b map[string]any) { b["name"], b["claims"] = "x", map[string]string{} },
		"plain http":        func(b map[string]any) { b["name"], b["issuer"] = "x", "http://issuer.example.org" },
		"a life of nothing": func(b map[string]any) { b["name"], b["token_ttl"] = "x", "1ms" },
		"no duration":       func(b map[string]any) { b["name"], b["token_ttl"] = "x", "-1h" },
	} {
		body := trustRule(issuer, "main", "acme/images", "acme-*", "")
		change(body)
		if a := n.do(http.MethodPost, "/api/trust-rules", body); a.StatusCode != 422 {
			t.Errorf("%s: %s %s", name, a.Status, a.body)
		}
	}
	if a := n.do(http.MethodDelete, "/api/trust-rules/"+id, nil); a.StatusCode != 204 || a.Header.Get("Imgsrv-Sequence") != "2" {
		t.Errorf("DELETE: %s", a.Status)
	}
	n.problem(n.do(http.MethodGet, "/api/trust-rules/"+id, nil), 404, "not-found")
	n.problem(n.do(http.MethodDelete, "/api/trust-rules/"+id, nil), 404, "not-found")
	n.problem(n.do(http.MethodDelete, "/api/trust-rules/none", nil), 404, "not-found")
	if listed := n.want(n.do(http.MethodGet, "/api/trust-rules", nil), 200)["trust_rules"].([]any); len(listed) != 0 {
		t.Errorf("listed after the removal: %v", listed)
	}
	n.want(n.do(http.MethodPost, "/api/trust-rules", trustRule(issuer, "main", "acme/images", "acme-*", "")), 201) // the name is free again
	paths := n.want(n.do(http.MethodGet, "/openapi.json", nil), 200)["paths"].(map[string]any)
	for _, path := range []string{"/api/trust-rules", "/api/trust-rules/{id}", "/api/tokens/exchange"} {
		if paths[path] == nil {
			t.Errorf("%s is not described", path)
		}
	}
}

func TestAnOIDCTokenIsExchanged(t *testing.T) {
	t.Parallel()
	key := oidctest.RSA(t, "k1")
	issuer := oidctest.New(t, key)
	n := newStoppedNode(t, withTrust(t, issuer))
	first := n.want(n.do(http.MethodPost, "/api/trust-rules", trustRule(issuer, "first", "acme/images", "acme-a*", "")), 201)["id"].(string)
	second := n.want(n.do(http.MethodPost, "/api/trust-rules", trustRule(issuer, "second", "acme/*", "acme-b*", "2m")), 201)["id"].(string)
	job := key.Sign(t, oidctest.JSON(t, issuer.Claims(time.Now(), nil)))
	exchange := func(body any) map[string]any {
		t.Helper()
		a := n.do(http.MethodPost, "/api/tokens/exchange", body, withToken(job))
		issued := n.want(a, 201)
		if a.Header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(issued["token"].(string), "imgsrv_") {
			t.Errorf("answer %v %v", a.Header, issued)
		}
		return issued
	}
	life := func(issued map[string]any) time.Duration {
		t.Helper()
		from, err1 := time.Parse(time.RFC3339, issued["issued_at"].(string))
		to, err2 := time.Parse(time.RFC3339, issued["expires_at"].(string))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return to.Sub(from)
	}
	who := func(token string) map[string]any {
		t.Helper()
		return n.want(n.do(http.MethodGet, "/api/whoami", nil, withToken(token)), 200)
	}
	for name, c := range map[string]struct {
		body   any
		rule   string
		name   string
		lasts  time.Duration
		images string
	}{
		"nothing said":                {nil, first, "first", time.Hour, "acme-a*"},
		"an image of the first":       {map[string]any{"image": "acme-a"}, first, "first", time.Hour, "acme-a*"},
		"an image of the second":      {map[string]any{"image": "acme-b"}, second, "second", 2 * time.Minute, "acme-b*"},
		"an image of none":            {map[string]any{"image": "else"}, first, "first", time.Hour, "acme-a*"},
		"less than the rule allows":   {map[string]any{"ttl": "5m"}, first, "first", 5 * time.Minute, "acme-a*"},
		"more than the rule allows":   {map[string]any{"ttl": "24h"}, first, "first", time.Hour, "acme-a*"},
		"more, of a rule with little": {map[string]any{"ttl": "1h", "image": "acme-b"}, second, "second", 2 * time.Minute, "acme-b*"},
	} {
		issued := exchange(c.body)
		if issued["trust"] != c.rule || life(issued) != c.lasts || issued["principal"] != "oidc:"+c.name+":repo:acme/images:ref:refs/heads/main" {
			t.Errorf("%s: %v", name, issued)
		}
		got := who(issued["token"].(string))
		roles := got["roles"].([]any)
		if got["name"] != issued["principal"] || len(roles) != 1 || roles[0].(map[string]any)["images"] != c.images {
			t.Errorf("%s: who %v", name, got)
		}
	}
	// The OIDC token itself gives what both rules give.
	if roles := who(job)["roles"].([]any); len(roles) != 2 {
		t.Errorf("roles of the OIDC token: %v", roles)
	}
	mine, theirs := exchange(nil)["token"].(string), exchange(map[string]any{"image": "acme-b"})["token"].(string)
	for name, token := range map[string]string{"an exchanged token": mine, "the admin's": adminToken, "none": ""} {
		n.problem(n.do(http.MethodPost, "/api/tokens/exchange", nil, withToken(token)), 401, "unauthorized")
		if t.Failed() {
			t.Fatal(name)
		}
	}
	n.problem(n.do(http.MethodPost, "/api/tokens/exchange", nil, anonymous), 401, "unauthorized")
	n.problem(n.do(http.MethodPost, "/api/tokens/exchange", map[string]any{"ttl": "soon"}, withToken(job)), 422, "invalid-request")

	n.want(n.do(http.MethodDelete, "/api/trust-rules/"+first, nil), 204)
	n.problem(n.do(http.MethodGet, "/api/whoami", nil, withToken(mine)), 401, "unauthorized")
	who(theirs)
	if roles := who(job)["roles"].([]any); len(roles) != 1 {
		t.Errorf("roles of the OIDC token after the first rule's end: %v", roles)
	}
	for _, secret := range []string{mine, theirs, job, strings.Split(job, ".")[2]} {
		if strings.Contains(n.logged.String(), secret) {
			t.Error("a token is in the log")
		}
	}

	// It may be a new key, asked too early: the answer says when to come again.
	unknown := oidctest.RSA(t, "k2").Sign(t, oidctest.JSON(t, issuer.Claims(time.Now(), nil)))
	a := n.do(http.MethodPost, "/api/tokens/exchange", nil, withToken(unknown))
	n.problem(a, 503, "unavailable")
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}
