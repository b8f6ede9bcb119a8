package oidc

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/access"
	"github.com/imgsrv/imgsrv/handlers/problem"
)

// Config is what a verifier works with.
type Config struct {
	// Rules gives those that there are now.
	Rules  func() []events.Trust
	Logger *slog.Logger
	// CAFile is a PEM file of certificates to trust beside the system's; "" for none.
	CAFile string
	// Pause is between two requests for one issuer's keys, however many tokens come; 0 means 10 s.
	Pause time.Duration
	Clock func() time.Time // nil: time.Now
}

// Verifier checks tokens of OIDC issuers. It is safe for concurrent use. Issuers are asked for their keys when the
// first token of theirs comes, and then only if a token names a key that isn't known, or an hour has passed.
type Verifier struct {
	rules  func() []events.Trust
	log    *slog.Logger
	client *http.Client
	pause  time.Duration
	now    func() time.Time
	cache  cache

	mu      sync.Mutex
	issuers map[string]*issuer // by URL
}

// Identity is who has brought a token.
type Identity struct {
	Principal access.Principal
	Rules     []events.Trust // those that the token satisfies, the oldest first; at least one
	Expires   time.Time      // of the token
	subject   string
}

// Name is the principal's where one of the rules counts.
func (i Identity) Name(rule events.Trust) string { return "oidc:" + rule.Name + ":" + i.subject }

// New makes a verifier. The error says what is wrong with the CA file. Close is to be called.
func New(cfg Config) (*Verifier, error) {
	client, err := newClient(cfg.CAFile)
	if err != nil {
		return nil, err
	}
	v := &Verifier{rules: cfg.Rules, log: cfg.Logger, client: client, pause: cfg.Pause, now: cfg.Clock, issuers: map[string]*issuer{}}
	if v.pause == 0 {
		v.pause = refreshPause
	}
	if v.now == nil {
		v.now = time.Now
	}
	return v, nil
}

// Close lets go of idle connections.
func (v *Verifier) Close() error {
	v.client.CloseIdleConnections()
	return nil
}

// Authenticate is [Verifier.Verify] for who needs the principal only.
func (v *Verifier) Authenticate(ctx context.Context, raw string) (access.Principal, error) {
	who, err := v.Verify(ctx, raw)
	return who.Principal, err
}

// Verify checks a token and says who brings it: a principal with the roles of all rules that the token satisfies.
// A token that isn't good is a problem of status 401 that says why, one that can't be checked now of 503 with
// Retry-After. What the rules are is told to nobody.
func (v *Verifier) Verify(ctx context.Context, raw string) (Identity, error) {
	token, err := parse(raw)
	if err != nil {
		return Identity{}, refused(err)
	}
	from := token.claims.text("iss")
	rules := slices.DeleteFunc(slices.Clone(v.rules()), func(t events.Trust) bool { return t.Removed || t.Issuer != from })
	if len(rules) == 0 {
		return Identity{}, refused(errors.New("the token comes from an issuer (iss) that is not trusted here"))
	}
	// Whoever brings an expired token needn't make us ask the issuer. All else that rules say has to wait for the
	// signature, or anybody could find them out by trying.
	expires, err := token.claims.checkTimes(v.now())
	if err != nil {
		return Identity{}, refused(err)
	}
	key := sha256.Sum256([]byte(raw))
	if !v.cache.has(key, v.now()) {
		if err := v.checkSignature(ctx, from, raw, token); err != nil {
			return Identity{}, err
		}
	}
	meant := slices.DeleteFunc(rules, func(t events.Trust) bool { return !slices.Contains(token.claims.audiences(), t.Audience) })
	if len(meant) == 0 {
		return Identity{}, refused(errors.New("the token is meant for another audience (aud) than this server's"))
	}
	meant = slices.DeleteFunc(meant, func(t events.Trust) bool { return !token.claims.satisfy(t) })
	if len(meant) == 0 {
		return Identity{}, refused(errors.New("the token is good, but no trust rule is satisfied by its claims"))
	}
	v.cache.put(key, v.now(), expires.Add(leeway))
	slices.SortFunc(meant, func(a, b events.Trust) int { return a.AddedAt.Compare(b.AddedAt) })
	var grants []events.Grant
	for _, rule := range meant {
		for _, g := range rule.Grants {
			if !slices.Contains(grants, g) {
				grants = append(grants, g)
			}
		}
	}
	who := Identity{Rules: slices.Clone(meant), Expires: expires, subject: token.claims.subject()}
	who.Principal = access.NewPrincipal(who.Name(meant[0]), grants...).While(func() bool { return v.now().Before(expires.Add(leeway)) && v.still(meant) })
	return who, nil
}

// still says whether all of some rules are there.
func (v *Verifier) still(rules []events.Trust) bool {
	now := v.rules()
	return !slices.ContainsFunc(rules, func(t events.Trust) bool {
		return !slices.ContainsFunc(now, func(there events.Trust) bool { return there.ID == t.ID && !there.Removed })
	})
}

// checkSignature says whether the issuer has signed the token with one of its keys.
func (v *Verifier) checkSignature(ctx context.Context, from, raw string, token parsed) error {
	at := v.issuer(from)
	keys, err := at.find(ctx, token, time.Time{})
	if err != nil {
		return err
	}
	err = v.verify(ctx, from, raw, keys)
	if err != nil && token.keyID == "" {
		// Without a name one can't see that the key is new.
		if keys, err = at.find(ctx, token, keys.fetched); err != nil {
			return err
		}
		err = v.verify(ctx, from, raw, keys)
	}
	if err != nil {
		v.log.DebugContext(ctx, "OIDC token refused", "issuer", from, "error", clip(err))
		return refused(errors.New("the token's signature is not its issuer's"))
	}
	return nil
}

func (v *Verifier) verify(ctx context.Context, from, raw string, keys candidates) error {
	var names []string
	for _, a := range algorithms {
		names = append(names, string(a))
	}
	// Audience and times are looked at by ourselves: go-oidc knows one audience only, and other leeways.
	config := &oidc.Config{SupportedSigningAlgs: names, SkipClientIDCheck: true, SkipExpiryCheck: true}
	_, err := oidc.NewVerifier(from, &oidc.StaticKeySet{PublicKeys: keys.keys}, config).Verify(ctx, raw)
	return err
}

// issuer is the one of a URL; it has a rule.
func (v *Verifier) issuer(url string) *issuer {
	v.mu.Lock()
	defer v.mu.Unlock()
	if at := v.issuers[url]; at != nil {
		return at
	}
	for known := range v.issuers { // those without a rule go
		if !slices.ContainsFunc(v.rules(), func(t events.Trust) bool { return t.Issuer == known }) {
			delete(v.issuers, known)
		}
	}
	at := newIssuer(url, v.client, v.pause, v.now, v.log)
	v.issuers[url] = at
	return at
}

func refused(err error) error { return problem.New(problem.CodeUnauthorized, err.Error()) }

// unavailable is a token that can't be checked for a while.
func unavailable(wait time.Duration, format string, args ...any) error {
	return problem.New(problem.CodeUnavailable, fmt.Sprintf(format, args...)).After(wait)
}

// cache knows tokens whose signature was good a short time ago and that satisfied a rule then. What they may is
// looked up anew each time.
type cache struct {
	mu    sync.Mutex
	until map[[sha256.Size]byte]time.Time
}

const (
	maxCached = 4096
	// cacheFor bounds how long a key that the issuer has withdrawn is still of use to a token that was seen before.
	cacheFor = 10 * time.Minute
)

func (c *cache) has(key [sha256.Size]byte, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Before(c.until[key])
}

// put remembers a token, unless it is remembered, until it expires and no longer than cacheFor.
func (c *cache) put(key [sha256.Size]byte, now, expires time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.until[key]) {
		return
	}
	if c.until == nil || len(c.until) >= maxCached {
		kept := map[[sha256.Size]byte]time.Time{}
		for k, until := range c.until {
			// Half of it at most: the next token mustn't cost this walk again.
			if now.Before(until) && len(kept) < maxCached/2 {
				kept[k] = until
			}
		}
		c.until = kept
	}
	until := now.Add(cacheFor)
	if expires.Before(until) {
		until = expires
	}
	c.until[key] = until
}
