package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// ranges measures requests of 1 MiB, at random places of 100 files, by 64 clients.
func ranges(ctx context.Context, b *bench) error {
	s, err := b.site(ctx)
	if err != nil {
		return err
	}
	count, size := either(b, 100, 10), either[int64](b, 32*mib, 4*mib)
	f, err := randomFile(b.dir, formatContainer, size)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read and changed only
	paths := make([]string, count)
	for i := range paths {
		version := fmt.Sprint(i)
		if err := distinguish(f, formatContainer); err != nil {
			return err
		}
		if err := s.put(ctx, "many", version, "container", formatContainer, f, size); err != nil {
			return err
		}
		digest, err := s.digest(ctx, "many", version, formatContainer)
		if err != nil {
			return err
		}
		paths[i] = casPath(digest)
	}
	n := either(b, 5000, 500)
	var latencies [2][]time.Duration
	side := func(base string, latency *[]time.Duration) func(context.Context) (float64, error) {
		host := strings.TrimPrefix(base, "http://")
		return func(ctx context.Context) (float64, error) {
			random := rand.New(rand.NewPCG(1, 2)) // both sides are asked for the same
			requests := make([][]byte, n)
			for i := range requests {
				at := random.Int64N(size - mib + 1)
				requests[i] = getRequest(host, paths[random.IntN(count)], "Range", fmt.Sprintf("bytes=%d-%d", at, at+mib-1))
			}
			rate, took, err := load(ctx, host, 64, n, 206, func(i int) []byte { return requests[i] })
			*latency = append(*latency, took...)
			return rate, err
		}
	}
	pairs, err := b.pair(ctx, side(s.http, &latencies[0]), side(s.nginx.http, &latencies[1]))
	if err != nil {
		return err
	}
	r := beside("ranges", fmt.Sprintf("ranges of 1 MiB at random over %d files, 64 clients", count), "nginx sendfile", "requests/s", pairs).atLeast(0.8)
	r.latencies(latencies[0], latencies[1])
	r.MostP99 = r.PeerP99
	b.report(r)
	return nil
}

// latencies fills a row's percentiles in; the peer's may be nil.
func (r *result) latencies(ours, theirs []time.Duration) {
	r.P50, r.P99 = milliseconds(percentile(ours, 50)), milliseconds(percentile(ours, 99))
	r.PeerP50, r.PeerP99 = milliseconds(percentile(theirs, 50)), milliseconds(percentile(theirs, 99))
}
