package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// memory reads what imgsrv takes, with its NATS server, which is in its process, and without PostgreSQL, which isn't.
func memory(ctx context.Context, b *bench) error {
	s, err := b.fresh(ctx)
	if err != nil {
		return err
	}
	time.Sleep(either(b, 30*time.Second, 3*time.Second)) // until what the start needed has been given back
	idle, _, err := memoryOf(s.cmd.Process.Pid)
	if err != nil {
		return err
	}
	b.report(alone("memory-idle", "imgsrv, idle", "MB", idle).atMost(80))
	if err := b.loaded(ctx, s); err != nil {
		return err
	}
	s.stop()

	n := either(b, 10_000_000, 100_000)
	long, err := b.longServer(ctx, n)
	if err != nil {
		return err
	}
	now, peak, err := memoryOf(long.cmd.Process.Pid)
	if err != nil {
		return err
	}
	r := alone("memory-log", fmt.Sprintf("imgsrv at most, from its start over %d events until they are derived", n), "MB", peak).atMost(500)
	r.Note = fmt.Sprintf("%.0f MB when that was done", now)
	b.report(r)
	return nil
}

// longServer is an imgsrv that has derived what follows from n events: the publications of 10,000 versions, and moves of their aliases.
// With nothing but publications it would be half a million versions, and of those, not of the log, that the memory is.
func (b *bench) longServer(ctx context.Context, n int) (*server, error) {
	const perImage = 50
	versions := either(b, 10_000, 1_000)
	data, err := b.folder("data")
	if err != nil {
		return nil, err
	}
	made, err := b.fill(ctx, natsFolder(data), versions, perImage)
	if err != nil {
		return nil, err
	}
	if err := b.move(ctx, natsFolder(data), n-made, versions, perImage); err != nil {
		return nil, err
	}
	s, err := b.imgsrv(ctx, data, filepath.Join(data, "storage"), "--deltas=0", "--gc-every=0")
	if err != nil {
		return nil, err
	}
	return s, s.caughtUp(ctx, uint64(n))
}

// loaded has uploads and downloads under way at once.
func (b *bench) loaded(ctx context.Context, s *server) error {
	uploads, downloads := either(b, 100, 20), either(b, 500, 50)
	size := either[int64](b, 64*mib, 8*mib)
	f, err := randomFile(b.dir, formatContainer, size)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if err := s.put(ctx, "loaded", "first", "container", formatContainer, f, size); err != nil {
		return err
	}
	digest, err := s.digest(ctx, "loaded", "first", formatContainer)
	if err != nil {
		return err
	}
	errs := make([]error, uploads+downloads)
	var work sync.WaitGroup
	for i := range errs {
		work.Go(func() {
			if i >= uploads {
				errs[i] = fetch(s.http+casPath(digest), size)
				return
			}
			own, err := os.Open(f.Name())
			if err != nil {
				errs[i] = err
				return
			}
			defer own.Close() //nolint:errcheck // only read
			up, err := s.open(ctx, "loaded", fmt.Sprint("v", i), "container", formatContainer, size)
			if err == nil {
				err = s.send(ctx, up, own, 16*mib)
			}
			errs[i] = err
		})
	}
	work.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, peak, err := memoryOf(s.cmd.Process.Pid)
	b.report(alone("memory-load", fmt.Sprintf("imgsrv at most, %d uploads and %d downloads at once", uploads, downloads), "MB", peak).atMost(300))
	return err
}
