package limits_test

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"

	"github.com/imgsrv/imgsrv/handlers/limits"
)

// A node lets as many in as it can serve; the others hear when to come back, and probes pass.
func TestWhatIsTooMuchIsToldToComeBack(t *testing.T) {
	t.Parallel()
	load, err := limits.NewLoad(4, []string{"/healthz"}, nil, noop.Meter{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	inside, leave := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(load.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			inside <- struct{}{}
			<-leave
		}
	})))
	t.Cleanup(server.Close)
	do := func(method, path string) *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		if err != nil {
			t.Error(err)
			return &http.Response{}
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Error(err)
			return &http.Response{}
		}
		_ = resp.Body.Close()
		return resp
	}
	ended := make(chan int, 4)
	enter := func(method string) {
		go func() { ended <- do(method, "/wait").StatusCode }()
		<-inside
	}
	refused := func(method, path string) {
		t.Helper()
		resp := do(method, path)
		if wait, err := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode != 503 || err != nil || wait < 1 || wait > 5 {
			t.Errorf("%s %s: %d, Retry-After %q, want 503 and a few seconds", method, path, resp.StatusCode, resp.Header.Get("Retry-After"))
		}
	}
	for range 3 {
		enter("GET")
	}
	refused("GET", "/")
	refused("HEAD", "/")
	enter("PATCH") // there is a place that no read may take
	refused("PATCH", "/")
	if resp := do("GET", "/healthz"); resp.StatusCode != 200 {
		t.Errorf("a probe gets %d", resp.StatusCode)
	}
	close(leave)
	for range 4 {
		if status := <-ended; status != 200 {
			t.Errorf("a request that was let in ended with %d", status)
		}
	}
	for _, method := range []string{"GET", "PATCH"} {
		if resp := do(method, "/"); resp.StatusCode != 200 {
			t.Errorf("%s when all have left: %d", method, resp.StatusCode)
		}
	}
}

// A connection that is idle makes room for a new one; one that works is left alone, and the new one waits for it.
func TestIdleConnectionsMakeRoomForNewOnes(t *testing.T) {
	t.Parallel()
	const most = 3
	connections := limits.NewConnections(most)
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inside, leave := make(chan struct{}, most), make(chan struct{})
	server := &http.Server{ConnState: connections.State, ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			inside <- struct{}{}
			<-leave
		}
	})}
	served := make(chan error, 1)
	go func() { served <- server.Serve(connections.Listener(plain)) }()

	// Each client keeps its one connection.
	client := func() *http.Client { return &http.Client{Transport: &http.Transport{}, Timeout: time.Minute} }
	get := func(c *http.Client, path string) int {
		resp, err := c.Get("http://" + plain.Addr().String() + path) //nolint:noctx // bounded by the client
		if err != nil {
			t.Error(err)
			return 0
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for range 4 * most { // each leaves an idle one behind
		if status := get(client(), "/"); status != 200 {
			t.Fatalf("status %d", status)
		}
	}
	ended := make(chan int, most+1)
	for range most {
		go func() { ended <- get(client(), "/wait") }()
		<-inside
	}
	go func() { ended <- get(client(), "/") }() // finds no place until one leaves
	close(leave)
	for range most + 1 {
		if status := <-ended; status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err != http.ErrServerClosed { //nolint:errorlint // as it is
		t.Errorf("Serve ended with %v", err)
	}
}
