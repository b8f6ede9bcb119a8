package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// authorize adds the token to requests for the server itself. Go's own rule for redirects compares host names without ports
// and schemes, which would hand the token to whatever else runs on the server's host.
type authorize struct {
	next  http.RoundTripper
	base  *url.URL
	token string // "" with a file, or for none
	file  string // "" for none

	mu        sync.Mutex
	exchange  *exchange // what the file's token was exchanged for; nil without
	exchanged string    // the request's body
}

// exchange is a token of the server's own that came for the one in the file.
type exchange struct {
	ExchangedToken
	renewAt, endsAt time.Time // by this machine's clock
}

// ExchangedToken is a token of the server's own that came for an OIDC token.
type ExchangedToken struct {
	ID        string    `json:"id"`
	Token     string    `json:"token"`
	Principal string    `json:"principal"`
	IssuedAt  time.Time `json:"issued_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

// exchangePath is where OIDC tokens are exchanged.
const exchangePath = "/api/tokens/exchange"

// exchangePause is between attempts to renew a token that is still good.
const exchangePause = 30 * time.Second

// TokenFileError says that there is no token in the file that should hold one.
type TokenFileError struct{ Err error }

func (e *TokenFileError) Error() string { return fmt.Sprintf("read the OIDC token: %v", e.Err) }

func (e *TokenFileError) Unwrap() error { return e.Err }

// ReadTokenFile reads the token in a file; the error is a [*TokenFileError].
func ReadTokenFile(path string) (string, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the user's own choice
	if err != nil {
		return "", &TokenFileError{err}
	}
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return "", &TokenFileError{fmt.Errorf("%s is empty", path)}
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", &TokenFileError{fmt.Errorf("%s holds more than a token", path)}
	}
	return token, nil
}

// Exchange trades the OIDC token in the file of the options for a token of the server's own, which outlives it, and
// shows that from now on: for transfers that take longer than a CI platform's token lives. It is renewed, while the file has
// a good token, before it ends. Image, "" for none, is what is going to be published: of several trust rules that let the
// token in, the one that covers it counts. Without a file nothing is done.
func (c *Client) Exchange(ctx context.Context, image string) error {
	if c.auth.file == "" {
		return nil
	}
	body, err := json.Marshal(struct {
		Image string `json:"image,omitempty"`
	}{image})
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	return c.firstAgain(ctx, func() error {
		answer, err := c.auth.trade(ctx, string(body))
		if err != nil {
			return err
		}
		c.auth.mu.Lock()
		defer c.auth.mu.Unlock()
		c.auth.exchange, c.auth.exchanged = answer, string(body)
		return nil
	})
}

func (a *authorize) RoundTrip(r *http.Request) (*http.Response, error) {
	if a.token == "" && a.file == "" || !sameOrigin(r.URL, a.base) {
		return a.next.RoundTrip(r)
	}
	token, err := a.bearer(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // as http.RoundTripper asks for
		}
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	return a.next.RoundTrip(r)
}

// bearer is the token to show now.
func (a *authorize) bearer(ctx context.Context) (string, error) {
	if a.file == "" {
		return a.token, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.exchange == nil {
		return ReadTokenFile(a.file)
	}
	now := time.Now()
	if now.After(a.exchange.renewAt) {
		if next, err := a.trade(ctx, a.exchanged); err == nil {
			a.exchange = next
		} else if now.After(a.exchange.endsAt) {
			return "", err
		}
		a.exchange.renewAt = maxTime(a.exchange.renewAt, now.Add(exchangePause))
	}
	return a.exchange.Token, nil
}

// trade exchanges the token in the file.
func (a *authorize) trade(ctx context.Context, body string) (*exchange, error) {
	token, err := ReadTokenFile(a.file)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, a.base.JoinPath(exchangePath).String(), bytes.NewReader([]byte(body)))
	if err != nil {
		return nil, fmt.Errorf("exchange the OIDC token: %w", err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	server := a.base.Scheme + "://" + a.base.Host
	answer, err := a.next.RoundTrip(r)
	if err != nil {
		return nil, &ConnectionError{Server: server, Err: err}
	}
	defer discard(answer)
	if answer.StatusCode/100 != 2 {
		return nil, problemOf(answer)
	}
	data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err != nil {
		return nil, &ConnectionError{Server: server, Err: err}
	}
	var out exchange
	if err := json.Unmarshal(data, &out.ExchangedToken); err != nil || out.Token == "" {
		return nil, errors.Join(errors.New("exchange the OIDC token: the answer is not imgsrv's"), err)
	}
	// The two clocks may differ: what counts is how long it lives.
	life, now := out.ExpiresAt.Sub(out.IssuedAt), time.Now()
	out.renewAt, out.endsAt = now.Add(life*3/4), now.Add(life)
	return &out, nil
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
