package certs_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imgsrv/imgsrv/internal/certs"
)

// authority signs certificates for a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key, a.pem = sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil)
	return a
}

func sign(t *testing.T, template *x509.Certificate, by *authority) (*x509.Certificate, *ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		t.Fatal(err)
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	template.NotAfter = time.Now().Add(time.Hour)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// issue writes a certificate and its key into a folder and returns the file names.
func (a *authority) issue(dir, name string, usage x509.ExtKeyUsage) (certFile, keyFile string) {
	a.t.Helper()
	_, key, text := sign(a.t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, a)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	write(a.t, certFile, text)
	write(a.t, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return certFile, keyFile
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func write(t *testing.T, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, name, by string) {
	t.Helper()
	if err := os.Rename(by, name); err != nil {
		t.Fatal(err)
	}
}

// logged collects a log.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), part)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// listen serves with the keeper's configuration: the answer names the client's verified certificate.
func listen(t *testing.T, k *certs.Keeper) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := "nobody"
		if len(r.TLS.VerifiedChains) > 0 {
			who = r.TLS.VerifiedChains[0][0].Subject.CommonName
		}
		fmt.Fprint(w, who) //nolint:errcheck // the client sees it
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(tls.NewListener(l, k.TLS()))
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return l.Addr().String()
}

// served is the common name of the certificate that a new connection sees.
func served(t *testing.T, addr string) string {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true}) // the test looks at it itself
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // nothing was sent
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// ask makes a request on a connection of its own and returns what the server takes the client for.
func ask(addr string, config *tls.Config) (string, error) {
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get("https://" + addr + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close() //nolint:errcheck // read to its end
	who, err := io.ReadAll(resp.Body)
	return string(who), err
}

func TestChangedFilesAreServedAndBrokenOnesAreNot(t *testing.T) {
	t.Parallel()
	dir, other, log := t.TempDir(), t.TempDir(), &logged{}
	ca := newAuthority(t, "ca")
	cert, key := ca.issue(dir, "first", x509.ExtKeyUsageServerAuth)
	k, err := certs.New(certs.Config{Cert: cert, Key: key, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	addr := listen(t, k)
	if got := served(t, addr); got != "first" {
		t.Fatalf("served %q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.Watch(ctx, time.Millisecond)
	}()
	defer func() { cancel(); <-done }()
	await := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within half a minute: %s", what)
			}
		}
	}

	// A pair that doesn't fit together: the new certificate with the old key.
	newCert, newKey := ca.issue(other, "second", x509.ExtKeyUsageServerAuth)
	replace(t, cert, newCert)
	await("an error about the pair", func() bool { return log.count("level=ERROR") > 0 })
	if got := served(t, addr); got != "first" {
		t.Errorf("served %q with a broken pair", got)
	}
	replace(t, key, newKey)
	await("the second certificate", func() bool { return served(t, addr) == "second" })
	if n := log.count("level=ERROR"); n != 1 {
		t.Errorf("%d errors were logged for one broken pair", n)
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	await("an error about the lost file", func() bool { return log.count("level=ERROR") == 2 })
	if got := served(t, addr); got != "second" {
		t.Errorf("served %q without the file", got)
	}
}

func TestABrokenPairIsLoggedOnceHoweverOftenItIsLookedAt(t *testing.T) {
	t.Parallel()
	log := &logged{}
	cert, key := newAuthority(t, "ca").issue(t.TempDir(), "first", x509.ExtKeyUsageServerAuth)
	k, err := certs.New(certs.Config{Cert: cert, Key: key, Log: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, []byte("not PEM"))
	for range 5 {
		certs.Look(k)
	}
	if n := log.count("level=ERROR"); n != 1 {
		t.Errorf("%d errors after five looks, want one", n)
	}
	k.Reload()
	if n := log.count("level=ERROR"); n != 2 {
		t.Errorf("%d errors after a reload that was asked for, want another one", n)
	}
	if log.count("PRIVATE KEY") != 0 {
		t.Error("the key is in the log")
	}
}

func TestClientCertificatesAreVerifiedIfGiven(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ours, others := newAuthority(t, "ours"), newAuthority(t, "others")
	cert, key := ours.issue(dir, "server", x509.ExtKeyUsageServerAuth)
	caFile := filepath.Join(dir, "clients.pem")
	write(t, caFile, ours.pem)
	k, err := certs.New(certs.Config{Cert: cert, Key: key, ClientCA: caFile, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	addr := listen(t, k)
	client := func(by *authority, name string, usage x509.ExtKeyUsage) *tls.Config {
		certFile, keyFile := by.issue(dir, name, usage)
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			t.Fatal(err)
		}
		// Shown whatever authorities the server asks for: what is tested is its judgement, not the client's.
		return &tls.Config{RootCAs: ours.pool(), ServerName: "server", ClientSessionCache: tls.NewLRUClientSessionCache(8),
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }}
	}
	known := client(ours, "ci", x509.ExtKeyUsageClientAuth)
	for range 2 { // the second time as a resumed session
		if who, err := ask(addr, known); err != nil || who != "ci" {
			t.Errorf("a certificate of the authority: %q, %v", who, err)
		}
	}
	if who, err := ask(addr, &tls.Config{RootCAs: ours.pool(), ServerName: "server"}); err != nil || who != "nobody" {
		t.Errorf("no certificate: %q, %v", who, err)
	}
	if who, err := ask(addr, client(others, "stranger", x509.ExtKeyUsageClientAuth)); err == nil {
		t.Errorf("a certificate of another authority is taken for %q", who)
	}
	if who, err := ask(addr, client(ours, "server-only", x509.ExtKeyUsageServerAuth)); err == nil {
		t.Errorf("a certificate that isn't for clients is taken for %q", who)
	}

	// Another authority takes the place of the first: sessions of the first end with it.
	tls12 := client(ours, "old-client", x509.ExtKeyUsageClientAuth)
	tls12.MaxVersion = tls.VersionTLS12
	if who, err := ask(addr, tls12); err != nil || who != "old-client" {
		t.Fatalf("with TLS 1.2: %q, %v", who, err)
	}
	write(t, caFile, others.pem)
	k.Reload()
	for _, config := range []*tls.Config{known, tls12} {
		if who, err := ask(addr, config); err == nil {
			t.Errorf("after its authority was replaced a client is still %q", who)
		}
	}
	if who, err := ask(addr, client(others, "stranger", x509.ExtKeyUsageClientAuth)); err != nil || who != "stranger" {
		t.Errorf("a certificate of the new authority: %q, %v", who, err)
	}
}

func TestOlderThanTLS12IsRefused(t *testing.T) {
	t.Parallel()
	cert, key := newAuthority(t, "ca").issue(t.TempDir(), "server", x509.ExtKeyUsageServerAuth)
	k, err := certs.New(certs.Config{Cert: cert, Key: key, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	addr := listen(t, k)
	for version, want := range map[uint16]bool{tls.VersionTLS10: false, tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
		if (err == nil) != want {
			t.Errorf("%s: error %v", tls.VersionName(version), err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
}

func TestFilesThatCannotBeUsedAreNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newAuthority(t, "ca")
	cert, key := ca.issue(dir, "server", x509.ExtKeyUsageServerAuth)
	half := filepath.Join(dir, "half.pem")
	write(t, half, append(bytes.Clone(ca.pem), "-----BEGIN CERTIFICATE-----\nMTIzNA==\n-----END CERTIFICATE-----\n"...))
	for what, test := range map[string]struct {
		cfg  certs.Config
		want string
	}{
		"no such certificate":         {certs.Config{Cert: filepath.Join(dir, "absent"), Key: key}, "absent"},
		"a key for a certificate":     {certs.Config{Cert: key, Key: key}, key},
		"a key as authorities":        {certs.Config{Cert: cert, Key: key, ClientCA: key}, "PRIVATE KEY"},
		"authorities, one broken":     {certs.Config{Cert: cert, Key: key, ClientCA: half}, "certificate 2"},
		"authorities that aren't any": {certs.Config{Cert: cert, Key: key, ClientCA: "/dev/null"}, "no certificate"},
	} {
		test.cfg.Log = slog.New(slog.DiscardHandler)
		if _, err := certs.New(test.cfg); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want that it names %s", what, err, test.want)
		}
	}
}

// An authority that has been away for long is said to be, while there is still time.
func TestACertificateThatIsNotRenewedIsLogged(t *testing.T) {
	t.Parallel()
	const domain = "images.example.test"
	for name, test := range map[string]struct {
		age    time.Duration // it has an hour left
		line   string
		others string
	}{
		"near its end":  {23 * time.Hour, "could not be renewed", "there is a certificate"},
		"far from that": {time.Hour, "there is a certificate", "could not be renewed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, log := t.TempDir(), &logged{}
			_, key, text := sign(t, &x509.Certificate{DNSNames: []string{domain}, NotBefore: time.Now().Add(-test.age)}, newAuthority(t, "ca"))
			der, err := x509.MarshalECPrivateKey(key)
			if err != nil {
				t.Fatal(err)
			}
			// As autocert keeps it.
			write(t, filepath.Join(dir, domain), append(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), text...))
			a, err := certs.NewACME(certs.ACMEConfig{Domains: []string{domain}, Directory: "https://127.0.0.1:1/", CacheDir: dir, Log: log.logger()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = a.Run(ctx)
			}()
			for deadline := time.Now().Add(30 * time.Second); log.count(test.line) == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			}
			cancel()
			<-done
			if log.count(test.line) != 1 || log.count(test.others) != 0 {
				t.Errorf("the log says:\n%s", log.text.String())
			}
		})
	}
}

func TestNamesThatNoAuthorityCertifiesAreRefused(t *testing.T) {
	t.Parallel()
	for domain, want := range map[string]bool{"images.example.org": true, "bücher.example": true, "localhost": false, "": false, "*.example.org": false,
		"192.0.2.1": false, "[::1]": false, "images.example.org:443": false, "https://images.example.org": false, "a..b": false} {
		if err := certs.CheckDomains([]string{domain}); (err == nil) != want {
			t.Errorf("%q: %v", domain, err)
		}
	}
	for directory, want := range map[string]bool{certs.LetsEncrypt: true, "http://ca.example/dir": false, "ca.example": false, "https://": false} {
		if err := certs.CheckDirectory(directory); (err == nil) != want {
			t.Errorf("%q: %v", directory, err)
		}
	}
}
