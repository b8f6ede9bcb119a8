package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/pebbletest"
)

// syncBuffer is a log that a test reads while it is written.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// named is a client that finds every host at one address.
func named(addr string, config *tls.Config) *http.Client {
	return &http.Client{Timeout: time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, DisableKeepAlives: true, TLSHandshakeTimeout: time.Minute,
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, addr)
			}}}
}

// get makes a request and gives the answer without its body.
func get(t *testing.T, client *http.Client, url string) *http.Response {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp
}

// A certificate comes from a real authority, which checks the node by each of the two ways, and is kept over a restart.
func TestACertificateByACME(t *testing.T) {
	t.Parallel()
	for name, byHTTP := range map[string]bool{"TLS-ALPN-01": false, "HTTP-01": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const domain = "images.example.test"
			ports := pebbletest.Ports(t, 3)
			httpPort, tlsPort, nobodys := ports[0], ports[1], ports[2]
			// The authority finds nobody at the port of the way that is not meant.
			checkHTTP, checkTLS := nobodys, tlsPort
			if byHTTP {
				checkHTTP, checkTLS = httpPort, nobodys
			}
			authority := pebbletest.Start(t, checkHTTP, checkTLS)
			flags := nodeFlags(t)
			flags.Listen, flags.TLSListen = fmt.Sprintf("127.0.0.1:%d", httpPort), fmt.Sprintf("127.0.0.1:%d", tlsPort)
			flags.ACMEDomain, flags.ACMEEmail = []string{domain}, "admin@example.test"
			flags.ACMEDirectory, flags.ACMECAFile = authority.Directory, authority.CAFile
			client := named(flags.TLSListen, &tls.Config{RootCAs: authority.Roots()})
			plain := named(flags.Listen, nil)

			var first *x509.Certificate
			for i := range 2 {
				log := &syncBuffer{}
				node := startWith(t, flags, testHooks{}, slog.New(slog.NewTextHandler(log, nil)))
				if want := fmt.Sprintf("https://%s:%d", domain, tlsPort); node.HTTPSURL != want {
					t.Fatalf("HTTPS at %s, want %s", node.HTTPSURL, want)
				}
				resp := get(t, client, node.HTTPSURL+"/healthz")
				if resp.StatusCode != 200 || resp.ProtoMajor != 2 {
					t.Fatalf("%s %s", resp.Proto, resp.Status)
				}
				cert := resp.TLS.PeerCertificates[0]
				if err := cert.VerifyHostname(domain); err != nil {
					t.Error(err)
				}
				if i == 0 {
					first = cert
				} else if !cert.Equal(first) {
					t.Error("after a restart it is another certificate: the kept one is not used")
				}
				// Plain HTTP goes on as it is, without a redirect.
				if resp := get(t, plain, "http://"+domain+"/healthz"); resp.StatusCode != 200 {
					t.Errorf("plain HTTP: %s", resp.Status)
				}
				if resp := get(t, plain, "http://"+domain+"/.well-known/acme-challenge/x"); resp.StatusCode != 404 {
					t.Errorf("a check that wasn't asked for: %s", resp.Status)
				}
				if resp, err := named(flags.TLSListen, &tls.Config{InsecureSkipVerify: true}).Get("https://other.example.test/healthz"); err == nil {
					_ = resp.Body.Close()
					t.Error("another name than the domain is served")
				}
				if err := node.Stop(); err != nil {
					t.Fatal(err)
				}
				if strings.Contains(log.String(), "level=ERROR") {
					t.Errorf("errors were logged:\n%s", log)
				}
			}
			dir := filepath.Join(flags.DataDir, "acme")
			if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("the folder of the certificates: %v, %v", info, err)
			}
			if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return err
				}
				if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", path, info.Mode(), err)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// An authority that can't be reached, or isn't trusted, costs HTTPS and one line in the log; the node serves.
func TestAnACMEAuthorityThatIsAway(t *testing.T) {
	t.Parallel()
	flags := nodeFlags(t)
	flags.ACMEDomain, flags.ACMEDirectory = []string{"images.example.test"}, "https://"+deadAddress(t)+"/dir"
	log := &syncBuffer{}
	node := startWith(t, flags, testHooks{}, slog.New(slog.NewTextHandler(log, nil)))
	addr := strings.TrimPrefix(node.HTTPSURL, "https://images.example.test")
	for range 3 {
		if resp, err := named("127.0.0.1"+addr, &tls.Config{InsecureSkipVerify: true}).Get(node.HTTPSURL); err == nil {
			_ = resp.Body.Close()
			t.Error("HTTPS without a certificate")
		}
	}
	if resp := get(t, http.DefaultClient, node.HTTPURL+"/healthz"); resp.StatusCode != 200 {
		t.Errorf("plain HTTP: %s", resp.Status)
	}
	if err := node.Stop(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "no certificate by ACME"); n != 1 || !strings.Contains(log.String(), "connection refused") {
		t.Errorf("%d lines in the log about it:\n%s", n, log)
	}
}
