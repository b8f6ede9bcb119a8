package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"
)

// growing is one thing whose time is looked at as the number of versions grows.
type growing struct {
	name, what string
	reach      float64 // of the exponent
	times      []float64
}

// growth measures the same with 1,000, 10,000 and 100,000 versions, in ten images, and fits exponents. Constant or logarithmic work has
// one near 0 (a logarithm, from 1,000 to 100,000: 0.11); what reads everything 1, n log n 1.11.
func growth(ctx context.Context, b *bench) error {
	counts := either(b, []float64{1_000, 10_000, 100_000}, []float64{100, 300, 1_000})
	all := []*growing{
		{name: "listing", what: "a page of a catalog listing", reach: 0.2},
		{name: "publication", what: "publication of 1 MiB, start to visible", reach: 0.2},
		{name: "streams", what: "an alias moved to the documents that have it", reach: 0.2},
		{name: "alias", what: "an alias moved, acknowledged", reach: 0.2},
		{name: "gc", what: "marking for a collection of garbage", reach: 1.15},
	}
	for _, n := range counts {
		b.logf("  with %.0f versions", n)
		took, err := b.grown(ctx, int(n))
		if err != nil {
			return err
		}
		for _, g := range all {
			ms := milliseconds(percentile(took[g.name], 50))
			g.times = append(g.times, ms)
			b.logf("    %s: %.3g ms", g.what, ms)
		}
	}
	for _, g := range all {
		r := alone("growth-"+g.name, g.what+": exponent of growth with versions", "exponent", exponent(counts, g.times)).atMost(g.reach)
		r.Note = fmt.Sprintf("%.4g ms with %.0f versions", g.times, counts)
		b.report(r)
	}
	return os.WriteFile(b.plotFile, plot(counts, all), 0o644)
}

// grown takes the times with n versions.
func (b *bench) grown(ctx context.Context, n int) (map[string][]time.Duration, error) {
	s, err := b.madeServer(ctx, n, n/10)
	if err != nil {
		return nil, err
	}
	defer s.stop()
	rounds := max(b.rounds, 5)
	took := map[string][]time.Duration{}
	measure := func(what string, f func() error) error {
		began := time.Now()
		if err := f(); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		took[what] = append(took[what], time.Since(began))
		return nil
	}
	// A page from the middle of the longest list.
	listing := fmt.Sprintf("/api/images/%s/versions?limit=100", madeName(3))
	var page struct {
		Next string `json:"next"`
	}
	for range n / 10 / 100 / 2 {
		at := listing
		if page.Next != "" {
			at += "&after=" + url.QueryEscape(page.Next)
		}
		if err := s.get(ctx, at, &page); err != nil {
			return nil, err
		}
	}
	if page.Next != "" {
		listing += "&after=" + url.QueryEscape(page.Next)
	}
	f, err := randomFile(b.dir, formatContainer, mib)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read and changed only
	for i := -1; i < rounds; i++ {
		if i == 0 {
			took = map[string][]time.Duration{} // the first round doesn't count
		}
		for range 10 {
			if err := measure("listing", func() error { return s.get(ctx, listing, nil) }); err != nil {
				return nil, err
			}
		}
		if err := distinguish(f, formatContainer); err != nil {
			return nil, err
		}
		version := fmt.Sprint("new-", i+1)
		if err := measure("publication", func() error {
			up, err := s.open(ctx, madeName(0), version, "container", formatContainer, mib)
			if err != nil {
				return err
			}
			// The document's own time is that of streams.
			return errors.Join(s.send(ctx, up, f, mib), s.listed(ctx, madeName(0), version, eagerly))
		}); err != nil {
			return nil, err
		}
		var header http.Header
		began := time.Now()
		if err := measure("alias", func() (err error) {
			header, err = s.call(ctx, http.MethodPut, "/api/images/"+madeName(1)+"/aliases/moved", map[string]any{"version": fmt.Sprintf("v%06d", (i+1)%(n/10))}, nil)
			return err
		}); err != nil {
			return nil, err
		}
		if _, err := s.call(ctx, http.MethodHead, "/streams/v1/images.json", nil, nil, "Imgsrv-Min-Sequence", header.Get("Imgsrv-Sequence")); err != nil {
			return nil, err
		}
		took["streams"] = append(took["streams"], time.Since(began))
		if err := measure("gc", func() error { return s.dryCollection(ctx) }); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// dryCollection finds out what a collection of garbage would take.
func (s *server) dryCollection(ctx context.Context) error {
	var operation struct {
		ID    string `json:"id"`
		State string `json:"state"`
	}
	header, err := s.call(ctx, http.MethodPost, "/api/gc", map[string]any{"dry_run": true}, &operation)
	for err == nil && operation.State == "running" {
		time.Sleep(2 * time.Millisecond)
		err = s.get(ctx, header.Get("Location"), &operation)
	}
	if err == nil && operation.State != "succeeded" {
		err = fmt.Errorf("the operation has %s", operation.State)
	}
	return err
}
