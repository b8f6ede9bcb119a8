package oidc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"github.com/imgsrv/imgsrv/events"
)

const (
	// maxTokenBytes bounds what is looked at. GitHub's tokens have two KiB, Kubernetes's less.
	maxTokenBytes = 16 << 10
	// leeway is how far an issuer's clock may be from ours.
	leeway = 30 * time.Second
	// maxSubjectBytes is OpenID Connect's own bound (Core 1.0, section 2, sub).
	maxSubjectBytes = 255
)

// algorithms are those with which only the issuer can sign, and everybody can check. With HS256 and the like whoever
// knows the key can sign, and the key at hand would be the issuer's public one (RFC 8725, 2.1 and 3.1).
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512, jose.EdDSA}

// claims are what a token says, by the claims' exact names; numbers are [json.Number].
type claims map[string]any

// parsed is a token whose signature nobody has checked yet.
type parsed struct {
	keyID     string // "" where the token names none
	algorithm jose.SignatureAlgorithm
	claims    claims
}

// parse takes a token apart. The error is for its bearer.
func parse(raw string) (parsed, error) {
	if strings.HasPrefix(raw, "imgsrv_") {
		return parsed{}, errors.New("this takes a token of an OIDC issuer; one of imgsrv's own can't be exchanged")
	}
	if len(raw) > maxTokenBytes {
		return parsed{}, fmt.Errorf("the token is longer than %d bytes", maxTokenBytes)
	}
	jws, err := jose.ParseSignedCompact(raw, algorithms)
	if err != nil || len(jws.Signatures) != 1 {
		return parsed{}, errors.New("the token is neither one of this server's nor a JSON Web Token signed with RS256, ES256, PS256, EdDSA or a longer one of these")
	}
	header := jws.Signatures[0].Protected
	said, err := decodeClaims(jws.UnsafePayloadWithoutVerification())
	if err != nil {
		return parsed{}, errors.New("the token's payload is no JSON object")
	}
	return parsed{keyID: header.KeyID, algorithm: jose.SignatureAlgorithm(header.Algorithm), claims: said}, nil
}

func decodeClaims(payload []byte) (claims, error) {
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.UseNumber()
	var said claims
	if err := decoder.Decode(&said); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	if said == nil {
		return nil, errors.New("it is null")
	}
	return said, nil
}

// text is a claim that is a string; "" for any other.
func (c claims) text(name string) string {
	s, _ := c[name].(string)
	return s
}

// values are what a claim says, as texts: a string, a truth value or a number as it is written, or each such
// element of an array.
func (c claims) values(name string) []string {
	list, isList := c[name].([]any)
	if !isList {
		list = []any{c[name]}
	}
	var out []string
	for _, v := range list {
		switch v := v.(type) {
		case string:
			out = append(out, v)
		case bool, json.Number:
			out = append(out, fmt.Sprint(v))
		}
	}
	return out
}

// audiences are whom the token is meant for.
func (c claims) audiences() []string { return c.values("aud") }

// time reads a claim that is a time (RFC 7519, NumericDate); ok is false for none, and for what is no time.
func (c claims) time(name string) (at time.Time, ok bool) {
	number, isNumber := c[name].(json.Number)
	if !isNumber {
		return time.Time{}, false
	}
	seconds, err := number.Float64()
	if err != nil || math.Abs(seconds) > 1<<40 {
		return time.Time{}, false
	}
	return time.Unix(int64(seconds), 0), true
}

// checkTimes refuses a token outside of its time, and one that never ends.
func (c claims) checkTimes(now time.Time) (expires time.Time, err error) {
	expires, ok := c.time("exp")
	if !ok {
		return expires, errors.New("the token has no time at which it expires (exp)")
	}
	if !now.Before(expires.Add(leeway)) {
		return expires, fmt.Errorf("the token expired at %s: ask its issuer for a new one", expires.UTC().Format(time.RFC3339))
	}
	if _, said := c["nbf"]; said {
		begins, ok := c.time("nbf")
		if !ok || begins.After(now.Add(leeway)) {
			return expires, errors.New("the token isn't valid yet (nbf): are the clocks right?")
		}
	}
	return expires, nil
}

// satisfy says whether the claims meet each condition of a rule: one of a claim's values matches.
func (c claims) satisfy(rule events.Trust) bool {
	for name, pattern := range rule.Claims {
		met := false
		for _, value := range c.values(name) {
			met = met || events.MatchStars(pattern, value)
		}
		if !met {
			return false
		}
	}
	return len(rule.Claims) > 0
}

// subject is whom the token is about, fit for logs and terminals.
func (c claims) subject() string {
	s := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || unicode.IsSpace(r) || r == utf8.RuneError {
			return '_'
		}
		return r
	}, c.text("sub"))
	if len(s) <= maxSubjectBytes {
		return s
	}
	cut := maxSubjectBytes
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
