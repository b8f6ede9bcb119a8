package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/imgsrv/imgsrv/internal/tracecontext"
)

// maxAnswerBytes bounds a JSON answer. The largest is a page of manifests.
const maxAnswerBytes = 64 << 20

// Options are what a client can be told beyond server and token. The zero value is ready to use.
type Options struct {
	// CAFile is a PEM file of certificates to trust beside the system's; "" for none.
	CAFile string
	// TokenFile is a file that holds the token, in place of New's argument; "" for none. It is read anew for each request, since
	// CI platforms refresh it.
	TokenFile string
	// Transport makes the requests in place of the network; nil for the network. CAFile is then of no use.
	Transport http.RoundTripper
	// UserAgent is sent with each request; "" for Go's own.
	UserAgent string
	// Retry says how broken transfers are tried again.
	Retry Retry
	// StallTimeout ends a transfer on whose connection no byte moves for so long; it is then resumed. 0 means a minute.
	StallTimeout time.Duration
}

// Client makes requests to one server. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	http  *http.Client
	auth  *authorize
	agent string
	retry Retry
	stall time.Duration
}

// New makes a client of the server at a URL such as http://127.0.0.1:8080; a bare host:port means http. The token goes along
// with each request to that server and to no other; "" for none. The error says what is wrong with the URL or the CA file.
func New(server, token string, o Options) (*Client, error) {
	base, err := ParseServer(server)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       time.Minute,
		ForceAttemptHTTP2:     true,
		// The bytes on the line are the file: a compressed transfer couldn't be resumed by offset.
		DisableCompression: true,
	}
	if o.CAFile != "" {
		pool, err := certificates(o.CAFile)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	var next http.RoundTripper = transport
	if o.Transport != nil {
		next = o.Transport
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = time.Minute
	}
	auth := &authorize{next: next, base: base, token: token, file: o.TokenFile}
	return &Client{
		base: base,
		// No timeout for a whole request: a download may take hours. Contexts and the stall timeout end what hangs.
		http:  &http.Client{Transport: auth, CheckRedirect: checkRedirect},
		auth:  auth,
		agent: o.UserAgent,
		retry: o.Retry.withDefaults(),
		stall: o.StallTimeout,
	}, nil
}

// ParseServer reads a server's URL; a bare host:port means http.
func ParseServer(server string) (*url.URL, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	base, err := url.Parse(server)
	// url.Parse repeats its input in the error, and that may hold a password.
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, errors.New("the server has to be a URL such as http://127.0.0.1:8080 or https://images.example.org")
	}
	if base.User != nil {
		return nil, errors.New("the server's URL may not hold a user or password: give the token with --token or IMGSRV_TOKEN")
	}
	return &url.URL{Scheme: base.Scheme, Host: base.Host, Path: strings.TrimRight(base.Path, "/")}, nil
}

func certificates(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA file %s has no certificate in PEM form", path)
	}
	return pool, nil
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Hostname(), b.Hostname()) && port(a) == port(b)
}

func port(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "https":
		return "443"
	}
	return "80"
}

// checkRedirect follows reads only: a redirected write would arrive as a GET, or without its body.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || via[0].Method != r.Method {
		return http.ErrUseLastResponse
	}
	if len(via) > 10 {
		return errors.New("the server redirects in circles")
	}
	return nil
}

// URL is where a path, or a URL that the server named, is reached from here. Behind a proxy the server doesn't know its own
// address, so only path and query of what it says are taken.
func (c *Client) URL(ref string) string { return c.resolve(ref).String() }

func (c *Client) resolve(ref string) *url.URL {
	u := *c.base
	parsed, err := url.Parse(ref)
	if err != nil {
		return u.JoinPath("/")
	}
	raw := parsed.EscapedPath()
	if c.base.Path != "" && !strings.HasPrefix(raw, c.base.Path+"/") {
		raw = c.base.Path + raw
	}
	// Both forms, so that an escaped slash in a segment stays escaped.
	u.RawPath = raw
	if u.Path, err = url.PathUnescape(raw); err != nil {
		u.Path = raw
	}
	u.RawQuery = parsed.RawQuery
	return &u
}

// route joins segments to a path of the API, each escaped.
func route(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

func (c *Client) request(ctx context.Context, method, ref string, body io.Reader) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.URL(ref), body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, ref, err)
	}
	if c.agent != "" {
		r.Header.Set("User-Agent", c.agent)
	}
	if parent := tracecontext.Of(ctx); parent != "" {
		r.Header.Set(tracecontext.Header, parent)
	}
	return r, nil
}

// send makes a request. Whatever is not 2xx or one of also is an error; then the body is closed.
func (c *Client) send(r *http.Request, also ...int) (*http.Response, error) {
	answer, err := c.http.Do(r)
	if err != nil {
		var outer *url.Error
		if errors.As(err, &outer) {
			err = outer.Err // says the URL once more, queries included
		}
		var file *TokenFileError
		if errors.As(err, &file) {
			return nil, file // the server was never asked
		}
		var refused *Problem
		if errors.As(err, &refused) {
			return nil, refused // to renew the token that the request was to show
		}
		return nil, &ConnectionError{Server: c.base.Scheme + "://" + c.base.Host, Err: err}
	}
	if answer.StatusCode/100 == 2 {
		return answer, nil
	}
	for _, status := range also {
		if answer.StatusCode == status {
			return answer, nil
		}
	}
	defer discard(answer)
	return nil, problemOf(answer)
}

// discard closes a body; a short rest is read first, so that the connection can be used again.
func discard(answer *http.Response) {
	_, _ = io.CopyN(io.Discard, answer.Body, 64<<10)
	_ = answer.Body.Close()
}

// call makes a request with a JSON body (nil for none) and reads a JSON answer into out (nil to ignore it).
func (c *Client) call(ctx context.Context, method, ref string, in, out any, headers ...string) error {
	_, err := c.callForHeader(ctx, method, ref, in, out, headers...)
	return err
}

// ask is call for an answer of a type of its own.
func ask[Answer any](ctx context.Context, c *Client, method, ref string, in any) (*Answer, error) {
	var out Answer
	if err := c.call(ctx, method, ref, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// callForHeader is call for who needs the answer's header too. A header of the request without a value isn't sent.
func (c *Client) callForHeader(ctx context.Context, method, ref string, in, out any, headers ...string) (http.Header, error) {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		body = bytes.NewReader(data)
	}
	r, err := c.request(ctx, method, ref, body)
	if err != nil {
		return nil, err
	}
	r.Header.Set("Accept", "application/json")
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] != "" {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	answer, err := c.send(r)
	if err != nil {
		return nil, err
	}
	defer discard(answer)
	if out == nil {
		return answer.Header, nil
	}
	data, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswerBytes))
	if err != nil {
		return nil, &ConnectionError{Server: c.base.Scheme + "://" + c.base.Host, Err: err}
	}
	if err := json.Unmarshal(data, out); err != nil {
		return nil, fmt.Errorf("%s %s: the answer is not imgsrv's: %w", method, ref, err)
	}
	return answer.Header, nil
}
