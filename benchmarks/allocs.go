package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// allocs counts what the servers' processes allocate for one request with few bytes and for one with many, by their own metrics
// (go_memstats_mallocs_total), less what they allocate anyhow: downloads beside http.ServeContent, PATCHes beside tusd.
func allocs(ctx context.Context, b *bench) error {
	small, large := int64(mib), either[int64](b, 256*mib, 32*mib)
	s, t, f, err := b.intakes(ctx, formatContainer, large, b.memoryFolder)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read and changed only
	content, err := b.serveContent(ctx, f.Name(), small)
	if err != nil {
		return err
	}
	var paths []string
	for _, size := range []int64{small, large} {
		version := fmt.Sprint("v", size)
		if err := s.put(ctx, "allocs", version, "container", formatContainer, f, size); err != nil {
			return err
		}
		digest, err := s.digest(ctx, "allocs", version, formatContainer)
		if err != nil {
			return err
		}
		paths = append(paths, casPath(digest))
	}
	times := either(b, 100, 20)
	ours := counted{url: s.metrics}
	peer := counted{url: content + "/metrics"}
	tus := counted{url: t.metrics}
	opened := 0
	down := func(base string, paths ...string) func(int) func() error {
		return func(i int) func() error {
			return func() error { return fetch(base+paths[i], []int64{small, large}[i]) }
		}
	}
	// The upload is longer than what is sent: no file is complete, and no publication allocates beside it. Then it is given up, so that
	// the memory has room for the next one.
	patch := func(begin func() (session, error), token string) func(int) func() error {
		return func(i int) func() error {
			return func() error {
				up, err := begin()
				if err != nil {
					return err
				}
				url, err := createUpload(ctx, s.client, up.create, token, up.metadata, 2*large)
				if err != nil {
					return err
				}
				if err := patchAll(url, token, f, []int64{small, large}[i], large); err != nil {
					return err
				}
				_, err = s.call(ctx, http.MethodDelete, cmp.Or(up.status, url), nil, nil, "Tus-Resumable", "1.0.0")
				return err
			}
		}
	}
	for _, row := range []struct {
		name, what, peer string
		ours, theirs     counted
		our, their       func(int) func() error
	}{
		{"allocs-download", "allocations of a download", "http.ServeContent", ours, peer, down(s.http, paths...), down(content, "/small", "/large")},
		{"allocs-patch", "allocations of an upload's creation, PATCH and end", "tusd", ours, tus, patch(func() (session, error) {
			opened++
			return s.open(ctx, "allocs", fmt.Sprint("open-", opened), "container", formatContainer, 2*large)
		}, s.token), patch(func() (session, error) { return session{create: t.url}, nil }, "")},
	} {
		var counts [4]float64
		for i, side := range []struct {
			of  counted
			run func() error
		}{{row.ours, row.our(0)}, {row.ours, row.our(1)}, {row.theirs, row.their(0)}, {row.theirs, row.their(1)}} {
			repeat := times
			if i%2 == 0 { // few allocations in a short time: more of them stand out from what goes on anyhow
				repeat = 10 * times
			}
			if counts[i], err = side.of.each(ctx, repeat, side.run); err != nil {
				return fmt.Errorf("%s: %w", row.name, err)
			}
		}
		what := fmt.Sprintf("%s of %d MiB over one of %d MiB", row.what, large/mib, small/mib)
		r := alone(row.name, what, "x", counts[1]/counts[0]).atMost(1.2)
		r.Note = fmt.Sprintf("%.0f and %.0f allocations; %s: %.0f and %.0f", counts[0], counts[1], row.peer, counts[2], counts[3])
		b.report(r)
	}
	return nil
}

// counted is a process whose metrics are at a URL.
type counted struct{ url string }

// each gives the allocations of one call of f.
func (c counted) each(ctx context.Context, times int, f func() error) (float64, error) {
	if err := f(); err != nil { // what is made once
		return 0, err
	}
	began := time.Now()
	before, err := c.now(ctx)
	if err != nil {
		return 0, err
	}
	for range times {
		if err := errors.Join(f(), ctx.Err()); err != nil {
			return 0, err
		}
	}
	after, err := c.now(ctx)
	if err != nil {
		return 0, err
	}
	took := time.Since(began)
	time.Sleep(took)
	anyhow, err := c.now(ctx)
	return max(after-before-(anyhow-after), 1) / float64(times), err
}

func (c counted) now(ctx context.Context) (float64, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		return 0, err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close() //nolint:errcheck // only read
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "go_memstats_mallocs_total "); ok {
			return strconv.ParseFloat(value, 64)
		}
	}
	return 0, fmt.Errorf("%s doesn't say go_memstats_mallocs_total (%d)", c.url, answer.StatusCode)
}

// serveContent starts a peer that serves a file by http.ServeContent. /large is the file, /small its first bytes.
func (b *bench) serveContent(ctx context.Context, file string, small int64) (string, error) {
	head := filepath.Join(filepath.Dir(file), "small")
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(head, text[:small], 0o600); err != nil {
		return "", err
	}
	_, base, err := b.peer(ctx, "content", head, file)
	return base, err
}

func contentRoutes(mux *http.ServeMux, small, large string) {
	for name, path := range map[string]string{"/small": small, "/large": large} {
		mux.HandleFunc(name, func(w http.ResponseWriter, r *http.Request) {
			f, err := os.Open(path)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			defer f.Close() //nolint:errcheck // only read
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, r, "", time.Time{}, f)
		})
	}
}
