package tus

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"
)

// A HEAD holds its upload's lock, and whoever wants the lock ends it. The connection goes on: its next requests are not cancelled.
func TestARequestWithoutABodyThatIsEndedLeavesItsConnectionWhole(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ended" {
			b := newBody(r, w, time.Minute)
			defer b.left()
			_, _ = io.Copy(io.Discard, b) // all of it, however much there is
			b.interrupt(handler.ErrUploadInterrupted)
			select { // what would go wrong has a moment to do so
			case <-r.Context().Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
		if err := r.Context().Err(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(server.Close)
	client := server.Client()
	for _, request := range []struct {
		method, path string
		body         io.Reader
	}{{"HEAD", "/ended", nil}, {"GET", "/after", nil}, {"PATCH", "/ended", io.LimitReader(zeros{}, 10)}, {"GET", "/after", nil}} {
		r, err := http.NewRequestWithContext(t.Context(), request.method, server.URL+request.path, request.body)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s %s finds its request cancelled", request.method, request.path)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
