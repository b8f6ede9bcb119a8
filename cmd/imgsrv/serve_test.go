package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/selfsigned"
)

// trusting is a client that trusts the certificates in a file.
func trusting(t *testing.T, certFile string) *http.Client {
	t.Helper()
	text, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatal("no certificate in the file")
	}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true, DisableKeepAlives: true}}
}

// cutAt sends a text over and over, a byte at a time, and waits until the server has had enough. It gives what the server said.
func cutAt(t *testing.T, addr, begin, again string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the server has closed it
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	go func() {
		for text := begin; ; text = again {
			for _, b := range []byte(text) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond) // far less than the server's patience: it isn't idleness that ends it
			}
		}
	}()
	said, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("half a minute later the server still listens to %q…", begin)
	}
	return string(said)
}

// Whoever sends a header or a handshake without end is cut. An honest upload, slower than that, is not.
func TestSlowHeadersAreCutAndSlowUploadsAreNot(t *testing.T) {
	t.Parallel()
	node := startWith(t, nodeFlags(t), testHooks{readHeaderTimeout: 300 * time.Millisecond}, nil)
	p := node.publisher(t)
	data := append([]byte("hsqs"), bytes.Repeat([]byte("x"), 5000)...)
	session := p.open(request("image", "1", "container", nil, file{format: "rootfs.squashfs", data: data}))
	url := p.create(session, 0, len(data))
	reading, writing := io.Pipe()
	answered := make(chan *http.Response, 1)
	go func() {
		resp, _ := p.try("PATCH", url, reading, nil, "Tus-Resumable", "1.0.0", "Content-Type", "application/offset+octet-stream", "Upload-Offset", "0")
		answered <- resp
	}()
	if _, err := writing.Write(data[:100]); err != nil {
		t.Fatal(err)
	}

	addr := strings.TrimPrefix(node.HTTPURL, "http://")
	if said := cutAt(t, addr, "GET /healthz HTTP/1.1\r\nHost: x\r\n", "X-Slow: 1\r\n"); strings.Contains(said, "200 OK") {
		t.Errorf("a request without an end is answered: %q", said)
	}
	// A TLS record that announces 16 KiB of a handshake.
	cutAt(t, strings.TrimPrefix(node.HTTPSURL, "https://"), "\x16\x03\x01\x40\x00\x01\x00\x3f\xfc", "\x00")

	// By now the upload has taken longer than headers may.
	if _, err := writing.Write(data[100:]); err != nil {
		t.Fatal(err)
	}
	if err := writing.Close(); err != nil {
		t.Fatal(err)
	}
	if resp := <-answered; resp == nil || resp.StatusCode != http.StatusNoContent {
		t.Errorf("the slow upload: %v", resp)
	}
}

func TestOversizedHeadersAreRefused(t *testing.T) {
	t.Parallel()
	node := startHere(t, nodeFlags(t))
	for _, url := range []string{node.HTTPURL, node.HTTPSURL} {
		client := trusting(t, node.CertFile)
		for size, want := range map[int]int{maxHeaderBytes / 2: http.StatusOK, 2 * maxHeaderBytes: http.StatusRequestHeaderFieldsTooLarge} {
			r, err := http.NewRequest("GET", url+"/healthz", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Big", strings.Repeat("x", size))
			resp, err := client.Do(r)
			if err != nil {
				// A server that refuses before it has read all may end the connection under the client's hands.
				var slow net.Error
				if want == http.StatusOK || errors.As(err, &slow) && slow.Timeout() {
					t.Errorf("%s with %d bytes: %v", url, size, err)
				}
				continue
			}
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s with %d bytes: %s, want %d", url, size, resp.Status, want)
			}
			if wantProto := 1 + strings.Count(url, "https"); resp.ProtoMajor != wantProto {
				t.Errorf("%s: %s", url, resp.Proto)
			}
		}
	}
}

// The answer to an oversized header, read whole.
func TestTheRefusalOfAnOversizedHeaderIsAStatus(t *testing.T) {
	t.Parallel()
	node := startHere(t, nodeFlags(t))
	conn, err := net.Dial("tcp", strings.TrimPrefix(node.HTTPURL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing more to say
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// As much as the server reads before it gives up, net/http's slack of 4 KiB included, and not a byte more: so the connection isn't reset.
	begin := "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Big: "
	if _, err := fmt.Fprint(conn, begin, strings.Repeat("x", maxHeaderBytes+4096-len(begin))); err != nil {
		t.Fatal(err)
	}
	status, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(status, "HTTP/1.1 431 ") {
		t.Errorf("%q, %v", status, err)
	}
}

// pairIn makes a certificate for a name, as an operator would put it beside the server.
func pairIn(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	if _, _, err := selfsigned.Load(dir, []string{name, "127.0.0.1"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
}

// servedName is the first name of the certificate that a new connection sees.
func servedName(t *testing.T, url string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing was sent
	return conn.ConnectionState().PeerCertificates[0].DNSNames[0]
}

// New files are taken on at SIGHUP, and without it when they change.
func TestCertificatesAreReloaded(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		interval time.Duration
		signal   bool
	}{"at SIGHUP": {24 * time.Hour, true}, "by themselves": {10 * time.Millisecond, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			flags := nodeFlags(t)
			flags.TLSCert, flags.TLSKey = pairIn(t, "old.example")
			node := startChild(t, flags, childSpec{CertInterval: test.interval})
			if got := servedName(t, node.HTTPSURL); got != "old.example" {
				t.Fatalf("served: %s", got)
			}
			cert, key := pairIn(t, "new.example")
			for from, to := range map[string]string{cert: flags.TLSCert, key: flags.TLSKey} {
				if err := os.Rename(from, to); err != nil {
					t.Fatal(err)
				}
			}
			if test.signal {
				if err := node.cmd.Process.Signal(syscall.SIGHUP); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, func() string {
				if servedName(t, node.HTTPSURL) == "new.example" {
					return ""
				}
				return "the old certificate"
			})
			node.stop(t)
		})
	}
}

// clientAuthority makes an authority in a PEM file, and certificates of it for clients.
func clientAuthority(t *testing.T) (caFile string, issue func(name string) tls.Certificate) {
	t.Helper()
	create := func(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	key := newKey()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "clients"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca, err := x509.ParseCertificate(create(template, template, key, key))
	if err != nil {
		t.Fatal(err)
	}
	caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return caFile, func(name string) tls.Certificate {
		own := newKey()
		return tls.Certificate{PrivateKey: own, Certificate: [][]byte{create(&x509.Certificate{Subject: pkix.Name{CommonName: name},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca, own, key)}}
	}
}

// A client certificate stands for the principal of its common name; another authority's doesn't get through the handshake.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	caFile, issue := clientAuthority(t)
	_, others := clientAuthority(t)
	flags := nodeFlags(t)
	flags.TLSClientCA = caFile
	node := startHere(t, flags)
	p := node.publisher(t)
	operator := map[string]any{"name": "host-1", "roles": []any{map[string]any{"role": "operator"}}}
	if resp := p.call("POST", "/api/principals", operator, nil); resp.StatusCode != 201 {
		t.Fatalf("POST /api/principals: %d", resp.StatusCode)
	}
	known, nobody, stranger := issue("host-1"), issue("host-2"), others("host-1")
	for name, test := range map[string]struct {
		cert *tls.Certificate
		want int // 0: the handshake fails
	}{"of a principal": {&known, 200}, "of nobody": {&nobody, 401}, "none": {nil, 401}, "of another authority": {&stranger, 0}} {
		client := trusting(t, node.CertFile)
		if test.cert != nil {
			client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return test.cert, nil }
		}
		resp, err := client.Get(node.HTTPSURL + "/api/projections")
		if err == nil {
			_ = resp.Body.Close()
		}
		if (err != nil) != (test.want == 0) || err == nil && resp.StatusCode != test.want {
			t.Errorf("a certificate %s: %v, %v, want %d", name, resp, err, test.want)
		}
	}
}

// Headers that browsers heed are on every answer, whoever makes it; CORS is answered before anybody is asked for a token.
func TestWhatBrowsersAreTold(t *testing.T) {
	t.Parallel()
	const site = "https://builds.example"
	flags := nodeFlags(t)
	flags.HSTS, flags.CORSOrigin, flags.MetricsListen = 48*time.Hour, []string{site}, "127.0.0.1:0"
	node := startHere(t, flags)
	client := trusting(t, node.CertFile)
	for _, path := range []string{"/healthz", "/openapi.yaml", "/api/images", "/streams/v1/index.json", "/api/uploads/tus/x", "/nothing", "/cas/sha256/00/x"} {
		for _, base := range []string{node.HTTPURL, node.HTTPSURL} {
			r, err := http.NewRequest("GET", base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Origin", site)
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			want := map[string]string{"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
				"Referrer-Policy": "no-referrer", "Access-Control-Allow-Origin": site, "Strict-Transport-Security": ""}
			if base == node.HTTPSURL {
				want["Strict-Transport-Security"] = "max-age=172800"
			}
			for name, value := range want {
				if got := resp.Header.Get(name); got != value {
					t.Errorf("%s %s: %s is %q, want %q", base+path, resp.Status, name, got, value)
				}
			}
			if !strings.Contains(strings.Join(resp.Header.Values("Vary"), ","), "Origin") {
				t.Errorf("%s: Vary is %q", path, resp.Header.Values("Vary"))
			}
		}
	}
	if resp := get(t, client, node.MetricsURL); resp.Header.Get("X-Content-Type-Options") != "nosniff" {
		t.Error("the metrics are without nosniff")
	}
	for origin, allowed := range map[string]bool{site: true, "https://evil.example": false} {
		r, err := http.NewRequest("OPTIONS", node.HTTPSURL+"/api/uploads/tus/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header = http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"PATCH"}, "Access-Control-Request-Headers": {"authorization,content-type,tus-resumable,upload-offset"}}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := resp.Header.Get("Access-Control-Allow-Methods") == "PATCH" && resp.Header.Get("Access-Control-Allow-Origin") == origin; got != allowed {
			t.Errorf("preflight of an upload from %s: %s %v", origin, resp.Status, resp.Header)
		}
	}
	// What isn't a preflight reaches tus.
	r, err := http.NewRequest("OPTIONS", node.HTTPURL+"/api/uploads/tus/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.Header.Get("Tus-Version") == "" {
		t.Errorf("tus doesn't say what it can: %s, %v", resp.Status, resp.Header)
	}
}
