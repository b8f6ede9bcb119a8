package oidc_test

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

// signer is one key of an issuer.
type signer struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   crypto.Signer
}

func rsaKey(t *testing.T, id string) signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, jose.RS256, key}
}

func ecKey(t *testing.T, id string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, jose.ES256, key}
}

// sign makes a token of any payload.
func (s signer) sign(t *testing.T, payload []byte) string {
	t.Helper()
	options := &jose.SignerOptions{}
	if s.id != "" {
		options = options.WithHeader("kid", s.id)
	}
	with, err := jose.NewSigner(jose.SigningKey{Algorithm: s.algorithm, Key: s.private}, options)
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

// issuer is an OIDC server with discovery and keys, over TLS with a certificate of its own.
type issuer struct {
	url    string
	caFile string

	mu       sync.Mutex
	keys     []any          // members of the JWK set
	document map[string]any // beside issuer and jwks_uri
	down     bool
	asked    map[string]int // requests, by path
	close    func()
}

func newIssuer(t *testing.T, keys ...signer) *issuer {
	t.Helper()
	i := &issuer{asked: map[string]int{}, document: map[string]any{}}
	i.rotate(keys...)
	server := httptest.NewTLSServer(i)
	i.url, i.close = server.URL, server.Close
	t.Cleanup(server.Close)
	i.caFile = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(i.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked[r.URL.Path]++
	if i.down {
		http.Error(w, "the issuer is out of order", http.StatusServiceUnavailable)
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		document := map[string]any{"issuer": i.url, "jwks_uri": i.url + "/keys", "id_token_signing_alg_values_supported": []string{"RS256", "none", "HS256"}}
		maps.Copy(document, i.document)
		_ = json.NewEncoder(w).Encode(document)
	case "/keys":
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": i.keys})
	case "/moved":
		http.Redirect(w, r, "http://"+r.Host+"/keys", http.StatusFound)
	default:
		http.NotFound(w, r)
	}
}

// rotate puts other keys in the place of those that the issuer has.
func (i *issuer) rotate(keys ...signer) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = nil
	for _, k := range keys {
		i.keys = append(i.keys, jose.JSONWebKey{Key: k.private.Public(), KeyID: k.id, Algorithm: string(k.algorithm), Use: "sig"})
	}
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) requests(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

// said are the claims of a good token, as GitHub's are, with changes; a nil value leaves a claim out.
func (i *issuer) said(now time.Time, changes map[string]any) map[string]any {
	claims := map[string]any{
		"iss": i.url, "aud": "https://images.example.org", "sub": "repo:acme/images:ref:refs/heads/main", "repository": "acme/images", "ref": "refs/heads/main",
		"iat": now.Unix(), "nbf": now.Add(-5 * time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": fmt.Sprint(time.Now().UnixNano()),
	}
	for name, value := range changes {
		if claims[name] = value; value == nil {
			delete(claims, name)
		}
	}
	return claims
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
