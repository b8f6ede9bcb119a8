package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The flags reach what they limit, through the front door; what is counted by events survives a restart.
func TestLimitsOfARunningServer(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.MetricsListen = "127.0.0.1:0"
	flags.LimitFlags = LimitFlags{RateLimit: 0.001, RateBurst: 3, MaxOpenSessions: 1, MaxBytesPerDay: 1000, UploadExpiry: time.Hour}
	start := func() (*Node, *publisher) {
		node := startHere(t, flags)
		return node, node.publisher(t)
	}
	flags.RateLimit = 0
	node, p := start()
	f := file{format: "rootfs.squashfs", data: make([]byte, 600)}
	session := p.open(request("image", "1", "container", nil, f))
	refused := func(version string, size int, code string) {
		t.Helper()
		var problem struct{ Code string }
		resp := p.call("POST", "/api/images", request("image", version, "container", nil, file{format: "rootfs.squashfs", data: make([]byte, size)}), &problem)
		if resp.StatusCode != 429 || problem.Code != code || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%d %s, Retry-After %q, want 429 %s", resp.StatusCode, problem.Code, resp.Header.Get("Retry-After"), code)
		}
	}
	refused("2", 1, "too-many-sessions")
	var status struct {
		ExpiresAt time.Time `json:"expires_at"`
	}
	if p.call("GET", session.StatusURL, nil, &status); time.Until(status.ExpiresAt) > time.Hour || time.Until(status.ExpiresAt) < 0 {
		t.Errorf("the session expires at %v, want within an hour", status.ExpiresAt)
	}
	if err := node.Stop(); err != nil {
		t.Fatal(err)
	}

	flags.RateLimit = 0.001
	node, p = start()
	defer func() {
		if err := node.Stop(); err != nil {
			t.Error(err)
		}
	}()
	refused("2", 1, "too-many-sessions")
	if resp := p.call("DELETE", "/api/uploads/"+session.ID, nil, nil); resp.StatusCode != 200 {
		t.Fatalf("abort: %d", resp.StatusCode)
	}
	refused("2", 401, "quota-exhausted")
	refused("2", 1, "too-many-requests") // the admin's three are used up
	var metrics []byte
	p.call("GET", node.MetricsURL, nil, &metrics)
	for _, want := range []string{`imgsrv_limits_refused_total{limit="open_sessions"} 1`, `imgsrv_limits_refused_total{limit="bytes_per_day"} 1`,
		`imgsrv_limits_refused_total{limit="request_rate"} 1`, `imgsrv_limits_refused_total{limit="storage_reserve"} 0`} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if resp := p.call("GET", "/healthz", nil, nil); resp.StatusCode != 200 {
		t.Errorf("a probe: %d", resp.StatusCode)
	}
}

func TestOversizedAndUnfinishedRequestsAreAnswered(t *testing.T) {
	t.Parallel()
	p := startHere(t, nodeFlags(t)).publisher(t)
	if resp := p.call("GET", "/api/images", nil, nil, "X-Large", strings.Repeat("x", 80<<10)); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("80 KiB of header: %d, want 431", resp.StatusCode)
	}
	var problem struct{ Code string }
	body := append(append([]byte(`"`), make([]byte, 1<<20)...), '"')
	if resp := p.call("POST", "/api/images", body, &problem, "Content-Type", "application/json"); resp.StatusCode != 413 || problem.Code != "too-large" {
		t.Errorf("a body of over 1 MiB: %d %s, want 413 too-large", resp.StatusCode, problem.Code)
	}

	// A body that nobody wants and that never comes holds no connection.
	conn, err := net.Dial("tcp", strings.TrimPrefix(p.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // only read from
	if _, err := fmt.Fprintf(conn, "POST /api/images HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %s\r\n\r\n{", strconv.Itoa(100_000)); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(conn)
	resp, err := http.ReadResponse(answers, nil)
	if err != nil || resp.StatusCode != 401 {
		t.Fatalf("%v %v, want 401", resp, err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if _, err := answers.ReadByte(); err == nil {
		t.Error("the connection goes on in the middle of a body")
	}
}

func TestLimitsThatMeanNothingAreRefused(t *testing.T) {
	t.Parallel()
	for flag, value := range map[string]string{"--rate-limit": "-1", "--rate-burst": "-1", "--rate-exempt": "localhost", "--max-parallel-uploads": "-1",
		"--max-open-sessions": "-1", "--max-bytes-per-day": "-5", "--storage-reserve": "-2", "--upload-expiry": "-1h", "--upload-stall-timeout": "-1s"} {
		code, _, errs := command(t.Context(), "start", "--data-dir="+t.TempDir(), flag+"="+value)
		if code == 0 || !strings.Contains(errs, flag) || strings.Count(strings.TrimSpace(errs), "\n") != 0 {
			t.Errorf("%s %s: exit code %d, %q, want one line that names the flag", flag, value, code, errs)
		}
	}
}
