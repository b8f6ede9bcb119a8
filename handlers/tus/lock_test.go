package tus

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tus/tusd/v2/pkg/handler"

	"github.com/imgsrv/imgsrv/internal/pipetest"
)

// A HEAD holds its upload's lock, and whoever wants the lock ends it. The connection goes on: its next requests are not cancelled.
func TestARequestWithoutABodyThatIsEndedLeavesItsConnectionWhole(t *testing.T) {
	t.Parallel()
	synctest.Test(t, aRequestWithoutABodyThatIsEndedLeavesItsConnectionWhole)
}

func aRequestWithoutABodyThatIsEndedLeavesItsConnectionWhole(t *testing.T) {
	client := &http.Client{Transport: pipetest.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ended" {
			b := newBody(r, w, time.Minute)
			defer b.left()
			_, _ = io.Copy(io.Discard, b) // all of it, however much there is
			b.interrupt(handler.ErrUploadInterrupted)
			select { // what would go wrong has time to do so
			case <-r.Context().Done():
			case <-time.After(time.Hour):
			}
		}
		if err := r.Context().Err(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))}
	for _, request := range []struct {
		method, path string
		body         io.Reader
	}{{"HEAD", "/ended", nil}, {"GET", "/after", nil}, {"PATCH", "/ended", io.LimitReader(zeros{}, 10)}, {"GET", "/after", nil}} {
		r, err := http.NewRequestWithContext(t.Context(), request.method, "http://server.test"+request.path, request.body)
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
