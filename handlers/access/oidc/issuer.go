package oidc

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/imgsrv/imgsrv/events"
)

const (
	refreshPause = 10 * time.Second // between requests for the keys of one issuer
	fetchTimeout = 10 * time.Second // of one such request, discovery and keys together
	keysAreFresh = time.Hour        // then they are asked for again
	keysAreUsed  = 24 * time.Hour   // where the issuer doesn't answer
	minRSABits   = 2048
)

// issuer is one whose tokens are trusted, and its keys as of the last time they were asked for.
type issuer struct {
	url    string
	client *http.Client
	pause  time.Duration
	now    func() time.Time
	log    *slog.Logger

	turn chan struct{} // held by the one request that is made

	mu      sync.Mutex
	keys    []jose.JSONWebKey
	fetched time.Time // when keys came
	tried   time.Time // when they were asked for last
	failed  bool      // and didn't come
}

// candidates are the keys that may have signed a token.
type candidates struct {
	keys    []crypto.PublicKey
	fetched time.Time
}

func newIssuer(url string, client *http.Client, pause time.Duration, now func() time.Time, log *slog.Logger) *issuer {
	return &issuer{url: url, client: client, pause: pause, now: now, log: log, turn: make(chan struct{}, 1)}
}

// find gives the keys that may have signed a token, of a set that came after newerThan. The issuer is asked only where
// what is known doesn't do, and not again within the pause: who makes tokens up can't make us ask more often.
func (i *issuer) find(ctx context.Context, token parsed, newerThan time.Time) (candidates, error) {
	known := i.known(token)
	if len(known.keys) > 0 && known.fetched.After(newerThan) && i.age(known) < keysAreFresh {
		return known, nil
	}
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return candidates{}, ctx.Err()
	}
	if now := i.known(token); now.fetched.After(known.fetched) && len(now.keys) > 0 {
		return now, nil // somebody else has asked meanwhile
	}
	wait, failed := i.untilNext()
	asked := wait == 0
	if asked {
		failed, wait = !i.refresh(ctx), i.pause
	}
	known = i.known(token)
	usable := len(known.keys) > 0 && i.age(known) < keysAreUsed
	switch {
	case usable && known.fetched.After(newerThan):
		return known, nil
	case failed:
		return candidates{}, unavailable(wait, "the token's issuer can't be asked for its keys now: try again")
	case asked:
		return candidates{}, refused(errors.New("the token is signed with a key (kid) that its issuer doesn't have"))
	}
	// The key may be new. 401 would be the end of an honest job.
	return candidates{}, unavailable(wait, "the token is signed with a key that its issuer didn't have a moment ago: try again")
}

// known are the candidates among the keys that have come.
func (i *issuer) known(token parsed) candidates {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := candidates{fetched: i.fetched}
	for _, k := range i.keys {
		if (token.keyID == "" || k.KeyID == token.keyID) && (k.Algorithm == "" || k.Algorithm == string(token.algorithm)) {
			out.keys = append(out.keys, k.Key)
		}
	}
	return out
}

func (i *issuer) age(c candidates) time.Duration { return i.now().Sub(c.fetched) }

// untilNext is how long to wait before the issuer may be asked again, and whether it failed last time.
func (i *issuer) untilNext() (wait time.Duration, failed bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.tried.IsZero() {
		return 0, false
	}
	return max(0, i.pause-i.now().Sub(i.tried)), i.failed
}

// refresh asks the issuer for its keys and keeps them; ok is false where they didn't come. It goes on to its end if the
// request that has led to it goes away: others wait for the same keys.
func (i *issuer) refresh(ctx context.Context) (ok bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
	defer cancel()
	keys, err := i.fetch(ctx)
	i.mu.Lock()
	defer i.mu.Unlock()
	i.tried, i.failed = i.now(), err != nil
	if err != nil {
		i.log.WarnContext(ctx, "the keys of an OIDC issuer didn't come", "issuer", i.url, "error", clip(err))
		return false
	}
	i.keys, i.fetched = keys, i.tried
	return true
}

// fetch reads the discovery document and the keys that it leads to (OpenID Connect Discovery 1.0).
func (i *issuer) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	provider, err := oidc.NewProvider(oidc.ClientContext(ctx, i.client), i.url)
	if err != nil {
		return nil, fmt.Errorf("read the discovery document: %w", err)
	}
	var document struct {
		JWKS string `json:"jwks_uri"`
	}
	if err := provider.Claims(&document); err != nil {
		return nil, fmt.Errorf("read the discovery document: %w", err)
	}
	at, err := url.Parse(document.JWKS)
	if err != nil || !mayFollow(i.url, at) {
		return nil, errors.New("the discovery document's jwks_uri is no https URL")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	answer, err := i.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	defer answer.Body.Close() //nolint:errcheck // only read
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read the keys: %s answers %s", at.Redacted(), answer.Status)
	}
	return decodeKeys(body)
}

// decodeKeys takes the keys that may sign tokens from a JWK set (RFC 7517) and leaves out what it doesn't know, as
// section 5 asks for; also keys for encryption, secrets (kty oct), and RSA keys that are too short.
func decodeKeys(data []byte) ([]jose.JSONWebKey, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("decode the keys: %w", err)
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := json.Unmarshal(raw, &k); err != nil || k.Use != "" && k.Use != "sig" {
			continue
		}
		switch public := k.Key.(type) {
		case *rsa.PublicKey:
			if public.N.BitLen() < minRSABits {
				continue
			}
		case *ecdsa.PublicKey, ed25519.PublicKey:
		default:
			continue
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("the issuer has no key that could sign tokens")
	}
	return keys, nil
}

// mayFollow says whether an issuer may lead to a URL: by https, or, for one on this machine, to this machine.
func mayFollow(issuer string, to *url.URL) bool {
	if to.Host == "" || to.User != nil {
		return false
	}
	from, err := url.Parse(issuer)
	return to.Scheme == "https" || err == nil && to.Scheme == "http" && from.Scheme == "http" && events.IsLoopbackHost(from.Hostname()) && events.IsLoopbackHost(to.Hostname())
}

// clip keeps what an issuer says from filling the log.
func clip(err error) string {
	const most = 400
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}
