package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
)

// A version's document is kept between requests: each caller must still get its own, and the newest.
func TestAKeptVersionDocumentIsTheCallersOwn(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	data := []byte("bytes")
	n.publish(session("debian", "1", data), data)
	version, err := n.events.Version(t.Context(), "debian", "1")
	if err != nil {
		t.Fatal(err)
	}
	file := events.Derived{Image: "debian", Version: "1", Variant: version.State.Manifest.Variants[0].Name(), Format: "disk.vmdk", Kind: events.DerivedFormat,
		State: events.DerivedHasFailed, Problem: &events.Problem{Code: "timeout", Detail: "it took too long"}}
	sequence, err := n.events.Append(t.Context(), jetstream.Cause{}, events.Change{Fact: events.DerivedFailed{Derived: file}})
	if err != nil {
		t.Fatal(err)
	}
	const path = "/api/images/debian/versions/1"
	n.want(n.do(http.MethodGet, path, nil, withHeader("Imgsrv-Min-Sequence", fmt.Sprint(sequence))), 200)
	otherHost := func(r *http.Request) { r.Host = "images.example" }
	for range 2 {
		if body := string(n.do(http.MethodGet, path, nil).body); !strings.Contains(body, "it took too long") {
			t.Errorf("the admin isn't told why: %s", body)
		}
		if body := string(n.do(http.MethodGet, path, nil, anonymous).body); strings.Contains(body, "it took too long") || !strings.Contains(body, "disk.vmdk") {
			t.Errorf("anybody is told why, or not even what: %s", body)
		}
		if body := string(n.do(http.MethodGet, path, nil, otherHost).body); !strings.Contains(body, "http://images.example/api/images/debian/versions/1") {
			t.Errorf("a client that calls the server by another name: %s", body)
		}
	}
	first := n.do(http.MethodGet, path, nil, anonymous)
	n.want(n.do(http.MethodPut, "/api/images/debian/aliases/stable", map[string]any{"version": "1"}), 200)
	second := n.do(http.MethodGet, path, nil, anonymous, withHeader("Imgsrv-Min-Sequence", fmt.Sprint(n.head())))
	if !strings.Contains(string(second.body), `"stable"`) || second.Header.Get("ETag") == first.Header.Get("ETag") {
		t.Errorf("after an alias was moved: %s, %s before and %s after", second.body, first.Header.Get("ETag"), second.Header.Get("ETag"))
	}
	if a := n.do(http.MethodGet, path, nil, anonymous, withHeader("If-None-Match", second.Header.Get("ETag"))); a.StatusCode != http.StatusNotModified {
		t.Errorf("with its tag: %d", a.StatusCode)
	}
	n.want(n.do(http.MethodPost, path+"/withdraw", map[string]any{"reason": "rotten", "remove_alias": true}), 200)
	if a := n.do(http.MethodGet, path, nil, anonymous, withHeader("Imgsrv-Min-Sequence", fmt.Sprint(n.head()))); a.StatusCode != http.StatusGone {
		t.Errorf("after its withdrawal: %d %s", a.StatusCode, a.body)
	}
}
