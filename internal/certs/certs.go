// Package certs gives an HTTPS listener its certificate and the authorities of its clients, and new ones while it goes on listening:
// from files that are read again when they change, or by ACME. It knows nothing of what is served.
package certs

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Interval is how often Watch looks at the files, unless it is told otherwise.
const Interval = 10 * time.Second

// Config says where the parts come from. Either Cert and Key are set, or Certificate.
type Config struct {
	// Cert and Key are PEM files: a chain, the server's certificate first, and its private key.
	Cert, Key string
	// Certificate gives the certificate of a handshake.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Until, where Certificate is set, tells when the certificates of each name end; nil: it is not known.
	Until func() map[string]time.Time
	// ClientCA, optional, is a PEM file of authorities. A client may then show a certificate; one that isn't of these authorities
	// fails the handshake, one that is stands in (*http.Request).TLS.VerifiedChains. Who shows none is let in as nobody.
	ClientCA string
	// Protocols are offered by ALPN beside HTTP/2 and HTTP/1.1.
	Protocols []string
	Log       *slog.Logger
}

// Keeper keeps the TLS configuration of a listener up to date.
type Keeper struct {
	cfg     Config
	current atomic.Pointer[tls.Config]

	mu   sync.Mutex
	seen [sha256.Size]byte // what the files held when they were last tried, well or badly
}

// New reads the files. An error names the file that is wrong.
func New(cfg Config) (*Keeper, error) {
	k := &Keeper{cfg: cfg}
	files := k.read()
	config, err := k.parse(files)
	if err != nil {
		return nil, err
	}
	k.seen = files.sum()
	k.current.Store(config)
	return k, nil
}

// TLS is the configuration for the listener. Each handshake has the files as they were last read well.
func (k *Keeper) TLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: k.protocols(),
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.current.Load(), nil }}
}

// Until tells when the certificate ends, by the name that it is for: of one with several names, the first.
func (k *Keeper) Until() map[string]time.Time {
	config := k.current.Load()
	if len(config.Certificates) > 0 {
		return UntilOf(&config.Certificates[0])
	}
	if k.cfg.Until == nil {
		return nil
	}
	return k.cfg.Until()
}

// UntilOf is [Keeper.Until] of one certificate.
func UntilOf(cert *tls.Certificate) map[string]time.Time {
	if cert.Leaf == nil {
		return nil
	}
	name := cert.Leaf.Subject.CommonName
	if len(cert.Leaf.DNSNames) > 0 {
		name = cert.Leaf.DNSNames[0]
	}
	return map[string]time.Time{name: cert.Leaf.NotAfter}
}

// Reload reads the files again and logs what came of it. Files that can't be used change nothing. Connections that are open stay
// as they are.
func (k *Keeper) Reload() { k.check(true) }

// Watch looks at the files every so often until ctx ends, and reloads them when what they hold has changed. every is Interval
// when 0. A broken change is logged once, not at each look.
func (k *Keeper) Watch(ctx context.Context, every time.Duration) error {
	if every == 0 {
		every = Interval
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			k.check(false)
		}
	}
}

// check takes the files on if they are not what was last tried, or in any case.
func (k *Keeper) check(anyway bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	files := k.read()
	sum := files.sum()
	if sum == k.seen && !anyway {
		return
	}
	k.seen = sum
	config, err := k.parse(files)
	if err != nil {
		k.cfg.Log.Error("the files for HTTPS can't be used; it goes on with those it has", "error", err)
		return
	}
	k.current.Store(config)
	attrs := []any{}
	if len(config.Certificates) > 0 {
		leaf := config.Certificates[0].Leaf
		attrs = append(attrs, "names", leaf.DNSNames, "until", leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	k.cfg.Log.Info("the files for HTTPS were read again", attrs...)
}

// contents is what the files hold, or why they can't be read.
type contents [3]struct {
	name string
	data []byte
	err  error
}

// read reads whole files: they are small, and their times and inodes tell less than what is in them.
func (k *Keeper) read() contents {
	var c contents
	for i, name := range []string{k.cfg.Cert, k.cfg.Key, k.cfg.ClientCA} {
		if name == "" {
			continue
		}
		c[i].name = name
		c[i].data, c[i].err = os.ReadFile(name)
	}
	return c
}

func (c contents) sum() [sha256.Size]byte {
	h := sha256.New()
	for _, file := range c {
		part := sha256.Sum256(file.data)
		h.Write(part[:])
		if file.err != nil {
			h.Write([]byte(file.err.Error()))
		}
		h.Write([]byte{0})
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (k *Keeper) protocols() []string { return append([]string{"h2", "http/1.1"}, k.cfg.Protocols...) }

func (k *Keeper) parse(c contents) (*tls.Config, error) {
	for _, file := range c {
		if file.err != nil {
			return nil, fmt.Errorf("read a file for HTTPS: %w", file.err)
		}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: k.protocols(), GetCertificate: k.cfg.Certificate}
	if cert, key := c[0], c[1]; cert.name != "" {
		pair, err := tls.X509KeyPair(cert.data, key.data)
		if err != nil {
			return nil, fmt.Errorf("use the certificate %s with the key %s: %w", cert.name, key.name, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	if ca := c[2]; ca.name != "" {
		pool, err := Pool(ca.data)
		if err != nil {
			return nil, fmt.Errorf("use the clients' authorities in %s: %w", ca.name, err)
		}
		config.ClientCAs, config.ClientAuth = pool, tls.VerifyClientCertIfGiven
	}
	return config, nil
}

// Pool makes a pool of the certificates in PEM. Unlike x509's own way it takes all or none, and there has to be one.
func Pool(text []byte) (*x509.CertPool, error) {
	pool, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it holds a %s, and certificates are wanted", block.Type)
		}
		n++
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", n, err)
		}
		pool.AddCert(cert)
	}
	if n == 0 {
		return nil, errors.New("it holds no certificate in PEM")
	}
	return pool, nil
}
