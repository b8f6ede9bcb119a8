package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// upload measures from the creation of an upload to its verified, synced and published file, beside tusd, sha256sum and mv.
func upload(ctx context.Context, b *bench) error {
	size := either[int64](b, gib, 128*mib)
	s, t, f, err := b.intakes(ctx, formatContainer, size, b.folder)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read and changed only
	n := 0
	for _, chunk := range []struct {
		name  string
		bytes int64
	}{{"whole", size}, {"16m", 16 * mib}} {
		pairs, err := b.pair(ctx, func(ctx context.Context) (float64, error) {
			n++
			if err := distinguish(f, formatContainer); err != nil {
				return 0, err
			}
			version := fmt.Sprint("v", n)
			began := time.Now()
			up, err := s.open(ctx, "upload", version, "container", formatContainer, size)
			if err != nil {
				return 0, err
			}
			if err := errors.Join(s.send(ctx, up, f, chunk.bytes), s.shown(ctx, "upload", version, eagerly)); err != nil {
				return 0, err
			}
			took := seconds(began)
			return took, s.forget(ctx, "upload", version, formatContainer)
		}, func(ctx context.Context) (float64, error) {
			began := time.Now()
			path, err := t.send(ctx, f, size, chunk.bytes)
			if err != nil {
				return 0, err
			}
			path, err = t.publish(ctx, path)
			took := seconds(began)
			return took, errors.Join(err, os.Remove(path))
		})
		if err != nil {
			return err
		}
		what := fmt.Sprintf("upload %d MiB in PATCHes of %d MiB, verified, synced, published", size/mib, chunk.bytes/mib)
		b.report(beside("upload-"+chunk.name, what, "tusd, sha256sum, mv", "s", pairs).atMost(0.6))
	}
	return nil
}

// intakes are an imgsrv and a tusd whose bytes lie in folders of one kind, and a file to upload to both.
func (b *bench) intakes(ctx context.Context, format string, size int64, folder func(string) (string, error)) (*server, *tusd, *os.File, error) {
	data, err := b.folder("data")
	if err != nil {
		return nil, nil, nil, err
	}
	storage, err := folder("storage")
	if err != nil {
		return nil, nil, nil, err
	}
	uploads, err := folder("tusd")
	if err != nil {
		return nil, nil, nil, err
	}
	source, err := folder("source")
	if err != nil {
		return nil, nil, nil, err
	}
	t, err := b.tusd(ctx, uploads)
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := b.imgsrv(ctx, data, storage)
	if err != nil {
		return nil, nil, nil, err
	}
	f, err := randomFile(source, format, size)
	return s, t, f, err
}

// forget empties a version's blob, so that rounds of large files don't fill the disk. No server reads it again.
func (s *server) forget(ctx context.Context, image, version, format string) error {
	digest, err := s.digest(ctx, image, version, format)
	if err != nil {
		return err
	}
	path := filepath.Join(s.storage, casPath(digest))
	return errors.Join(os.Chmod(path, 0o600), os.Truncate(path, 0))
}

// intake measures the PATCH alone, of a storage in memory, where a sync costs nothing: the bytes have to be hashed and written, which one
// core's SHA-256 and tusd do apart; the slower of them is the peer.
func intake(ctx context.Context, b *bench) error {
	size := either[int64](b, gib, 128*mib)
	for _, row := range []struct {
		name, format, what string
		reach              float64
	}{{"plain", formatPlain, "one digest", 0.8}, {"vm", formatVM, "digest and Incus fingerprint", 0.5}} {
		s, t, f, err := b.intakes(ctx, row.format, size, b.memoryFolder)
		if err != nil {
			return err
		}
		n := 0
		pairs, err := b.pair(ctx, func(ctx context.Context) (float64, error) {
			n++
			if err := distinguish(f, row.format); err != nil {
				return 0, err
			}
			up, err := s.open(ctx, "intake", fmt.Sprint("v", n), kindOf(row.format), row.format, size)
			if err != nil {
				return 0, err
			}
			url, err := createUpload(ctx, s.client, up.create, s.token, up.metadata, size)
			if err != nil {
				return 0, err
			}
			began := time.Now()
			err = patchAll(url, s.token, f, size, size)
			rate := float64(size) / 1e9 / seconds(began)
			// The disk isn't one, and its job refuses it, which has to be over before the next round; the plain file is published.
			err = errors.Join(err, s.settled(ctx, up))
			if err == nil && row.format == formatPlain {
				err = errors.Join(s.shown(ctx, up.image, up.version, eagerly), s.forget(ctx, up.image, up.version, row.format))
			}
			return rate, err
		}, func(ctx context.Context) (float64, error) {
			began := time.Now()
			path, err := t.send(ctx, f, size, size)
			tusdRate := float64(size) / 1e9 / seconds(began)
			if err := errors.Join(err, os.Remove(path)); err != nil {
				return 0, err
			}
			hashRate, err := hashRate(f, size)
			return min(tusdRate, hashRate), err
		})
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		what := fmt.Sprintf("PATCH of %d MiB into memory, %s", size/mib, row.what)
		b.report(beside("intake-"+row.name, what, "slower of tusd and SHA-256", "GB/s", pairs).atLeast(row.reach))
	}
	return nil
}

// hashRate is how fast one core hashes bytes that lie in its cache, GB/s.
func hashRate(f *os.File, size int64) (float64, error) {
	block := make([]byte, 256*kib)
	if _, err := f.ReadAt(block, 0); err != nil {
		return 0, err
	}
	sum := sha256.New()
	began := time.Now()
	for at := int64(0); at < size; at += int64(len(block)) {
		if _, err := io.Copy(sum, bytes.NewReader(block)); err != nil {
			return 0, err
		}
	}
	return float64(size) / 1e9 / seconds(began), nil
}

// settled waits until a session's job has ended, however it did.
func (s *server) settled(ctx context.Context, up session) error {
	for ctx.Err() == nil {
		var status struct {
			State string `json:"state"`
		}
		if err := s.get(ctx, up.status, &status); err != nil {
			return err
		}
		if status.State == "published" || status.State == "failed" {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ctx.Err()
}
