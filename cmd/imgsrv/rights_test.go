package main

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/imgsrv/imgsrv/internal/oidctest"
)

// caller is somebody with certain credentials.
type caller struct {
	name   string
	header string // Authorization
	bad    bool   // credentials that aren't good any more, or never were
	roles  []string
	oidc   bool // the credentials are an OIDC token
}

// holds says whether the caller has one of the roles, by its short name: publisher/a is a publisher on team-a-*.
func (c caller) holds(roles ...string) bool {
	return slices.ContainsFunc(roles, func(role string) bool { return slices.Contains(c.roles, role) })
}

// The rules for who is answered how; ok is the status for who may.
type rule func(c caller, ok int) int

// Roles that let their holder read what is in team-a-*.
var readersOfA = []string{"reader/a", "publisher/a", "operator/a", "reader", "publisher", "operator", "admin"}

func open(_ caller, ok int) int { return ok }

func public(c caller, ok int) int {
	if c.bad {
		return 401
	}
	return ok
}

// hidden is what only readers of team-a-* find.
func hidden(c caller, ok int) int {
	switch {
	case c.bad:
		return 401
	case c.holds(readersOfA...):
		return ok
	}
	return 404
}

func somebodyOnly(c caller, ok int) int {
	if c.bad || len(c.roles) == 0 {
		return 401
	}
	return ok
}

// takes is what needs one of the roles, whoever it is about.
func takes(roles ...string) rule {
	return func(c caller, ok int) int {
		switch {
		case c.bad || len(c.roles) == 0:
			return 401
		case c.holds(roles...):
			return ok
		}
		return 403
	}
}

// exchanges is what takes an OIDC token, and no other.
func exchanges(c caller, ok int) int {
	if c.oidc {
		return ok
	}
	return 401
}

// publishes is what a publisher of team-a-* may do where the path names the image.
var publishes = takes("publisher/a", "publisher", "admin")

// publishesHidden is the same where the path has an id: publishers of other images don't find it.
func publishesHidden(c caller, ok int) int {
	if c.holds("publisher/b") {
		return 404
	}
	return publishes(c, ok)
}

// retries is what publishers and operators may do with a job that only readers find.
func retries(c caller, ok int) int {
	switch {
	case c.bad || len(c.roles) == 0:
		return 401
	case c.holds("publisher/a", "operator/a", "publisher", "operator", "admin"):
		return ok
	case c.holds(readersOfA...):
		return 403
	}
	return 404
}

var (
	operates   = takes("operator", "admin")
	administer = takes("admin")
)

// Every route with every kind of caller. A route that isn't in the table fails the test, so that nobody forgets
// to think about who may use it.
func TestEveryRouteAsksForItsRights(t *testing.T) {
	t.Parallel()
	key := oidctest.ECDSA(t, "k1")
	issuer := oidctest.New(t, key)
	flags := nodeFlags(t)
	flags.OIDCCAFile = issuer.CAFile
	node := startHere(t, flags)
	p := node.publisher(t)
	disk := file{format: "disk.raw", data: []byte(rawDisk(512))}
	body := vm("team-a-open", "1", []string{"latest"}, disk)
	p.publish(body, disk)
	secret := file{format: "disk.raw", data: []byte(rawDisk(1024))}
	body = vm("team-a-secret", "1", []string{"latest"}, secret)
	body["visibility"] = "private"
	notes := file{format: "notes.md", data: []byte("not for everybody")}
	body["attachments"] = []any{map[string]any{"name": notes.format, "size": len(notes.data)}}
	session := p.open(body)
	p.upload(session, notes)
	upload := p.create(session, 0, len(secret.data))
	tusID := upload[strings.LastIndex(upload, "/")+1:]
	if resp := p.patch(upload, 0, secret.data); resp.StatusCode != 204 {
		t.Fatalf("upload: %d", resp.StatusCode)
	}
	job := p.await(session)
	if job.State != "succeeded" {
		t.Fatalf("job: %+v", job)
	}
	var published struct {
		Variants []struct {
			Name    string `json:"name"`
			Formats []struct {
				BlobURL string `json:"blob_url"`
			} `json:"formats"`
		} `json:"variants"`
	}
	resp := p.call("GET", "/api/images/team-a-secret/versions/1", nil, &published)
	if resp.StatusCode != 200 || len(published.Variants) == 0 {
		t.Fatalf("version: %d", resp.StatusCode)
	}
	blob := strings.TrimPrefix(published.Variants[0].Formats[0].BlobURL, node.HTTPURL)
	variant := published.Variants[0].Name

	callers := append(jobCallers(t, p, issuer, key), everyCaller(t, p)...)
	adminsToken := callers[len(callers)-1]
	if adminsToken.name != "admin" {
		t.Fatal("the last caller is not the admin")
	}
	var who struct {
		TokenID string `json:"token_id"`
	}
	p.call("GET", "/api/whoami", nil, &who, "Authorization", adminsToken.header)

	const a, gone = "/api/images/team-a-secret", "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
	tus := []string{"Tus-Resumable", "1.0.0"}
	rows := []struct {
		route string // method and pattern, as chi has it
		path  string // "" where the pattern has no parameters
		body  any
		rule  rule
		ok    int
		// mentions: the answer names the secret image exactly to those who may read it.
		mentions bool
		header   []string
	}{
		{route: "GET /healthz", rule: open, ok: 200},
		{route: "GET /readyz", rule: open, ok: 200},
		{route: "GET /openapi.yaml", rule: open, ok: 200},
		{route: "GET /openapi.json", rule: open, ok: 200},
		{route: "GET /asyncapi.yaml", rule: open, ok: 200},

		{route: "GET /api/images", rule: public, ok: 200, mentions: true},
		{route: "GET /api/images", path: "/api/images?at=9", rule: somebodyOnly, ok: 200},
		{route: "POST /api/images", body: map[string]any{"image": "team-a-secret", "version": "no version", "variants": []any{}}, rule: publishes, ok: 422},
		{route: "GET /api/images/{image}", path: a, rule: hidden, ok: 200},
		{route: "GET /api/images/{image}", path: "/api/images/team-a-open", rule: public, ok: 200},
		{route: "GET /api/images/{image}", path: a + "?at=60", rule: hidden, ok: 200},
		{route: "GET /api/images/{image}/versions", path: a + "/versions", rule: hidden, ok: 200},
		{route: "GET /api/images/{image}/versions/{version}", path: a + "/versions/1", rule: hidden, ok: 200},
		{route: "GET /api/images/{image}/versions/{version}", path: "/api/images/team-a-open/versions/latest", rule: public, ok: 200},
		{route: "GET /api/images/{image}/versions/{version}/variants/{variant}/formats/{format}", path: a + "/versions/1/variants/" + variant + "/formats/disk.raw", rule: hidden, ok: 200},
		{route: "HEAD /api/images/{image}/versions/{version}/variants/{variant}/formats/{format}", path: a + "/versions/latest/variants/" + variant + "/formats/disk.raw", rule: hidden, ok: 200},
		{route: "GET /api/images/{image}/versions/{version}/SHA256SUMS", path: a + "/versions/1/SHA256SUMS", rule: hidden, ok: 200},
		{route: "GET /api/images/{image}/versions/{version}/SHA256SUMS.minisig", path: a + "/versions/latest/SHA256SUMS.minisig", rule: hidden, ok: 200},
		{route: "GET /api/signing-key", rule: public, ok: 200},
		{route: "HEAD /api/images/{image}/versions/{version}/SHA256SUMS", path: a + "/versions/1/SHA256SUMS", rule: hidden, ok: 200},
		{route: "HEAD /api/images/{image}/versions/{version}/SHA256SUMS.minisig", path: a + "/versions/latest/SHA256SUMS.minisig", rule: hidden, ok: 200},
		{route: "HEAD /api/signing-key", rule: public, ok: 200},
		{route: "GET /api/images/{image}/versions/{version}/attachments/{name}", path: a + "/versions/1/attachments/notes.md", rule: hidden, ok: 200},
		{route: "HEAD /api/images/{image}/versions/{version}/attachments/{name}", path: a + "/versions/latest/attachments/notes.md", rule: hidden, ok: 200},
		{route: "GET /api/images/{image}/history", path: a + "/history", rule: hidden, ok: 200},
		{route: "PUT /api/images/{image}/aliases/{alias}", path: a + "/aliases/latest", body: map[string]any{"version": "1"}, rule: publishes, ok: 200},
		{route: "DELETE /api/images/{image}/aliases/{alias}", path: a + "/aliases/none", rule: publishes, ok: 404},
		{route: "POST /api/images/{image}/versions/{version}/variants/{variant}/derive", path: a + "/versions/1/variants/none/derive", body: map[string]any{"format": "disk.vmdk"}, rule: publishes, ok: 404},
		{route: "POST /api/images/{image}/versions/{version}/withdraw", path: a + "/versions/1/withdraw", body: map[string]any{"reason": "x"}, rule: publishes, ok: 409},
		{route: "POST /api/images/{image}/versions/{version}/restore", path: a + "/versions/1/restore", rule: publishes, ok: 200},
		{route: "GET /api/images/{image}/policy", path: a + "/policy", rule: publishes, ok: 200},
		{route: "PUT /api/images/{image}/policy", path: a + "/policy", body: map[string]any{"deltas": -1}, rule: publishes, ok: 422},
		{route: "PUT /api/images/{image}/visibility", path: a + "/visibility", body: map[string]any{"visibility": "private"}, rule: publishes, ok: 200},
		{route: "GET /cas/sha256/{prefix}/{hex}", path: blob, rule: hidden, ok: 200},
		{route: "HEAD /cas/sha256/{prefix}/{hex}", path: blob, rule: hidden, ok: 200},
		{route: "GET /cas/sha256/{prefix}/{hex}", path: "/cas/sha256/" + digestOf(notes.data)[:2] + "/" + digestOf(notes.data), rule: hidden, ok: 200},

		{route: "GET /images", rule: public, ok: 200, mentions: true},
		{route: "GET /images/", rule: public, ok: 200, mentions: true},
		{route: "GET /images/{image}", path: "/images/team-a-secret", rule: hidden, ok: 200},
		{route: "GET /images/{image}/", path: "/images/team-a-secret/", rule: hidden, ok: 200},
		{route: "GET /images/{image}/", path: "/images/team-a-open/", rule: public, ok: 200},
		{route: "GET /images/{image}/{version}", path: "/images/team-a-secret/1", rule: hidden, ok: 200},
		{route: "GET /images/{image}/{version}/", path: "/images/team-a-secret/latest/", rule: hidden, ok: 200},
		{route: "GET /images/{image}/{version}/{file}", path: "/images/team-a-secret/1/team-a-secret-1.notes.md", rule: hidden, ok: 200},
		{route: "GET /images/{image}/{version}/SHA256SUMS", path: "/images/team-a-secret/1/SHA256SUMS", rule: hidden, ok: 200},
		{route: "GET /images/{image}/{version}/SHA256SUMS.minisig", path: "/images/team-a-secret/latest/SHA256SUMS.minisig", rule: hidden, ok: 200},
		{route: "HEAD /images", rule: public, ok: 200},
		{route: "HEAD /images/", rule: public, ok: 200},
		{route: "HEAD /images/{image}", path: "/images/team-a-secret", rule: hidden, ok: 200},
		{route: "HEAD /images/{image}/", path: "/images/team-a-secret/", rule: hidden, ok: 200},
		{route: "HEAD /images/{image}/{version}", path: "/images/team-a-secret/1", rule: hidden, ok: 200},
		{route: "HEAD /images/{image}/{version}/", path: "/images/team-a-secret/latest/", rule: hidden, ok: 200},
		{route: "HEAD /images/{image}/{version}/{file}", path: "/images/team-a-secret/1/team-a-secret-1-" + variant + ".disk.raw", rule: hidden, ok: 200},
		{route: "HEAD /images/{image}/{version}/SHA256SUMS", path: "/images/team-a-secret/1/SHA256SUMS", rule: hidden, ok: 200},
		{route: "HEAD /images/{image}/{version}/SHA256SUMS.minisig", path: "/images/team-a-secret/1/SHA256SUMS.minisig", rule: hidden, ok: 200},

		{route: "GET /api/uploads/{id}", path: "/api/uploads/" + session.ID, rule: hidden, ok: 200},
		{route: "DELETE /api/uploads/{id}", path: "/api/uploads/" + session.ID, rule: publishesHidden, ok: 409},
		{route: "* /api/uploads/tus/*", path: "OPTIONS /api/uploads/tus/", rule: open, ok: 200, header: tus},
		{route: "* /api/uploads/tus/*", path: "HEAD /api/uploads/tus/" + tusID, rule: publishesHidden, ok: 200, header: tus},
		{route: "* /api/uploads/tus/*", path: "PATCH /api/uploads/tus/" + tusID, body: []byte("x"), rule: publishesHidden, ok: 409,
			header: append([]string{"Content-Type", "application/offset+octet-stream", "Upload-Offset", "0"}, tus...)},
		{route: "* /api/uploads/tus/*", path: "DELETE /api/uploads/tus/" + tusID, rule: publishesHidden, ok: 409, header: tus},
		{route: "* /api/uploads/tus/*", path: "POST /api/uploads/tus/", rule: publishesHidden, ok: 409,
			header: append([]string{"Upload-Length", "1024", "Upload-Metadata", session.Files[0].Tus.Metadata}, tus...)},

		{route: "GET /api/jobs", rule: public, ok: 200, mentions: true},
		{route: "GET /api/jobs/{id}", path: "/api/jobs/" + job.ID, rule: hidden, ok: 200},
		{route: "GET /api/status", rule: operates, ok: 200},
		{route: "POST /api/jobs/{id}/cancel", path: "/api/jobs/" + job.ID + "/cancel", rule: retries, ok: 409},
		{route: "POST /api/jobs/{id}/retry", path: "/api/jobs/" + job.ID + "/retry", rule: retries, ok: 409},

		{route: "GET /api/events", path: "HEAD /api/events", rule: public, ok: 200},
		{route: "GET /api/events/{sequence}", path: "/api/events/{of the secret version}", rule: hidden, ok: 200},
		{route: "GET /api/events/export", rule: operates, ok: 200},
		{route: "POST /api/events/import", body: []byte("no history"), rule: administer, ok: 409},

		{route: "POST /api/fsck", body: map[string]any{"bytes_per_second": -1}, rule: operates, ok: 422},
		{route: "GET /api/operations", rule: operates, ok: 200},
		{route: "POST /api/gc", body: map[string]any{"grace": "1s"}, rule: operates, ok: 422},
		{route: "GET /api/operations/{id}", path: "/api/operations/none", rule: operates, ok: 404},
		{route: "GET /api/operations/{id}/events", path: "/api/operations/none/events", rule: operates, ok: 404},
		{route: "POST /api/backups", body: map[string]any{"place": "nowhere"}, rule: administer, ok: 422},
		{route: "POST /api/operations/{id}/cancel", path: "/api/operations/none/cancel", rule: operates, ok: 404},
		{route: "GET /api/projections", rule: operates, ok: 200},
		{route: "POST /api/projections/{name}/rebuild", path: "/api/projections/none/rebuild", rule: operates, ok: 404},
		{route: "GET /api/projections/{name}/rebuild", path: "/api/projections/none/rebuild", rule: operates, ok: 404},
		{route: "DELETE /api/projections/{name}/rebuild", path: "/api/projections/none/rebuild", rule: operates, ok: 404},
		{route: "POST /api/projections/{name}/verify", path: "/api/projections/none/verify", rule: operates, ok: 404},
		{route: "GET /api/projections/{name}/replay", path: "/api/projections/none/replay?from=1&to=1", rule: operates, ok: 404},
		{route: "POST /api/projections/{name}/skip", path: "/api/projections/none/skip", body: map[string]any{"sequence": 1, "reason": "x"}, rule: operates, ok: 404},

		{route: "GET /api/webhooks", rule: operates, ok: 200},
		{route: "POST /api/webhooks", body: map[string]any{"url": "no url"}, rule: operates, ok: 422},
		{route: "GET /api/webhooks/{id}", path: "/api/webhooks/" + gone, rule: operates, ok: 404},
		{route: "DELETE /api/webhooks/{id}", path: "/api/webhooks/" + gone, rule: operates, ok: 404},
		{route: "GET /api/webhooks/{id}/secret", path: "/api/webhooks/" + gone + "/secret", rule: operates, ok: 404},
		{route: "GET /api/webhooks/{id}/dead-letters", path: "/api/webhooks/" + gone + "/dead-letters", rule: operates, ok: 404},
		{route: "GET /api/webhooks/{id}/deliveries/{sequence}", path: "/api/webhooks/" + gone + "/deliveries/1", rule: operates, ok: 404},
		{route: "POST /api/webhooks/{id}/redeliver", path: "/api/webhooks/" + gone + "/redeliver", body: map[string]any{"sequence": 1}, rule: operates, ok: 404},

		{route: "GET /api/mirrors", rule: operates, ok: 200},
		{route: "POST /api/mirrors", body: map[string]any{"name": "No Name", "url": "no url"}, rule: administer, ok: 422}, // or an operator who publishes
		{route: "GET /api/mirrors/{name}", path: "/api/mirrors/none", rule: operates, ok: 404},
		{route: "DELETE /api/mirrors/{name}", path: "/api/mirrors/none", rule: operates, ok: 404},
		{route: "POST /api/mirrors/{name}/sync", path: "/api/mirrors/none/sync", rule: operates, ok: 404},

		{route: "GET /api/whoami", rule: public, ok: 200},
		{route: "GET /api/principals", rule: administer, ok: 200},
		{route: "POST /api/principals", body: map[string]any{"name": "No Name"}, rule: administer, ok: 422},
		{route: "GET /api/principals/{name}", path: "/api/principals/none", rule: administer, ok: 404},
		{route: "DELETE /api/principals/{name}", path: "/api/principals/none", rule: administer, ok: 404},
		{route: "POST /api/principals/{name}/roles", path: "/api/principals/none/roles", body: map[string]any{"role": "admin"}, rule: administer, ok: 404},
		{route: "DELETE /api/principals/{name}/roles", path: "/api/principals/none/roles?role=admin", rule: administer, ok: 404},
		{route: "GET /api/subscribers", rule: administer, ok: 200},
		{route: "POST /api/subscribers", body: map[string]any{"name": "No Name", "all": true}, rule: administer, ok: 422},
		{route: "DELETE /api/subscribers/{name}", path: "/api/subscribers/none", rule: administer, ok: 404},
		{route: "GET /api/tokens", rule: administer, ok: 200},
		{route: "POST /api/tokens", body: map[string]any{"expires_in": "never"}, rule: administer, ok: 422},
		{route: "GET /api/tokens/{id}", path: "/api/tokens/" + who.TokenID, rule: administer, ok: 200},
		{route: "DELETE /api/tokens/{id}", path: "/api/tokens/" + gone, rule: administer, ok: 404},
		{route: "POST /api/tokens/{id}/rotate", path: "/api/tokens/" + gone + "/rotate", rule: administer, ok: 404},

		{route: "POST /api/tokens/exchange", body: map[string]any{"ttl": "never"}, rule: exchanges, ok: 422},
		{route: "GET /api/trust-rules", rule: administer, ok: 200},
		{route: "POST /api/trust-rules", body: map[string]any{"name": "x", "issuer": "x", "audience": "x", "claims": map[string]string{}, "roles": []any{}}, rule: administer, ok: 422},
		{route: "GET /api/trust-rules/{id}", path: "/api/trust-rules/" + gone, rule: administer, ok: 404},
		{route: "DELETE /api/trust-rules/{id}", path: "/api/trust-rules/" + gone, rule: administer, ok: 404},

		{route: "* /streams/v1/*", path: "GET /streams/v1/images.json", rule: public, ok: 200},
		{route: "* /streams/v1/*", path: "GET /streams/v1/index.json", rule: public, ok: 200},
		{route: "* /streams/v1/*", path: "GET /streams/v1/images/team-a-secret.json", rule: hidden, ok: 200},
		{route: "* /streams/v1/*", path: "GET /streams/v1/images/team-a-open.json", rule: public, ok: 200},
	}
	sequence := publishedAt(t, p, "team-a-secret")
	rowOf := map[string]bool{}
	for _, row := range rows {
		rowOf[row.route] = true
		method, path, _ := strings.Cut(row.route, " ")
		if m, rest, ok := strings.Cut(row.path, " "); ok && !strings.Contains(m, "/") {
			method, path = m, rest
		} else if row.path != "" {
			path = row.path
		}
		path = strings.ReplaceAll(path, "{of the secret version}", sequence)
		for _, c := range callers {
			var answer []byte
			resp := p.call(method, path, row.body, &answer, append([]string{"Authorization", c.header}, row.header...)...)
			if want := row.rule(c, row.ok); resp.StatusCode != want {
				t.Errorf("%s %s as %s: %d, want %d: %.200s", method, path, c.name, resp.StatusCode, want, answer)
			}
			if row.mentions && !c.bad && strings.Contains(string(answer), "team-a-secret") != c.holds(readersOfA...) {
				t.Errorf("%s %s as %s: %.2000s", method, path, c.name, answer)
			}
			if resp.StatusCode == 404 && !c.holds(readersOfA...) && strings.Contains(string(answer), "private") {
				t.Errorf("%s %s as %s tells why: %s", method, path, c.name, answer)
			}
		}
	}
	walked := 0
	err := chi.Walk(node.router, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		walked++
		mounted, isMount := strings.CutSuffix(route, "*")
		if !rowOf[method+" "+route] && (!isMount || !rowOf["* "+mounted+"*"]) {
			t.Errorf("nobody has said who may use %s %s: it needs a row here", method, route)
		}
		return nil
	})
	if err != nil || walked < len(rowOf)/2 {
		t.Errorf("walked %d routes: %v", walked, err)
	}
}

// everyCaller makes a principal for each role, on the whole server and on patterns, and tokens that are good no more.
func everyCaller(t *testing.T, p *publisher) []caller {
	t.Helper()
	bearer := func(token string) string { return "Bearer " + token }
	issue := func(body map[string]any) (id, token string) {
		var issued struct{ ID, Token string }
		if resp := p.call("POST", "/api/tokens", body, &issued); resp.StatusCode != 201 {
			t.Fatalf("POST /api/tokens: %d", resp.StatusCode)
		}
		return issued.ID, issued.Token
	}
	principal := func(name string, roles ...map[string]any) string {
		if resp := p.call("POST", "/api/principals", map[string]any{"name": name, "roles": roles}, nil); resp.StatusCode != 201 {
			t.Fatalf("POST /api/principals: %d", resp.StatusCode)
		}
		_, token := issue(map[string]any{"principal": name})
		return bearer(token)
	}
	role := func(role, images string) map[string]any {
		if images == "" {
			return map[string]any{"role": role}
		}
		return map[string]any{"role": role, "images": images}
	}
	removed := principal("removed", role("admin", ""))
	if resp := p.call("DELETE", "/api/principals/removed", nil, nil); resp.StatusCode != 204 {
		t.Fatalf("DELETE: %d", resp.StatusCode)
	}
	// One of the same name that comes later doesn't bring the old tokens back.
	principal("removed", role("admin", ""))
	revokedID, revoked := issue(map[string]any{})
	if resp := p.call("DELETE", "/api/tokens/"+revokedID, nil, nil); resp.StatusCode != 204 {
		t.Fatalf("DELETE: %d", resp.StatusCode)
	}
	rotatedID, rotated := issue(map[string]any{})
	if resp := p.call("POST", "/api/tokens/"+rotatedID+"/rotate", nil, nil); resp.StatusCode != 201 {
		t.Fatalf("rotate: %d", resp.StatusCode)
	}
	_, expired := issue(map[string]any{"expires_in": "1ms"})
	time.Sleep(2 * time.Millisecond)
	_, narrowed := issue(map[string]any{"roles": []any{role("reader", "team-a-*")}})
	bReader := principal("b-reader", role("reader", "team-b-*"))
	_, wider := issue(map[string]any{"principal": "b-reader", "roles": []any{role("admin", "")}, "name": "may no more than its principal"})
	return []caller{
		{name: "nobody"},
		{name: "an unknown token", header: "Bearer imgsrv_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", bad: true},
		{name: "an expired token", header: bearer(expired), bad: true},
		{name: "a revoked token", header: bearer(revoked), bad: true},
		{name: "a rotated token", header: bearer(rotated), bad: true},
		{name: "a removed principal", header: removed, bad: true},
		{name: "a JSON Web Token", header: "Bearer e30.e30.e30", bad: true},
		{name: "a reader of team-b-*", header: bReader, roles: []string{"reader/b"}},
		{name: "a publisher of team-b-*", header: principal("b-publisher", role("publisher", "team-b-*")), roles: []string{"publisher/b"}},
		{name: "a token that is wider than its principal", header: bearer(wider), roles: []string{"reader/b"}},
		{name: "a reader of team-a-*", header: principal("a-reader", role("reader", "team-a-*")), roles: []string{"reader/a"}},
		{name: "an admin's token that is narrowed to reading team-a-*", header: bearer(narrowed), roles: []string{"reader/a"}},
		{name: "the same as a password", header: "Basic " + base64.StdEncoding.EncodeToString([]byte("anybody:"+narrowed)), roles: []string{"reader/a"}},
		{name: "a publisher of team-a-*", header: principal("a-publisher", role("publisher", "team-a-*")), roles: []string{"publisher/a"}},
		{name: "an operator of team-a-*", header: principal("a-operator", role("operator", "team-a-*")), roles: []string{"operator/a"}},
		{name: "a reader", header: principal("reader", role("reader", "")), roles: []string{"reader"}},
		{name: "a publisher", header: principal("publisher", role("publisher", "")), roles: []string{"publisher"}},
		{name: "an operator", header: principal("operator", role("operator", "")), roles: []string{"operator"}},
		{name: "admin", header: principal("boss", role("admin", "")), roles: []string{"admin"}},
	}
}

// publishedAt is the sequence of the event that published an image's version.
func publishedAt(t *testing.T, p *publisher, image string) string {
	t.Helper()
	var history struct {
		Events []struct {
			Sequence int    `json:"sequence"`
			Type     string `json:"type"`
		} `json:"events"`
	}
	p.call("GET", "/api/images/"+image+"/history", nil, &history)
	for _, e := range history.Events {
		if e.Type == "imgsrv.version.published.v1" {
			return strconv.Itoa(e.Sequence)
		}
	}
	t.Fatalf("image %s has no event of its publication", image)
	return ""
}
