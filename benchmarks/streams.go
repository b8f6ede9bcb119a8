package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// madeServer is an imgsrv with n made versions in it, all shown.
func (b *bench) madeServer(ctx context.Context, n, perImage int, flags ...string) (*server, error) {
	data, err := b.folder("data")
	if err != nil {
		return nil, err
	}
	head, err := b.fill(ctx, filepath.Join(data, "nats"), n, perImage)
	if err != nil {
		return nil, err
	}
	// There are no bytes to make deltas of.
	s, err := b.imgsrv(ctx, data, filepath.Join(data, "storage"), append([]string{"--deltas=0", "--gc-every=0"}, flags...)...)
	if err != nil {
		return nil, err
	}
	if err := s.caughtUp(ctx, uint64(head)); err != nil {
		return nil, err
	}
	return s, s.settle(ctx)
}

// caughtUp waits until what is read is of an event and later ones.
func (s *server) caughtUp(ctx context.Context, head uint64) error {
	for _, path := range []string{"/api/images?limit=1", "/streams/v1/index.json", "/api/jobs?limit=1"} {
		if err := s.asNewAs(ctx, path, head); err != nil {
			return err
		}
	}
	return nil
}

// asNewAs asks for a path until the answer has an event in it. imgsrv waits for a while itself, and then answers 503.
func (s *server) asNewAs(ctx context.Context, path string, sequence uint64) error {
	for {
		err := s.get(ctx, path, nil, "Imgsrv-Min-Sequence", fmt.Sprint(sequence))
		if !putOff(err) {
			return err
		}
	}
}

// download reads an answer as it comes, by any client's rules.
func (s *server) download(ctx context.Context, path string, header ...string) ([]byte, http.Header, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.http+path, nil)
	if err != nil {
		return nil, nil, err
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	a, err := s.client.Do(r)
	if err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(a.Body)
	if a.StatusCode != http.StatusOK {
		err = errors.Join(err, &statusError{path, a.StatusCode, string(text[:min(len(text), 500)])})
	}
	return text, a.Header, errors.Join(err, a.Body.Close())
}

// streams measures the document of 10,000 versions, compressed, for 32 clients, and the answer that it hasn't changed. nginx has the very
// bytes that imgsrv gives.
func streams(ctx context.Context, b *bench) error {
	const path = "/streams/v1/images.json"
	versions := either(b, 10_000, 1_000)
	s, err := b.madeServer(ctx, versions, 50)
	if err != nil {
		return err
	}
	root, err := b.folder("root")
	if err != nil {
		return err
	}
	certFile, keyFile, err := certificate(b.dir)
	if err != nil {
		return err
	}
	plain, _, err := s.download(ctx, path, "Accept-Encoding", "identity")
	if err != nil {
		return err
	}
	packed, header, err := s.download(ctx, path, "Accept-Encoding", "gzip")
	if err != nil {
		return err
	}
	if header.Get("Content-Encoding") != "gzip" {
		return errors.New("imgsrv's document isn't compressed")
	}
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755); err != nil {
		return err
	}
	file := filepath.Join(root, path)
	if err := errors.Join(os.WriteFile(file, plain, 0o644), os.WriteFile(file+".gz", packed, 0o644)); err != nil {
		return err
	}
	n, err := b.nginx(ctx, root, certFile, keyFile)
	if err != nil {
		return err
	}
	what := fmt.Sprintf("images.json of %d versions, %d KiB gzip, 32 clients", versions, len(packed)/kib)
	if err := b.sameRequests(ctx, s.http, n.http, 32, either(b, 4000, 300), 200, func(host string) ([]byte, error) {
		return getRequest(host, path, "Accept-Encoding", "gzip"), nil
	}, func(r result) result {
		r.Name, r.What, r.Peer = "streams-gzip", what, "nginx gzip_static"
		return r.atLeast(0.7)
	}); err != nil {
		return err
	}
	return b.sameRequests(ctx, s.http, n.http, 32, either(b, 100_000, 5_000), 304, func(host string) ([]byte, error) {
		c, err := dial(host)
		if err != nil {
			return nil, err
		}
		defer c.close()
		a, err := c.do(getRequest(host, path, "Accept-Encoding", "gzip"))
		if err != nil {
			return nil, err
		}
		etag, ok := field(a.header, "etag")
		if !ok {
			return nil, errors.New("no ETag")
		}
		return getRequest(host, path, "Accept-Encoding", "gzip", "If-None-Match", etag), nil
	}, func(r result) result {
		r.Name, r.What, r.Peer = "streams-304", "the same, unchanged: 304", "nginx"
		return r.atLeast(1)
	})
}

// sameRequests measures one request given n times by so many clients, to both sides.
func (b *bench) sameRequests(ctx context.Context, ours, theirs string, clients, n, status int, request func(host string) ([]byte, error), row func(result) result) error {
	var latencies [2][]time.Duration
	side := func(base string, latency *[]time.Duration) func(context.Context) (float64, error) {
		host := strings.TrimPrefix(base, "http://")
		return func(ctx context.Context) (float64, error) {
			text, err := request(host)
			if err != nil {
				return 0, err
			}
			rate, took, err := load(ctx, host, clients, n, status, func(int) []byte { return text })
			*latency = append(*latency, took...)
			return rate, err
		}
	}
	pairs, err := b.pair(ctx, side(ours, &latencies[0]), side(theirs, &latencies[1]))
	if err != nil {
		return err
	}
	r := beside("", "", "", "requests/s", pairs)
	r.latencies(latencies[0], latencies[1])
	b.report(row(r))
	return nil
}
