// Package selfsigned makes and keeps the certificate that a server without one of its own uses. It knows
// nothing of servers.
package selfsigned

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/imgsrv/imgsrv/internal/secretfile"
)

const (
	validity = 2 * 365 * 24 * time.Hour
	renewal  = 30 * 24 * time.Hour // a certificate that ends sooner is made anew
)

// Load reads cert.pem and key.pem of a folder, or makes them for the names where they are missing, about
// to end, or lack a name. made says that clients have to trust a new certificate.
func Load(dir string, names []string, now time.Time) (cert tls.Certificate, made bool, err error) {
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	cert, err = tls.LoadX509KeyPair(certFile, keyFile)
	switch {
	case err == nil && serves(cert.Leaf, names, now):
		return cert, false, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return cert, false, fmt.Errorf("read the self-signed certificate in %s: %w: remove the folder, and a new one is made", dir, err)
	}
	certPEM, keyPEM, err := generate(names, now)
	if err != nil {
		return cert, false, fmt.Errorf("make a self-signed certificate: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // the certificate is public; the key has its own mode
		return cert, false, fmt.Errorf("keep the self-signed certificate: %w", err)
	}
	// The key first: a certificate without its key would be an error at the next start, a lone key is not. Each of the three is
	// durable before the next: a key that doesn't fit, or half a certificate, would be an error too.
	if err := os.Remove(certFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cert, false, fmt.Errorf("replace the self-signed certificate: %w", err)
	}
	if err := secretfile.Replace(keyFile, keyPEM); err != nil { // which syncs the folder, and so the removal with it
		return cert, false, fmt.Errorf("keep the self-signed certificate: %w", err)
	}
	if err := secretfile.ReplacePublic(certFile, certPEM); err != nil {
		return cert, false, fmt.Errorf("keep the self-signed certificate: %w", err)
	}
	cert, err = tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return cert, false, fmt.Errorf("use the self-signed certificate: %w", err)
	}
	return cert, true, nil
}

// Names are those that a server on this machine is asked for: localhost, the loopback addresses and the
// host's name.
func Names() []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil && host != "" && !slices.Contains(names, host) {
		names = append(names, host)
	}
	return names
}

func serves(leaf *x509.Certificate, names []string, now time.Time) bool {
	if leaf == nil || now.Before(leaf.NotBefore) || leaf.NotAfter.Sub(now) < renewal {
		return false
	}
	for _, name := range names {
		if leaf.VerifyHostname(name) != nil {
			return false
		}
	}
	return true
}

func generate(names []string, now time.Time) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "imgsrv", Organization: []string{"imgsrv self-signed"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
		// Clients are given this file as the authority to trust, and some insist that an authority says it is one.
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	return certPEM, keyPEM, nil
}
