// Package oidctest is an OpenID Connect issuer for tests: discovery and keys over TLS, with real RSA and ECDSA keys
// that can be rotated, and tokens of any content. Only tests import it; it knows nothing of imgsrv.
package oidctest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Key is one key of an issuer.
type Key struct {
	ID        string // "" for one without a name
	Algorithm jose.SignatureAlgorithm
	Private   crypto.Signer
}

// RSA makes a key for RS256.
func RSA(t testing.TB, id string) Key {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return Key{id, jose.RS256, key}
}

// ECDSA makes a key for ES256.
func ECDSA(t testing.TB, id string) Key {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return Key{id, jose.ES256, key}
}

// Sign makes a token of any payload.
func (s Key) Sign(t testing.TB, payload []byte) string {
	t.Helper()
	options := &jose.SignerOptions{}
	if s.ID != "" {
		options = options.WithHeader("kid", s.ID)
	}
	with, err := jose.NewSigner(jose.SigningKey{Algorithm: s.Algorithm, Key: s.Private}, options)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := with.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Issuer is an OIDC server with discovery and keys, over TLS with a certificate of its own.
type Issuer struct {
	URL    string
	CAFile string // PEM file of its certificate
	Close  func() // ends it early

	// Set changes these while the issuer runs.
	Keys     []any          // members of the JWK set
	Document map[string]any // instead of and beside issuer and jwks_uri
	Down     bool           // it answers 503
	Moved    string         // where /moved leads

	mu    sync.Mutex
	asked map[string]int // requests, by path
}

// New starts an issuer that ends with the test.
func New(t testing.TB, keys ...Key) *Issuer {
	t.Helper()
	i := &Issuer{asked: map[string]int{}, Document: map[string]any{}}
	i.Rotate(keys...)
	server := httptest.NewTLSServer(i)
	i.URL, i.Close = server.URL, server.Close
	t.Cleanup(server.Close)
	i.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(i.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

// ServeHTTP answers discovery, keys and /moved.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked[r.URL.Path]++
	if i.Down {
		http.Error(w, "the issuer is out of order", http.StatusServiceUnavailable)
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		document := map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256", "none", "HS256"}}
		maps.Copy(document, i.Document)
		_ = json.NewEncoder(w).Encode(document)
	case "/keys":
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": i.Keys})
	case "/moved":
		http.Redirect(w, r, i.Moved, http.StatusFound)
	default:
		http.NotFound(w, r)
	}
}

// Rotate puts other keys in the place of those that the issuer has.
func (i *Issuer) Rotate(keys ...Key) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.Keys = nil
	for _, k := range keys {
		i.Keys = append(i.Keys, jose.JSONWebKey{Key: k.Private.Public(), KeyID: k.ID, Algorithm: string(k.Algorithm), Use: "sig"})
	}
}

// Set changes what the issuer is while it runs.
func (i *Issuer) Set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

// Requests is how often a path was asked for.
func (i *Issuer) Requests(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

// Claims are the claims of a good token, as GitHub's are, with changes; a nil value leaves a claim out.
func (i *Issuer) Claims(now time.Time, changes map[string]any) map[string]any {
	claims := map[string]any{
		"iss": i.URL, "aud": "https://images.example.org", "sub": "repo:acme/images:ref:refs/heads/main", "repository": "acme/images", "ref": "refs/heads/main",
		"iat": now.Unix(), "nbf": now.Add(-5 * time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": fmt.Sprint(time.Now().UnixNano()),
	}
	for name, value := range changes {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	return claims
}

// JSON encodes.
func JSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
