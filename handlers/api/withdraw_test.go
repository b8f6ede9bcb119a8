package api_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
)

func after(a answer) option {
	return withHeader("Imgsrv-Min-Sequence", a.Header.Get("Imgsrv-Sequence"))
}

func TestAWithdrawnVersionIsGoneWithItsReason(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	one, two := []byte("one"), []byte("two")
	n.publish(session("debian", "1", one, "stable"), one)
	n.publish(session("debian", "2", two, "latest", "edge"), two)
	cas := func(data []byte) string {
		sum := sha256.Sum256(data)
		digest := hex.EncodeToString(sum[:])
		return "/cas/sha256/" + digest[:2] + "/" + digest
	}
	const v2 = "/api/images/debian/versions/2"
	file := v2 + "/variants/amd64.virtual-machine.default/formats/disk.qcow2"
	before := n.head()
	body := func(fields ...any) map[string]any {
		out := map[string]any{"reason": "CVE-2026-0001"}
		for i := 0; i+1 < len(fields); i += 2 {
			out[fields[i].(string)] = fields[i+1]
		}
		return out
	}

	p := n.problem(n.do(http.MethodPost, v2+"/withdraw", body()), http.StatusConflict, "alias-in-use")
	if detail := p["detail"].(string); !strings.Contains(detail, "edge, latest") {
		t.Errorf("the refusal is %q", detail)
	}
	n.problem(n.do(http.MethodPost, v2+"/withdraw", map[string]any{"reason": " "}), http.StatusUnprocessableEntity, "invalid-request")
	n.problem(n.do(http.MethodPost, v2+"/withdraw", body("move_alias", "9")), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodPost, v2+"/withdraw", body("move_alias", "2")), http.StatusUnprocessableEntity, "invalid-request")
	n.problem(n.do(http.MethodPost, v2+"/withdraw", body("move_alias", "1", "remove_alias", true)), http.StatusUnprocessableEntity, "invalid-request")
	n.problem(n.do(http.MethodPost, "/api/images/debian/versions/latest/withdraw", body()), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodPost, "/api/images/none/versions/1/withdraw", body()), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodPost, v2+"/withdraw", body(), anonymous), http.StatusUnauthorized, "unauthorized")
	if n.head() != before {
		t.Fatal("a refused withdrawal left an event")
	}

	answer := n.do(http.MethodPost, v2+"/withdraw", body("move_alias", "1"))
	state := n.want(answer, http.StatusOK)
	if state["state"] != "withdrawn" || state["reason"] != "CVE-2026-0001" || state["withdrawn_by"] != "admin" || state["withdrawn_at"] == nil {
		t.Errorf("the state is %v", state)
	}
	again := n.do(http.MethodPost, v2+"/withdraw", map[string]any{"reason": "another"})
	if diff := cmp.Diff(state, n.want(again, http.StatusOK)); diff != "" || again.Header.Get("Imgsrv-Sequence") != answer.Header.Get("Imgsrv-Sequence") {
		t.Errorf("withdrawn twice (-first +second):\n%s", diff)
	}
	for _, path := range []string{v2, file, v2 + "/SHA256SUMS"} {
		p := n.problem(n.do(http.MethodGet, path, nil, anonymous, after(answer)), http.StatusGone, "withdrawn")
		if detail := p["detail"].(string); !strings.HasSuffix(detail, "is withdrawn: CVE-2026-0001") {
			t.Errorf("%s: %q", path, detail)
		}
	}
	n.problem(n.do(http.MethodGet, cas(two), nil, after(answer)), http.StatusNotFound, "not-found")
	n.want(n.do(http.MethodGet, file+"?x", nil, after(answer)), http.StatusGone)
	if _, _, err := n.blobs.OpenBlob(cas(two)[len("/cas/sha256/xx/"):]); err != nil {
		t.Errorf("the bytes are gone: %v", err)
	}
	image := n.want(n.do(http.MethodGet, "/api/images/debian", nil, after(answer)), http.StatusOK)
	if image["latest_version"] != "1" || image["version_count"] != 1.0 || fmt.Sprint(image["aliases"]) != "map[edge:1 latest:1 stable:1]" {
		t.Errorf("the image is %v", image)
	}
	if got := n.want(n.do(http.MethodGet, "/api/images/debian/versions/latest", nil, after(answer)), http.StatusOK)["version"]; got != "1" {
		t.Errorf("latest is %v", got)
	}
	n.problem(n.do(http.MethodPut, "/api/images/debian/aliases/back", map[string]any{"version": "2"}), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodPost, "/api/images", session("debian", "2", []byte("x"))), http.StatusConflict, "version-exists")
	then := n.want(n.do(http.MethodGet, fmt.Sprintf("%s?at=%d", v2, before), nil), http.StatusOK)
	if then["version"] != "2" {
		t.Errorf("before the withdrawal: %v", then)
	}
	n.problem(n.do(http.MethodGet, fmt.Sprintf("%s?at=%d", v2, n.head()), nil), http.StatusGone, "withdrawn")

	answer = n.do(http.MethodPost, "/api/images/debian/versions/1/withdraw", body("remove_alias", true))
	n.want(answer, http.StatusOK)
	n.problem(n.do(http.MethodGet, "/api/images/debian", nil, after(answer)), http.StatusNotFound, "not-found")
	if list := n.want(n.do(http.MethodGet, "/api/images", nil, after(answer)), http.StatusOK); len(list["images"].([]any)) != 0 {
		t.Errorf("images: %v", list)
	}
	n.problem(n.do(http.MethodGet, v2, nil, after(answer)), http.StatusGone, "withdrawn")

	answer = n.do(http.MethodPost, v2+"/restore", nil)
	if state := n.want(answer, http.StatusOK); state["state"] != "published" || state["reason"] != nil {
		t.Errorf("restored: %v", state)
	}
	n.want(n.do(http.MethodGet, v2, nil, after(answer)), http.StatusOK)
	n.want(n.do(http.MethodPost, v2+"/restore", nil), http.StatusOK)
	n.problem(n.do(http.MethodPost, "/api/images/debian/versions/3/restore", nil), http.StatusNotFound, "not-found")
	if got := n.do(http.MethodGet, cas(two), nil, after(answer)); string(got.body) != "two" {
		t.Errorf("the bytes are %q", got.body)
	}
	var history struct{ Events []struct{ Text string } }
	if err := json.Unmarshal(n.do(http.MethodGet, "/api/images/debian/history?version=2", nil, anonymous).body, &history); err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range history.Events {
		told = append(told, e.Text)
	}
	text := strings.Join(told, "\n")
	if !strings.Contains(text, "withdrawn: CVE-2026-0001") || !strings.Contains(text, "alias latest moved 2 → 1") || !strings.HasSuffix(text, "the withdrawal is undone") {
		t.Errorf("the history is\n%s", text)
	}
}

// Whoever moves aliases, publishes, withdraws and restores at once: no alias ever names a withdrawn version.
func TestAliasesAndWithdrawalsRace(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	versions := []string{"1", "2", "3"}
	for _, v := range versions {
		n.publish(session("debian", v, []byte(v)), []byte(v))
	}
	const rounds = 25
	var racing sync.WaitGroup
	var mu sync.Mutex
	answered := map[string]int{}
	do := func(name, method, path string, body any) {
		answer := n.do(method, "/api/images/debian/"+path, body)
		mu.Lock()
		defer mu.Unlock()
		answered[fmt.Sprintf("%s %d", name, answer.StatusCode)]++
		if answer.StatusCode >= 500 && answer.StatusCode != http.StatusServiceUnavailable { // out of tries is an answer
			t.Errorf("%s: %d %s", name, answer.StatusCode, answer.body)
		}
	}
	for worker := range 2 {
		racing.Go(func() {
			for i := range rounds {
				do("move", http.MethodPut, fmt.Sprintf("aliases/new-%d-%d", worker, i), map[string]any{"version": versions[(i+worker)%3]})
				do("move", http.MethodPut, "aliases/latest", map[string]any{"version": versions[(i+worker)%2]})
			}
		})
		racing.Go(func() {
			for i := range rounds {
				v := versions[(i+worker)%3]
				body := map[string]any{"reason": "race", "move_alias": versions[(i+worker+1)%3]}
				if i%3 == 0 {
					body = map[string]any{"reason": "race", "remove_alias": true}
				}
				do("withdraw", http.MethodPost, "versions/"+v+"/withdraw", body)
				do("restore", http.MethodPost, "versions/"+v+"/restore", nil)
			}
		})
	}
	racing.Wait()
	states, aliases := map[string]events.VersionState{}, map[string]string{}
	withdrawals := 0
	err := n.events.Read(t.Context(), n.head(), []string{events.SubjectAll}, func(event events.Event) error {
		switch fact := event.Fact.(type) {
		case events.VersionFact:
			v := fact.After()
			states[v.Version] = v.State
			if v.State != events.StateWithdrawn {
				break
			}
			withdrawals++
			for alias, version := range aliases { // those that moved with it come before it
				if version == v.Version {
					t.Errorf("event %d withdraws %s, which %s names", event.Sequence, version, alias)
				}
			}
		case events.AliasFact:
			a := fact.After()
			aliases[a.Alias] = a.Version
			if a.Version != "" && states[a.Version] != events.StatePublished {
				t.Errorf("event %d points %s at %s, which is %s", event.Sequence, a.Alias, a.Version, states[a.Version])
			}
		}
		return nil
	})
	if err != nil || withdrawals == 0 {
		t.Errorf("%d withdrawals, %v", withdrawals, err)
	}
	t.Logf("answers: %v, withdrawals: %d", answered, withdrawals)
}

func TestAPolicyIsSetReadAndTold(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	const path = "/api/images/debian/policy"
	n.problem(n.do(http.MethodGet, path, nil), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodPut, path, map[string]any{"deltas": 1}), http.StatusNotFound, "not-found")
	n.publish(session("debian", "1", []byte("x"), "latest"), []byte("x"))
	if diff := cmp.Diff(map[string]any{"formats": []any{}, "retention": map[string]any{}}, n.want(n.do(http.MethodGet, path, nil), 200)); diff != "" {
		t.Errorf("no policy (-want +got):\n%s", diff)
	}
	policy := map[string]any{"formats": []any{map[string]any{"format": "disk.raw.zst", "required": true}, map[string]any{"format": "disk.vmdk", "required": false}},
		"deltas": 2.0, "retention": map[string]any{"keep_last": 5.0, "keep_days": 90.0}}
	set := n.do(http.MethodPut, path, policy)
	if diff := cmp.Diff(policy, n.want(set, 200)); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(policy, n.want(n.do(http.MethodGet, path, nil), 200)); diff != "" {
		t.Errorf("policy (-want +got):\n%s", diff)
	}
	if again := n.do(http.MethodPut, path, policy); again.Header.Get("Imgsrv-Sequence") != set.Header.Get("Imgsrv-Sequence") {
		t.Errorf("setting it again made event %s", again.Header.Get("Imgsrv-Sequence"))
	}
	// Only the policy that somebody has seen is replaced, where they say which.
	etag := set.Header.Get("ETag")
	if read := n.do(http.MethodGet, path, nil).Header.Get("ETag"); etag == "" || read != etag {
		t.Errorf("the ETag is %q, set was %q", read, etag)
	}
	n.problem(n.do(http.MethodPut, path, map[string]any{"deltas": 1}, withHeader("If-Match", `"another"`)), http.StatusPreconditionFailed, "precondition-failed")
	if next := n.do(http.MethodPut, path, map[string]any{"deltas": 1}, withHeader("If-Match", etag)); next.StatusCode != 200 || next.Header.Get("ETag") == etag {
		t.Errorf("the right ETag: %d, and then %q", next.StatusCode, next.Header.Get("ETag"))
	}
	n.problem(n.do(http.MethodPut, path, policy, withHeader("If-Match", etag)), http.StatusPreconditionFailed, "precondition-failed")
	n.want(n.do(http.MethodPut, path, policy, withHeader("If-Match", "*")), 200)
	for _, bad := range []any{map[string]any{"deltas": -1}, map[string]any{"deltas": 99}, map[string]any{"formats": []any{map[string]any{"format": "a/b"}}},
		map[string]any{"retention": map[string]any{"keep_last": -1}}, map[string]any{"unknown": 1}} {
		n.problem(n.do(http.MethodPut, path, bad), http.StatusUnprocessableEntity, "invalid-request")
	}
	n.problem(n.do(http.MethodGet, path, nil, anonymous), http.StatusUnauthorized, "unauthorized")
	// It survives a publication that describes the image anew.
	second := session("debian", "2", []byte("y"))
	second["description"] = "another"
	n.publish(second, []byte("y"))
	if diff := cmp.Diff(policy, n.want(n.do(http.MethodGet, path, nil), 200)); diff != "" {
		t.Errorf("after a publication (-want +got):\n%s", diff)
	}
	if history := string(n.do(http.MethodGet, "/api/images/debian/history", nil).body); !strings.Contains(history, "the policy is: make disk.raw.zst, disk.vmdk if possible; deltas against 2 versions; keep the last 5; keep 90 days") {
		t.Errorf("history: %s", history)
	}
}

func TestAChangedVisibilityCountsEverywhere(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := []byte("bytes")
	n.publish(session("debian", "1", data, "latest"), data)
	sum := sha256.Sum256(data)
	cas := "/cas/sha256/" + hex.EncodeToString(sum[:1]) + "/" + hex.EncodeToString(sum[:])
	live := n.follow("?image=debian", anonymous)
	paths := []string{"/api/images/debian", "/api/images/debian/versions", "/api/images/debian/versions/latest", "/api/images/debian/history",
		"/api/images/debian/versions/1/variants/amd64.virtual-machine.default/formats/disk.qcow2", cas}
	set := func(visibility string) option {
		t.Helper()
		answer := n.do(http.MethodPut, "/api/images/debian/visibility", map[string]any{"visibility": visibility})
		if got := n.want(answer, 200); got["visibility"] != visibility {
			t.Errorf("answer: %v", got)
		}
		return after(answer)
	}
	check := func(want int, since option) {
		t.Helper()
		for _, path := range paths {
			if got := n.do(http.MethodGet, path, nil, anonymous, since); got.StatusCode != want {
				t.Errorf("%s: %s, want %d", path, got.Status, want)
			}
			if got := n.do(http.MethodGet, path, nil, since); got.StatusCode != 200 {
				t.Errorf("%s as admin: %s", path, got.Status)
			}
		}
	}
	since := set("private")
	check(404, since)
	n.want(n.do(http.MethodPut, "/api/images/debian/aliases/unheard", map[string]any{"version": "1"}), 200)
	// A later publication neither shows it, nor says that it is public.
	n.problem(n.do(http.MethodPost, "/api/images", withVisibility(session("debian", "2", data), "public")), 409, "visibility-differs")
	n.publish(session("debian", "2", []byte("secret")), []byte("secret"))
	check(404, withHeader("Imgsrv-Min-Sequence", fmt.Sprint(n.head())))
	since = set("public")
	check(200, since)
	n.want(n.do(http.MethodPut, "/api/images/debian/aliases/heard", map[string]any{"version": "1"}), 200)
	if got, _ := live.upTo(n.head()); !cmp.Equal(got, []string{"image.visibility_changed.v1 debian", "version.named.v1 debian/1", "alias.moved.v2 debian/heard"}) {
		t.Errorf("a follower without a token heard %v", got)
	}
	n.problem(n.do(http.MethodPut, "/api/images/debian/visibility", map[string]any{"visibility": "secret"}), 422, "invalid-request")
	n.problem(n.do(http.MethodPut, "/api/images/none/visibility", map[string]any{"visibility": "public"}), 404, "not-found")
}

func withVisibility(body map[string]any, visibility string) map[string]any {
	body["visibility"] = visibility
	return body
}
