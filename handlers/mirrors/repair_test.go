package mirrors

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/events/jetstream"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/targets"
	"github.com/imgsrv/imgsrv/internal/natstest"
)

// An upstream that wants a token is asked with it, by a run and for lost bytes; what it says itself doesn't bring the token into an event
// or an error.
func TestAnUpstreamThatWantsATokenIsAskedWithItAlsoForLostBytes(t *testing.T) {
	t.Parallel()
	token, _ := access.NewToken()
	data := []byte("the bytes of a unified image")
	digest := sha256.Sum256(data)
	var broken atomic.Bool
	var server *httptest.Server
	server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, ok := strings.CutPrefix(r.URL.Path, "/r/"+token+"/")
		switch {
		case !ok:
			http.NotFound(w, r)
		case broken.Load():
			http.Redirect(w, r, "http://"+r.Host+r.URL.Path, http.StatusFound)
		case path == "streams/v1/index.json":
			_, _ = io.WriteString(w, `{"index": {"images": {"datatype": "image-downloads", "path": "images.json", "products": ["one"]}}}`)
		case path == "images.json":
			_, _ = fmt.Fprintf(w, `{"products": {"one": {"arch": "amd64", "os": "debian", "release": "12", "versions": {"20260101_0000": {"items": {
				"good": {"ftype": "incus_combined.tar.gz", "path": "image.tar.gz", "sha256": %q, "size": %d}}},
				"20260102_0000": {"items": {"bad": {"ftype": "incus_combined.tar.gz", "path": "%s/r/%s/image", "sha256": %[1]q, "size": 1}}}}}}}`,
				hex.EncodeToString(digest[:]), len(data), server.URL, token)
		case path == "image.tar.gz":
			_, _ = w.Write(data)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(server.Close)
	to, err := targets.Parse("--mirror-allow", []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	log := natstest.Log(t)
	m, err := New(Config{Log: log, Logger: slog.New(slog.DiscardHandler), Meter: noop.Meter{}, Targets: to, Roots: roots, Pause: time.Millisecond,
		Credentials: NewCredentials(filepath.Join(t.TempDir(), "mirror-credentials"))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.upstream.close)
	id, err := m.Keep(server.URL + "/r/" + token)
	if err != nil {
		t.Fatal(err)
	}
	changes, err := events.AddMirror(events.Mirror{Name: "up", URL: server.URL, Filters: []string{"nothing"}, Keep: 1, EverySeconds: 3600, Lifetime: events.Lifetime{AddedBy: "admin", AddedAt: time.Now()},
		CredentialsID: id}, events.Current[events.Mirror]{})
	if err != nil {
		t.Fatal(err)
	}
	sequence, err := log.Append(t.Context(), jetstream.Cause{Actor: "admin"}, changes...)
	if err != nil {
		t.Fatal(err)
	}
	mirror, err := log.Mirror(t.Context(), "up")
	if err != nil {
		t.Fatal(err)
	}
	end, err := m.sync(t.Context(), mirror.State, sequence)
	if said := strings.Join(end.Run.Problems, " "); err != nil || end.Run.Error != "" || !strings.Contains(said, "20260102_0000") || strings.Contains(said, token) {
		t.Errorf("run %+v, %v", end.Run, err)
	}

	var got []byte
	lost := []events.Blob{{Digest: events.Digest("sha256:" + hex.EncodeToString(digest[:])), Size: int64(len(data))}}
	take := func(_ context.Context, _ events.Blob, _ string, from io.Reader) (err error) {
		got, err = io.ReadAll(from)
		return err
	}
	if err := m.Fetch(t.Context(), lost, take); err != nil || string(got) != string(data) {
		t.Errorf("lost bytes: %q, %v", got, err)
	}
	broken.Store(true)
	if err := m.Fetch(t.Context(), lost, take); err == nil || strings.Contains(err.Error(), token) {
		t.Errorf("from an upstream that leads elsewhere: %v", err)
	}
}
