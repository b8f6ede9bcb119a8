package mirrors

import (
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/imgsrv/imgsrv/events"
	"github.com/imgsrv/imgsrv/handlers/targets"
	"github.com/imgsrv/imgsrv/internal/pause"
)

// Bounds of what upstream may make us do.
const (
	maxDocumentBytes  = 128 << 20 // of a document, unpacked; images.linuxcontainers.org's has about 5 MB
	documentTimeout   = 5 * time.Minute
	headerTimeout     = 30 * time.Second
	maxRedirects      = 5
	requestsPerSecond = 10
	rateChunk         = 64 << 10 // bytes that are paid for at once
	maxTries          = 5        // of a request, in a row and without a byte in between
)

// upstreamError is upstream's, or the way there: it may pass.
type upstreamError struct {
	err  error
	gone bool // upstream answers, but not with this file
}

func (e *upstreamError) Error() string { return e.err.Error() }

func (e *upstreamError) Unwrap() error { return e.err }

// fetcher asks other servers. Encrypted and plain connections have clients of their own, since the rules for targets differ.
type fetcher struct {
	encrypted, plain *http.Client
	agent            string
	requests         *rate.Limiter // nil: no limit
	bytes            *rate.Limiter // as above
	stall            time.Duration // without a byte for so long a transfer is broken off
	maxDocument      int64         // bytes, unpacked
	firstPause       time.Duration // before a request is made again; each further one is twice as long
	count            func(n int)   // is told the bytes of files
}

func newFetcher(to *targets.Targets, roots *x509.CertPool, agent string, bytesPerSecond int64, stall, firstPause time.Duration) *fetcher {
	client := func(plain bool) *http.Client {
		return &http.Client{
			Transport: &http.Transport{
				DialContext: to.Dialer(plain), TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true,
				TLSHandshakeTimeout: headerTimeout, ResponseHeaderTimeout: headerTimeout, IdleConnTimeout: time.Minute, MaxConnsPerHost: maxParallel + 1,
				MaxResponseHeaderBytes: 64 << 10, DisableCompression: true, // files come as they are; documents are unpacked here
			},
			CheckRedirect: func(r *http.Request, via []*http.Request) error {
				r.Header.Del("Referer") // its path may open upstream
				if len(via) > maxRedirects {
					return errors.New("the server redirects in circles")
				}
				if r.URL.Scheme != via[0].URL.Scheme {
					return fmt.Errorf("the server redirects from %s to %s", via[0].URL.Scheme, r.URL.Scheme)
				}
				return nil
			},
		}
	}
	f := &fetcher{encrypted: client(false), plain: client(true), agent: agent, requests: rate.NewLimiter(requestsPerSecond, requestsPerSecond), stall: stall, maxDocument: maxDocumentBytes, firstPause: firstPause, count: func(int) {}}
	if bytesPerSecond > 0 {
		f.bytes = rate.NewLimiter(rate.Limit(bytesPerSecond), max(rateChunk, int(min(bytesPerSecond, 1<<30))))
	}
	return f
}

func (f *fetcher) close() {
	f.encrypted.CloseIdleConnections()
	f.plain.CloseIdleConnections()
}

// get makes one request; the status is not looked at.
func (f *fetcher) get(ctx context.Context, base, path string, header map[string]string) (*http.Response, error) {
	if err := f.requests.Wait(ctx); err != nil {
		return nil, fmt.Errorf("wait for the next request: %w", err)
	}
	// As the clients do it, who don't look into the path either; the host ends at the first slash.
	u, err := url.Parse(strings.TrimRight(base, "/") + "/" + path)
	if err != nil {
		return nil, &upstreamError{err: fmt.Errorf("the path %q makes no URL", path), gone: true}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	r.Header.Set("User-Agent", f.agent)
	for name, value := range header {
		if value != "" {
			r.Header.Set(name, value)
		}
	}
	client := f.encrypted
	if u.Scheme != "https" {
		client = f.plain
	}
	answer, err := client.Do(r)
	if err != nil {
		var outer *url.Error
		if errors.As(err, &outer) {
			err = outer.Err // would repeat the whole URL
		}
		return nil, &upstreamError{err: fmt.Errorf("%s: %w", path, err)}
	}
	return answer, nil
}

// document reads one, unless it is still as known says: then the data are nil.
func (f *fetcher) document(ctx context.Context, base, path string, known events.MirrorDocument) (data []byte, now events.MirrorDocument, err error) {
	for try := 1; ; try++ {
		data, now, err = f.documentOnce(ctx, base, path, known)
		var passing *upstreamError
		if err == nil || !errors.As(err, &passing) || passing.gone || try == maxTries {
			return data, now, err
		}
		if err := pause.For(ctx, pause.About(f.firstPause<<(try-1))); err != nil {
			return nil, now, err
		}
	}
}

func (f *fetcher) documentOnce(ctx context.Context, base, path string, known events.MirrorDocument) (data []byte, now events.MirrorDocument, err error) {
	ctx, cancel := context.WithTimeout(ctx, documentTimeout)
	defer cancel()
	answer, err := f.get(ctx, base, path, map[string]string{"Accept": "application/json, */*;q=0.1", "Accept-Encoding": "gzip",
		"If-None-Match": known.ETag, "If-Modified-Since": known.LastModified})
	if err != nil {
		return nil, now, err
	}
	defer answer.Body.Close() //nolint:errcheck // only read
	if answer.StatusCode == http.StatusNotModified && known.Path != "" {
		return nil, known, nil
	}
	if answer.StatusCode != http.StatusOK {
		return nil, now, unexpected(path, answer)
	}
	var body io.Reader = answer.Body
	if answer.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(answer.Body)
		if err != nil {
			return nil, now, &upstreamError{err: fmt.Errorf("%s: unpack it: %w", path, err)}
		}
		body = unpacked
	}
	if data, err = io.ReadAll(io.LimitReader(body, f.maxDocument+1)); err != nil {
		return nil, now, &upstreamError{err: fmt.Errorf("%s: read it: %w", path, err)}
	}
	if int64(len(data)) > f.maxDocument {
		return nil, now, &upstreamError{err: fmt.Errorf("%s has more than %d bytes", path, f.maxDocument), gone: true}
	}
	return data, events.MirrorDocument{Path: path, ETag: validator(answer, "ETag"), LastModified: validator(answer, "Last-Modified")}, nil
}

// validator is kept in an event, where a long one has no place.
func validator(answer *http.Response, name string) string {
	if value := answer.Header.Get(name); len(value) <= 200 {
		return value
	}
	return ""
}

// unexpected is an answer of another status than was asked for. Refusals of this one file don't speak against the server.
func unexpected(path string, answer *http.Response) error {
	gone := answer.StatusCode/100 == 4 && answer.StatusCode != http.StatusTooManyRequests && answer.StatusCode != http.StatusRequestTimeout
	return &upstreamError{err: fmt.Errorf("%s: the server answers %d %s", path, answer.StatusCode, http.StatusText(answer.StatusCode)), gone: gone}
}
