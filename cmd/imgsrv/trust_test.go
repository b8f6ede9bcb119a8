package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/oidctest"
)

// A CI job's way: an admin trusts its issuer, and it publishes with nothing but the token that its platform gave it.
func TestAJobPublishesWithItsOIDCToken(t *testing.T) {
	t.Parallel()
	key := oidctest.RSA(t, "k1")
	issuer := oidctest.New(t, key)
	flags := nodeFlags(t)
	flags.OIDCCAFile = issuer.CAFile
	node := startHere(t, flags)
	dir := t.TempDir()
	at := []string{"--server", node.HTTPURL, "--data-dir", dir} // without the admin's token
	admin := with(at, "--token", node.Token)
	run := func(want int, flags []string, args ...string) (out, errs string) {
		t.Helper()
		code, out, errs := command(t.Context(), with(flags, args...)...)
		if code != want {
			t.Fatalf("imgsrv %v: exit code %d, want %d: %s", args, code, want, errs)
		}
		return out, errs
	}
	file := filepath.Join(dir, "token")
	keep := func(changes map[string]any) {
		t.Helper()
		token := key.Sign(t, oidctest.JSON(t, issuer.Claims(time.Now(), changes)))
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(disk, []byte(rawDisk(4096)), 0o600); err != nil {
		t.Fatal(err)
	}
	job := with(at, "--oidc-token-file", file)
	keep(nil)
	if _, errs := run(1, job, "publish", disk, "--image=acme-web", "--version=1"); !strings.Contains(errs, "not trusted") {
		t.Errorf("before there is a rule: %s", errs)
	}

	added, _ := run(0, admin, "trust", "add", "github-main", "--issuer", issuer.URL, "--audience=https://images.example.org", "--claim=repository=acme/images",
		"--claim", "ref=refs/heads/*", "--role=publisher", "--images=acme-*", "--token-ttl=2h", "--json")
	rule := decode[client.TrustRule](t, added)
	if rule.ID == "" || rule.Claims["ref"] != "refs/heads/*" || rule.TokenTTL != "2h0m0s" || len(rule.Roles) != 1 {
		t.Fatalf("rule %+v", rule)
	}
	if listed, _ := run(0, admin, "trust"); !strings.Contains(listed, rule.ID) || !strings.Contains(listed, "publisher on acme-*") || !strings.Contains(listed, "ref=refs/heads/* repository=acme/images") {
		t.Errorf("listed:\n%s", listed)
	}

	run(0, job, "publish", disk, "--image=acme-web", "--version=1")
	if history, _ := run(0, admin, "history", "acme-web", "--json"); !strings.Contains(history, "oidc:github-main:repo:acme/images:ref:refs/heads/main") {
		t.Errorf("the history doesn't say who published:\n%s", history)
	}
	if _, errs := run(1, job, "publish", disk, "--image=other", "--version=1"); !strings.Contains(errs, "publisher") {
		t.Errorf("another image: %s", errs)
	}
	if _, errs := run(1, job, "trust"); !strings.Contains(errs, "admin") {
		t.Errorf("a job looks at the rules: %s", errs)
	}
	for name, c := range map[string]struct {
		change map[string]any
		says   string
	}{
		"an expired token":    {map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, "expired"},
		"another audience":    {map[string]any{"aud": "x"}, "aud"},
		"another repository":  {map[string]any{"repository": "evil/images"}, "claims"},
		"another issuer":      {map[string]any{"iss": "https://evil.example.org"}, "iss"},
		"not of this century": {map[string]any{"nbf": time.Now().Add(time.Hour).Unix()}, "nbf"},
	} {
		keep(c.change)
		if _, errs := run(1, job, "publish", disk, "--image=acme-web", "--version=2"); !strings.Contains(errs, c.says) {
			t.Errorf("%s: %s", name, errs)
		}
	}
	// The platform refreshes the file: the same command works again.
	keep(nil)
	run(0, job, "publish", disk, "--image=acme-web", "--version=2")

	run(0, admin, "trust", "remove", rule.ID)
	if _, errs := run(1, job, "publish", disk, "--image=acme-web", "--version=3"); !strings.Contains(errs, "not trusted") {
		t.Errorf("after the rule's end: %s", errs)
	}
	run(1, admin, "trust", "remove", rule.ID)
	run(2, with(admin, "--oidc-token-file", file), "images")
	run(2, admin, "trust", "add", "x", "--issuer", issuer.URL, "--audience=x", "--claim=a=b") // without a role
	if _, errs := run(1, with(at, "--oidc-token-file", file+"x"), "publish", disk, "--image=acme-web", "--version=3"); !strings.Contains(errs, file+"x") {
		t.Errorf("no file: %s", errs)
	}
	if err := os.WriteFile(file, []byte("two tokens"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(1, job, "images")
}

// jobCallers are CI jobs that show their OIDC token, or what they got for it. The node has to know the issuer's certificate.
func jobCallers(t *testing.T, p *publisher, issuer *oidctest.Issuer, key oidctest.Key) []caller {
	t.Helper()
	bearer := func(repository string) string {
		return "Bearer " + key.Sign(t, oidctest.JSON(t, issuer.Claims(time.Now(), map[string]any{"repository": repository})))
	}
	add := func(repository, images string) string {
		var rule struct{ ID string }
		body := map[string]any{"name": strings.ReplaceAll(repository, "/", "-"), "issuer": issuer.URL, "audience": "https://images.example.org",
			"claims": map[string]string{"repository": repository}, "roles": []any{map[string]string{"role": "publisher", "images": images}}}
		if resp := p.call("POST", "/api/trust-rules", body, &rule); resp.StatusCode != 201 {
			t.Fatalf("POST /api/trust-rules: %d", resp.StatusCode)
		}
		return rule.ID
	}
	exchange := func(repository string) string {
		var issued struct{ Token string }
		if resp := p.call("POST", "/api/tokens/exchange", nil, &issued, "Authorization", bearer(repository)); resp.StatusCode != 201 {
			t.Fatalf("POST /api/tokens/exchange: %d", resp.StatusCode)
		}
		return "Bearer " + issued.Token
	}
	add("team/a", "team-a-*")
	add("team/b", "team-b-*")
	removed := add("team/removed", "*")
	orphan := exchange("team/removed")
	if resp := p.call("DELETE", "/api/trust-rules/"+removed, nil, nil); resp.StatusCode != 204 {
		t.Fatalf("DELETE /api/trust-rules: %d", resp.StatusCode)
	}
	return []caller{
		{name: "a job of team-a-*", header: bearer("team/a"), roles: []string{"publisher/a"}, oidc: true},
		{name: "a job of team-a-* by exchange", header: exchange("team/a"), roles: []string{"publisher/a"}},
		{name: "a job of team-b-*", header: bearer("team/b"), roles: []string{"publisher/b"}, oidc: true},
		{name: "a job that no rule knows", header: bearer("team/c"), bad: true},
		{name: "a job whose rule was removed", header: bearer("team/removed"), bad: true},
		{name: "a job by exchange whose rule was removed", header: orphan, bad: true},
	}
}
