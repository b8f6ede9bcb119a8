package client_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
)

// A server whose limit is reached says when to come back; until then nobody asks, and that is no failure.
func TestA429IsWaitedOutAsTold(t *testing.T) {
	t.Parallel()
	asked := 0
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked <= 2 {
			w.Header().Set("Retry-After", "1")
			answer(w, http.StatusTooManyRequests, map[string]any{"code": "too-many-sessions"})
			return
		}
		answer(w, http.StatusCreated, client.Session{ID: "7"})
	})
	var waits []time.Duration
	retry := client.Retry{First: time.Millisecond, Longest: 2 * time.Millisecond, Limit: 2, Notice: func(_ error, wait time.Duration) { waits = append(waits, wait) }}
	if _, err := newClient(t, server.URL, client.Options{Retry: retry}).CreateUpload(t.Context(), client.NewImage{}); err != nil {
		t.Fatalf("after waits of %v: %v", waits, err)
	}
	if len(waits) != 2 || waits[0] < time.Second || waits[1] < time.Second {
		t.Errorf("waited %v, want twice the second that was told", waits)
	}
}

// One that says tomorrow is not waited for.
func TestA429ThatIsOverTheClientsPatienceEndsIt(t *testing.T) {
	t.Parallel()
	for _, told := range []string{"86400", "1"} {
		asked := 0
		server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			asked++
			w.Header().Set("Retry-After", told)
			answer(w, http.StatusTooManyRequests, map[string]any{"code": "quota-exhausted", "detail": "used up"})
		})
		retry := client.Retry{First: time.Millisecond, Limit: 50, Patience: 1990 * time.Millisecond}
		_, err := newClient(t, server.URL, client.Options{Retry: retry}).CreateUpload(t.Context(), client.NewImage{})
		if !client.IsProblem(err, "quota-exhausted") || !strings.Contains(err.Error(), "used up") {
			t.Errorf("Retry-After %s: error %v, want the server's problem", told, err)
		}
		if want := map[string]int{"86400": 1, "1": 2}[told]; asked != want {
			t.Errorf("Retry-After %s: asked %d times, want %d", told, asked, want)
		}
	}
}
