package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/imgsrv/imgsrv/events"
)

// The answers about a moment are the very bytes that were given at that moment.
func TestThePastIsAnsweredAsItWas(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	paths := []string{"/api/images/debian", "/api/images/debian/versions", "/api/images/debian/versions/latest", "/api/images/debian/versions/1", "/api/images"}
	type moment struct {
		sequence uint64
		time     time.Time
		answers  map[string]string
	}
	var moments []moment
	record := func() {
		m := moment{sequence: uint64(n.head()), time: time.Now(), answers: map[string]string{}}
		for _, path := range paths {
			answer := n.do(http.MethodGet, path, nil, withHeader("Imgsrv-Min-Sequence", fmt.Sprint(m.sequence)))
			m.answers[path] = fmt.Sprintf("%d %s %s", answer.StatusCode, answer.Header.Get("ETag"), answer.body)
		}
		moments = append(moments, m)
	}
	n.publish(session("alpine", "3", []byte("a"), "latest"), []byte("a"))
	n.publish(session("debian", "1", []byte("1"), "latest"), []byte("1"))
	record()
	n.publish(session("debian", "2", []byte("2"), "latest"), []byte("2"))
	record()
	n.want(n.do(http.MethodPut, "/api/images/debian/aliases/latest", map[string]any{"version": "1"}), http.StatusOK)
	record()
	n.do(http.MethodDelete, "/api/images/debian/aliases/latest", nil)
	record()
	for _, m := range moments {
		for path, want := range m.answers {
			for _, at := range []string{fmt.Sprint(m.sequence), m.time.Format(time.RFC3339Nano), m.time.In(time.FixedZone("", 3600)).Format(time.RFC3339Nano)} {
				answer := n.do(http.MethodGet, path+"?at="+url.QueryEscape(at), nil)
				got := fmt.Sprintf("%d %s %s", answer.StatusCode, answer.Header.Get("ETag"), answer.body)
				if strings.HasPrefix(want, "404") && answer.StatusCode == http.StatusNotFound {
					continue // in words of its own
				}
				if got != want {
					t.Errorf("%s at %s:\n%s", path, at, cmp.Diff(want, got))
				}
				if asOf := answer.Header.Get("Imgsrv-At-Sequence"); asOf != fmt.Sprint(m.sequence) {
					t.Errorf("%s at %s is as of %q, want %d", path, at, asOf, m.sequence)
				}
			}
		}
	}
	n.problem(n.do(http.MethodGet, "/api/images/debian?at=1", nil), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodGet, "/api/images/debian?at=1999-01-01T00:00:00Z", nil), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodGet, "/api/images/never?at=1", nil), http.StatusNotFound, "not-found")
	for _, at := range []string{"0", "99999", "yesterday", "-1", "2026-13-01T00:00:00Z", "9999-01-01T00:00:00Z"} {
		for _, path := range paths {
			n.problem(n.do(http.MethodGet, path+"?at="+at, nil), http.StatusBadRequest, "bad-request")
		}
	}

	// Pages of the past stay in the past.
	first := n.do(http.MethodGet, fmt.Sprintf("/api/images/debian/versions?limit=1&at=%d", moments[1].sequence), nil)
	n.publish(session("debian", "3", []byte("3")), []byte("3"))
	_, link, _ := strings.Cut(first.Header.Get("Link"), "<")
	link, _, _ = strings.Cut(link, ">")
	var page struct{ Versions []struct{ Version string } }
	if err := json.Unmarshal(n.do(http.MethodGet, link, nil).body, &page); err != nil || len(page.Versions) != 1 || page.Versions[0].Version != "1" {
		t.Errorf("second page %s: %+v (%v)", link, page, err)
	}
}

func TestThePastOfAPrivateImageIsPrivate(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.publish(session("debian", "1", []byte("1"), "latest"), []byte("1"))
	public := n.head()
	n.turn("debian", events.Private)
	private := n.head()
	for _, at := range []any{public, private} {
		for _, path := range []string{"", "/versions", "/versions/1", "/versions/latest"} {
			path = fmt.Sprintf("/api/images/debian%s?at=%d", path, at)
			n.want(n.do(http.MethodGet, path, nil), http.StatusOK)
			n.problem(n.do(http.MethodGet, path, nil, anonymous), http.StatusNotFound, "not-found")
		}
	}
	n.turn("debian", events.Public)
	n.want(n.do(http.MethodGet, fmt.Sprintf("/api/images/debian?at=%d", public), nil, anonymous), http.StatusOK)
	n.problem(n.do(http.MethodGet, fmt.Sprintf("/api/images/debian?at=%d", private), nil, anonymous), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodGet, fmt.Sprintf("/api/images?at=%d", public), nil, anonymous), http.StatusUnauthorized, "unauthorized")
}

func TestAnImagesHistoryIsTold(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.publish(session("debian", "1", []byte("1"), "latest"), []byte("1"))
	n.publish(session("debian", "2", []byte("22"), "latest"), []byte("22"))
	n.want(n.do(http.MethodPut, "/api/images/debian/aliases/latest", map[string]any{"version": "1"}), http.StatusOK)
	tell := func(path string, options ...option) (lines []string) {
		var page struct {
			Image  string
			Events []struct {
				Sequence      uint64
				Time          time.Time
				Actor, Text   string
				Version, Type string
			}
		}
		answer := n.do(http.MethodGet, "/api/images/debian/history"+path, nil, options...)
		if err := json.Unmarshal(answer.body, &page); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatalf("history%s: %s %s (%v)", path, answer.Status, answer.body, err)
		}
		for i, e := range page.Events {
			if i > 0 && e.Sequence <= page.Events[i-1].Sequence || e.Time.IsZero() || e.Type == "" {
				t.Errorf("line %d: %+v", i, e)
			}
			lines = append(lines, e.Version+": "+e.Text)
		}
		return lines
	}
	whole := strings.Join(tell(""), "\n")
	for _, want := range []string{"1: opened upload session", "1: uploaded disk.qcow2 of amd64.virtual-machine.default: 1 B", "1: verify done after", "1: promote done after",
		"1: published: amd64.virtual-machine.default (disk.qcow2), uploaded by admin", "; the job took ", "1: alias latest → 1", "2: alias latest moved 1 → 2", "1: alias latest moved 2 → 1", ": the image is public; debian, bookworm"} {
		if !strings.Contains(whole, want) {
			t.Errorf("the history doesn't tell %q:\n%s", want, whole)
		}
	}
	second := strings.Join(tell("?version=2"), "\n")
	for _, want := range []string{"2: published", "2: verify done", "2: alias latest moved 1 → 2", "1: alias latest moved 2 → 1"} {
		if !strings.Contains(second, want) {
			t.Errorf("the history of version 2 doesn't tell %q:\n%s", want, second)
		}
	}
	if strings.Contains(second, "1: published") || strings.Contains(second, "latest → 1") && !strings.Contains(second, "2 → 1") {
		t.Errorf("the history of version 2 tells of others:\n%s", second)
	}
	for _, line := range tell("", anonymous) {
		if strings.Contains(line, "session") || strings.Contains(line, "verify") {
			t.Errorf("without a token: %s", line)
		}
	}
	n.problem(n.do(http.MethodGet, "/api/images/never/history", nil), http.StatusNotFound, "not-found")
	n.problem(n.do(http.MethodGet, "/api/images/debian/history?version=9", nil), http.StatusNotFound, "not-found")
}
