package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"
)

// site is an imgsrv, and an nginx over its storage folder: the same files, from the same page cache.
type site struct {
	*server
	nginx *nginx
}

func (b *bench) site(ctx context.Context) (*site, error) {
	folder, err := b.folder("tls")
	if err != nil {
		return nil, err
	}
	certFile, keyFile, err := certificate(folder)
	if err != nil {
		return nil, err
	}
	s, err := b.fresh(ctx, "--tls-cert="+certFile, "--tls-key="+keyFile)
	if err != nil {
		return nil, err
	}
	n, err := b.nginx(ctx, s.storage, certFile, keyFile)
	return &site{s, n}, err
}

// download measures GB/s of one file by one and by four clients, over HTTP and over TLS 1.3.
func download(ctx context.Context, b *bench) error {
	s, err := b.site(ctx)
	if err != nil {
		return err
	}
	size := either[int64](b, gib, 128*mib)
	f, err := randomFile(b.dir, formatContainer, size)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read from here on
	if err := s.put(ctx, "big", "1", "container", formatContainer, f, size); err != nil {
		return err
	}
	digest, err := s.digest(ctx, "big", "1", formatContainer)
	if err != nil {
		return err
	}
	path := casPath(digest)
	if err := readThrough(filepath.Join(s.storage, path)); err != nil {
		return err
	}
	for _, over := range []struct {
		name, what, ours, theirs string
		reach                    float64
	}{{"http", "HTTP", s.http, s.nginx.http, 0.95}, {"tls", "TLS 1.3", s.https, s.nginx.https, 0.9}} {
		for _, streams := range []int{1, 4} {
			from := func(base string) func(context.Context) (float64, error) {
				return func(context.Context) (float64, error) { return fetchAll(base+path, size, streams) }
			}
			pairs, err := b.pair(ctx, from(over.ours), from(over.theirs))
			if err != nil {
				return err
			}
			what := fmt.Sprintf("download %d MiB, %d at once, %s", size/mib, streams, over.what)
			b.report(beside(fmt.Sprintf("download-%s-%d", over.name, streams), what, "nginx sendfile", "GB/s", pairs).atLeast(over.reach))
		}
	}
	return nil
}

// fetchAll downloads a URL so many times at once and gives the GB/s of all.
func fetchAll(url string, size int64, streams int) (float64, error) {
	errs := make([]error, streams)
	var work sync.WaitGroup
	began := time.Now()
	for i := range streams {
		work.Go(func() { errs[i] = fetch(url, size) })
	}
	work.Wait()
	return float64(size) * float64(streams) / 1e9 / time.Since(began).Seconds(), errors.Join(errs...)
}
