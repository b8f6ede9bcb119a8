package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// visible measures from the answer to the last byte to the version in catalog and simplestreams documents, for files of three sizes, which
// take turns.
func visible(ctx context.Context, b *bench) error {
	s, err := b.fresh(ctx)
	if err != nil {
		return err
	}
	sizes := either(b, []int64{mib, gib, 10 * gib}, []int64{mib, 32 * mib, 256 * mib})
	files := make([]*os.File, len(sizes))
	for i, size := range sizes {
		if files[i], err = sparseFile(b.dir, formatContainer, size); err != nil {
			return err
		}
		defer files[i].Close() //nolint:errcheck // read and changed only
	}
	took := make([][]time.Duration, len(sizes))
	for round := -1; round < max(b.rounds, 5); round++ {
		for i, size := range sizes {
			if err := distinguish(files[i], formatContainer); err != nil {
				return err
			}
			version := fmt.Sprintf("v%d-%d", round+1, i)
			up, err := s.open(ctx, "visible", version, "container", formatContainer, size)
			if err != nil {
				return err
			}
			if err := s.send(ctx, up, files[i], size); err != nil {
				return err
			}
			began := time.Now()
			if err := s.shown(ctx, "visible", version, eagerly); err != nil {
				return err
			}
			if round >= 0 {
				took[i] = append(took[i], time.Since(began))
			}
			if err := s.forget(ctx, "visible", version, formatContainer); err != nil {
				return err
			}
		}
	}
	p50 := make([]float64, len(sizes))
	for i, size := range sizes {
		p50[i] = milliseconds(percentile(took[i], 50))
		r := alone(fmt.Sprintf("visible-%dm", size/mib), fmt.Sprintf("last byte acknowledged to visible, %d MiB", size/mib), "ms", p50[i]).atMost(50)
		r.latencies(took[i], nil)
		b.report(r)
	}
	b.report(alone("visible-growth", "the largest file's time over the smallest's", "x", p50[len(p50)-1]/p50[0]).atMost(1.2))
	return nil
}
