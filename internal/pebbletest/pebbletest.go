// Package pebbletest gives tests a real ACME authority: Pebble, of Let's Encrypt, with a DNS server that finds every name on the loopback
// address. Only tests import it. Pebble is a program here and no library: its license is not one that imgsrv could be linked with.
package pebbletest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/selfsigned"
	"github.com/imgsrv/imgsrv/internal/testtool"
)

// release of Pebble that is built where none is in $PATH.
const release = "v2.10.1"

// Authority is a running Pebble.
type Authority struct {
	Directory string // URL
	CAFile    string // PEM, what the directory's own certificate is checked with
	t         testing.TB
	roots     string // URL
	client    *http.Client
}

// Start runs an authority until the test ends. It checks names at the given ports of 127.0.0.1: HTTP-01 and TLS-ALPN-01. Where Pebble
// is neither in $PATH nor can be built, the test is skipped (see testtool).
func Start(t testing.TB, httpPort, tlsPort int) *Authority {
	t.Helper()
	path, err := programs()
	if err != nil {
		testtool.Absent(t, "pebble and pebble-challtestsrv: "+err.Error())
	}
	dir := t.TempDir()
	if _, _, err := selfsigned.Load(dir, []string{"localhost", "127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	ports := Ports(t, 4)
	at := func(i int) string { return fmt.Sprintf("127.0.0.1:%d", ports[i]) }
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{"listenAddress": at(0), "managementListenAddress": at(1), "certificate": filepath.Join(dir, "cert.pem"),
		"privateKey": filepath.Join(dir, "key.pem"), "httpPort": httpPort, "tlsPort": tlsPort, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1}}})
	if err != nil {
		t.Fatal(err)
	}
	configFile := filepath.Join(dir, "pebble.json")
	if err := os.WriteFile(configFile, config, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, nil, filepath.Join(path, "pebble-challtestsrv"), "-dnsserver", at(2), "-management", at(3), "-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-http01", "", "-https01", "",
		"-tlsalpn01", "", "-doh", "")
	// Without its pauses before a check; what else it does to clients, such as refusing some nonces, stays.
	run(t, []string{"PEBBLE_VA_NOSLEEP=1"}, filepath.Join(path, "pebble"), "-config", configFile, "-dnsserver", at(2))

	a := &Authority{Directory: "https://" + at(0) + "/dir", CAFile: filepath.Join(dir, "cert.pem"), t: t, roots: "https://" + at(1) + "/roots/0"}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.read(a.CAFile))
	a.client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	t.Cleanup(a.client.CloseIdleConnections)
	a.await(a.Directory)
	a.await(a.roots)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", at(2))
		if err == nil {
			_ = conn.Close()
			return a
		}
		if time.Now().After(deadline) {
			t.Fatalf("the DNS server isn't there after a minute: %v", err)
		}
	}
}

// Roots are what the authority's certificates are checked with.
func (a *Authority) Roots() *x509.CertPool {
	a.t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.await(a.roots)) {
		a.t.Fatal("pebble gives no root")
	}
	return pool
}

// await gets a document, once the program is up.
func (a *Authority) await(url string) []byte {
	a.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		resp, err := a.client.Get(url)
		if err == nil {
			body, readErr := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK && readErr == nil {
				return body
			}
			err = fmt.Errorf("status %d, %w", resp.StatusCode, readErr)
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("pebble doesn't answer after a minute: %v", err)
		}
	}
}

func (a *Authority) read(name string) []byte {
	a.t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		a.t.Fatal(err)
	}
	return text
}

// run starts a program that ends with the test. What it said is shown when the test has failed.
func run(t testing.TB, env []string, program string, args ...string) {
	t.Helper()
	var said bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", filepath.Base(program), said.String())
		}
	})
}

// Ports are free ports of 127.0.0.1, below those that the system gives out by itself, so that no other test gets them meanwhile.
func Ports(t testing.TB, n int) []int {
	t.Helper()
	var ports []int
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer l.Close() //nolint:errcheck // held until all are found
		if ports = append(ports, port); len(ports) == n {
			return ports
		}
	}
	t.Fatalf("there are no %d free ports", n)
	return nil
}

// programs is the folder of Pebble's programs: that of $PATH, or one in the user's cache, where they are built once.
var programs = sync.OnceValues(func() (string, error) {
	names := []string{"pebble", "pebble-challtestsrv"}
	if path, err := exec.LookPath(names[0]); err == nil {
		return filepath.Dir(path), nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "imgsrv-test", "pebble-"+release)
	built := true
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			built = false
		}
	}
	if built {
		return dir, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	args := []string{"install"}
	for _, name := range names {
		args = append(args, "github.com/letsencrypt/pebble/v2/cmd/"+name+"@"+release)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=") // no -race or -mod of ours
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return dir, nil
})
