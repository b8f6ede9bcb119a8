package client_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imgsrv/imgsrv/internal/client"
	"github.com/imgsrv/imgsrv/internal/pipetest"
)

// A server whose limit is reached says when to come back; until then nobody asks, and that is no failure.
func TestA429IsWaitedOutAsTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, a429IsWaitedOutAsTold)
}

func a429IsWaitedOutAsTold(t *testing.T) {
	asked := 0
	server := pipetest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked <= 2 {
			w.Header().Set("Retry-After", "1")
			answer(w, http.StatusTooManyRequests, map[string]any{"code": "too-many-sessions"})
			return
		}
		answer(w, http.StatusCreated, client.Session{ID: "7"})
	}))
	var waits []time.Duration
	retry := client.Retry{First: time.Millisecond, Longest: 2 * time.Millisecond, Limit: 2, Notice: func(_ error, wait time.Duration) { waits = append(waits, wait) }}
	if _, err := newClient(t, "http://server.test", client.Options{Transport: server, Retry: retry}).CreateUpload(t.Context(), client.NewImage{}); err != nil {
		t.Fatalf("after waits of %v: %v", waits, err)
	}
	if len(waits) != 2 || waits[0] < time.Second || waits[1] < time.Second {
		t.Errorf("waited %v, want twice the second that was told", waits)
	}
}

// One that says tomorrow is not waited for.
func TestA429ThatIsOverTheClientsPatienceEndsIt(t *testing.T) {
	t.Parallel()
	for told, want := range map[string]int{"86400": 1, "1": 2} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			server := pipetest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked++
				w.Header().Set("Retry-After", told)
				answer(w, http.StatusTooManyRequests, map[string]any{"code": "quota-exhausted", "detail": "used up"})
			}))
			retry := client.Retry{First: time.Millisecond, Limit: 50, Patience: 1990 * time.Millisecond}
			_, err := newClient(t, "http://server.test", client.Options{Transport: server, Retry: retry}).CreateUpload(t.Context(), client.NewImage{})
			if !client.IsProblem(err, "quota-exhausted") || !strings.Contains(err.Error(), "used up") {
				t.Errorf("Retry-After %s: error %v, want the server's problem", told, err)
			}
			if asked != want {
				t.Errorf("Retry-After %s: asked %d times, want %d", told, asked, want)
			}
		})
	}
}
