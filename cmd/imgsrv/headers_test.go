package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOversizedHeadersOfEachKindAreRefused: with 431, or the connection's end, on both listeners and in both versions of HTTP; the server goes on.
func TestOversizedHeadersOfEachKindAreRefused(t *testing.T) {
	t.Parallel()
	node := startChild(t, nodeFlags(t))
	defer node.stop(t)
	long := strings.Repeat("a", 8<<10)
	for protocol, transport := range map[string]*http.Transport{
		"HTTP/1.1": {TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
		"HTTP/2":   {TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true},
	} {
		client := &http.Client{Transport: transport, Timeout: time.Minute}
		for _, base := range []string{node.HTTPURL, node.HTTPSURL} {
			for name, change := range map[string]func(r *http.Request){
				"one long header": func(r *http.Request) { r.Header.Set("X-Long", strings.Repeat(long, 12)) },
				"many headers": func(r *http.Request) {
					for i := range 3000 {
						r.Header.Set(fmt.Sprintf("X-Header-%d", i), "some value of it")
					}
				},
				"a long path":     func(r *http.Request) { r.URL.Path += "/" + strings.Repeat(long, 12) },
				"a long token":    func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+strings.Repeat(long, 12)) },
				"a long If-Match": func(r *http.Request) { r.Header.Set("If-Match", strings.Repeat(`"x", `, 20_000)) },
			} {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/api/images", nil)
				if err != nil {
					t.Fatal(err)
				}
				change(r)
				resp, err := client.Do(r)
				if err != nil {
					// A server that refuses before it has read all may end the connection; in HTTP/2 others don't share it.
					if slow := net.Error(nil); errors.As(err, &slow) && slow.Timeout() {
						t.Errorf("%s %s %s: %v", protocol, base, name, err)
					}
					continue
				}
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
					t.Errorf("%s %s %s: %d", protocol, base, name, resp.StatusCode)
				}
			}
			resp, err := client.Get(base + "/healthz")
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Fatalf("%s %s afterwards: %v, %v", protocol, base, resp, err)
			}
			_ = resp.Body.Close()
		}
		client.CloseIdleConnections()
	}
}

// TestRawPathsLeadNowhere sends request lines as no client library would: nothing that lies beside the
// storage is answered.
func TestRawPathsLeadNowhere(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	node := startChild(t, flags)
	defer node.stop(t)
	token, err := os.ReadFile(filepath.Join(flags.DataDir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(node.HTTPURL)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{
		"/../admin.token", "/../../../../etc/passwd", "/cas/../../admin.token", "/cas/sha256/../../../admin.token", `/cas/sha256/..\..\..\admin.token`,
		"/streams/v1/../../admin.token", "/streams/v1/%2e%2e/%2e%2e/admin.token", "/%2e%2e/admin.token", "/%252e%252e/admin.token", "//etc/passwd",
		"/api/uploads/tus/../../../../admin.token", "/api/uploads/tus/%2e%2e%2f%2e%2e%2fadmin.token", "/..%00/admin.token", "/cas/sha256/..%c0%af..%c0%afadmin.token",
		"file:///etc/passwd", "http://127.0.0.1/../admin.token", "*",
	} {
		conn, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\nHost: x\r\nAuthorization: Bearer %s\r\nTus-Resumable: 1.0.0\r\n\r\n", target, strings.TrimSpace(string(token))); err != nil {
			t.Fatal(err)
		}
		var answer strings.Builder
		buffer := make([]byte, 4096)
		for {
			n, err := conn.Read(buffer)
			answer.Write(buffer[:n])
			if err != nil {
				break
			}
		}
		_ = conn.Close()
		status, body := strings.SplitN(answer.String(), "\r\n", 2)[0], answer.String()
		if fields := strings.Fields(status); len(fields) < 2 || fields[1] < "400" || fields[1] >= "500" {
			t.Errorf("%s: %s", target, status)
		}
		if strings.Contains(body, strings.TrimSpace(string(token))) || strings.Contains(body, "root:") {
			t.Errorf("%s gives a file of this machine", target)
		}
	}
}
