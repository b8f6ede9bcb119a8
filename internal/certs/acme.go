package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// LetsEncrypt is the directory of the authority that is asked where no other is named.
const LetsEncrypt = autocert.DefaultACMEDirectory

// ProtocolACME is the ALPN protocol that an authority's TLS-ALPN-01 check speaks (RFC 8737).
const ProtocolACME = acme.ALPNProto

// ACMEConfig says which certificates to get from whom (RFC 8555).
type ACMEConfig struct {
	Domains   []string // as CheckDomains takes them; a certificate for each
	Email     string   // optional, where the authority may write to
	Directory string   // URL; "" is LetsEncrypt
	CAFile    string   // optional: PEM, what the directory's own certificate is checked with instead of the system's authorities
	CacheDir  string   // keys, certificates and the account; made with mode 0700
	UserAgent string
	Log       *slog.Logger
}

// ACME gets certificates, keeps them and renews them in time.
type ACME struct {
	manager *autocert.Manager
	domains []string
	log     *slog.Logger
	cut     context.CancelFunc // ends the requests to the authority

	mu      sync.Mutex
	failing map[string]bool      // by domain: the last try failed, and was logged
	until   map[string]time.Time // the end of each domain\'s certificate
}

// CheckDomains refuses what no authority would certify by a check of the server: each has to be a host name of several labels, neither
// a wildcard nor an address.
func CheckDomains(domains []string) error {
	for _, domain := range domains {
		switch {
		case net.ParseIP(strings.Trim(domain, "[]")) != nil:
			return fmt.Errorf("%s is an address; certificates are for names", domain)
		case strings.Contains(domain, "*"):
			return fmt.Errorf("%s is a wildcard, which can't be had by a check of this server; name each host", domain)
		case !strings.Contains(strings.Trim(domain, "."), "."), strings.ContainsAny(domain, "/:@?# \t"), strings.Contains(domain, ".."):
			return fmt.Errorf("%q is no full host name, such as images.example.org", domain)
		}
	}
	return nil
}

// CheckDirectory refuses what is no URL of an ACME directory.
func CheckDirectory(directory string) error {
	if u, err := url.Parse(directory); err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is no URL of an ACME directory: https://HOST/PATH", directory)
	}
	return nil
}

// NewACME prepares the folder and the client. Nobody is asked for anything before Run or a handshake.
func NewACME(cfg ACMEConfig) (*ACME, error) {
	if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of the ACME certificates: %w", err)
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if cfg.CAFile != "" {
		text, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the authority of the ACME directory: %w", err)
		}
		if transport.TLSClientConfig.RootCAs, err = Pool(text); err != nil {
			return nil, fmt.Errorf("use the authority of the ACME directory in %s: %w", cfg.CAFile, err)
		}
	}
	ctx, cut := context.WithCancel(context.Background()) //nolint:gosec // Run calls it, at its end
	ours := autocert.HostWhitelist(cfg.Domains...)
	policy := func(ctx context.Context, host string) error {
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name // of an HTTP-01 check on another port than 80, before a proxy
		}
		return ours(ctx, host)
	}
	manager := &autocert.Manager{Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(cfg.CacheDir), HostPolicy: policy, Email: cfg.Email,
		Client: &acme.Client{DirectoryURL: cfg.Directory, UserAgent: cfg.UserAgent, HTTPClient: &http.Client{Transport: endingTransport{ctx, transport}, Timeout: 30 * time.Second}}}
	return &ACME{manager: manager, domains: cfg.Domains, log: cfg.Log, cut: cut, failing: map[string]bool{}, until: map[string]time.Time{}}, nil
}

// lookInterval is how often Run sees to the certificates. The renewals have timers of their own.
const lookInterval = 12 * time.Hour

// Run gets the certificate of each domain, so that the first client needn't wait and an operator sees at once what is wrong. Until
// ctx ends it then looks from time to time whether they are renewed; at the end it cuts what is being asked of the authority. The
// listeners have to be open before.
func (a *ACME) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, a.cut)
	defer stop()
	ticker := time.NewTicker(lookInterval)
	defer ticker.Stop()
	for first := true; ; first = false {
		for _, domain := range a.domains {
			a.see(ctx, domain, first)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// see gets the certificate of a domain, from the authority where there is none yet.
func (a *ACME) see(ctx context.Context, domain string, first bool) {
	if ctx.Err() != nil {
		return
	}
	// What a usual client says: the certificate it gets is the one of an elliptic curve.
	hello := &tls.ClientHelloInfo{ServerName: domain, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}}
	cert, err := a.manager.GetCertificate(hello)
	if ctx.Err() != nil {
		return
	}
	if a.note(domain, cert, err); err != nil {
		return
	}
	leaf := cert.Leaf
	attrs := []any{"domain", domain, "until", leaf.NotAfter.UTC().Format(time.RFC3339)}
	switch lifetime := leaf.NotAfter.Sub(leaf.NotBefore); {
	case time.Until(leaf.NotAfter) < lifetime/6: // renewals begin at a third, or 30 days
		a.log.Error("the certificate by ACME ends soon, and could not be renewed so far", attrs...)
	case first:
		a.log.Info("there is a certificate by ACME", attrs...)
	}
}

// Certificate is for Config. A handshake for a name that has no certificate yet waits until there is one; other names than the
// domains are refused.
func (a *ACME) Certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert, err := a.manager.GetCertificate(hello)
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == ProtocolACME {
		return cert, err // the authority's check
	}
	for _, domain := range a.domains {
		if strings.EqualFold(domain, strings.TrimSuffix(hello.ServerName, ".")) {
			a.note(domain, cert, err)
		}
	}
	return cert, err
}

// Until tells when the certificate of each domain ends that there is one for, as of the last look or handshake.
func (a *ACME) Until() map[string]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.until)
}

// HTTPHandler answers HTTP-01 checks, and passes all else on to next. Without it only TLS-ALPN-01 is tried.
func (a *ACME) HTTPHandler(next http.Handler) http.Handler { return a.manager.HTTPHandler(next) }

// note logs the first failure for a domain and its end, not each handshake between them.
func (a *ACME) note(domain string, cert *tls.Certificate, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil && cert.Leaf != nil {
		a.until[domain] = cert.Leaf.NotAfter
	}
	switch failed := a.failing[domain]; {
	case err != nil && !failed:
		a.log.Error("no certificate by ACME; the next client of this domain, a minute from now or later, makes another try", "domain", domain, "error", err)
	case err == nil && failed:
		a.log.Info("the certificate by ACME is there now", "domain", domain)
	}
	a.failing[domain] = err != nil
}

// endingTransport ends requests with a context: autocert gives its own, of five minutes, to each.
type endingTransport struct {
	ending context.Context
	next   http.RoundTripper
}

func (t endingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.ending.Err() != nil {
		return nil, errors.New("the server is stopping")
	}
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(t.ending, cancel)
	resp, err := t.next.RoundTrip(r.WithContext(ctx))
	if err != nil {
		stop()
		cancel()
		return nil, err
	}
	resp.Body = &endingBody{resp.Body, func() { stop(); cancel() }}
	return resp, nil
}

// endingBody lets the request's context go with the body.
type endingBody struct {
	io.ReadCloser
	done func()
}

func (b *endingBody) Close() error {
	defer b.done()
	return b.ReadCloser.Close()
}
