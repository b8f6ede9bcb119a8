package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// publish measures publications of 1 MiB, begun at once, until all are visible, beside a script that adds the same files to a tree one by
// one. The rate of imgsrv has the uploads in it; the script finds its files in place.
func publish(ctx context.Context, b *bench) error {
	s, err := b.fresh(ctx)
	if err != nil {
		return err
	}
	tree, err := b.folder("tree")
	if err != nil {
		return err
	}
	n := either(b, 100, 20)
	files := make([]*os.File, n)
	for i := range files {
		if files[i], err = randomFile(b.dir, formatContainer, mib); err != nil {
			return err
		}
		defer files[i].Close() //nolint:errcheck // read and changed only
	}
	round := 0
	pairs, err := b.pair(ctx, func(ctx context.Context) (float64, error) {
		round++
		for _, f := range files {
			if err := distinguish(f, formatContainer); err != nil {
				return 0, err
			}
		}
		errs := make([]error, n)
		var work sync.WaitGroup
		began := time.Now()
		for i := range files {
			work.Go(func() {
				image, version := fmt.Sprintf("image-%d", i), fmt.Sprint("v", round)
				up, err := s.open(ctx, image, version, "container", formatContainer, mib)
				if err == nil {
					err = s.send(ctx, up, files[i], mib)
				}
				if err == nil {
					err = s.shown(ctx, image, version, seldom)
				}
				errs[i] = err
			})
		}
		work.Wait()
		return float64(n) / seconds(began), errors.Join(errs...)
	}, func(ctx context.Context) (float64, error) {
		t, err := newTree(tree, round)
		if err != nil {
			return 0, err
		}
		began := time.Now()
		for i, f := range files {
			if err := t.add(ctx, fmt.Sprintf("image-%d", i), f.Name()); err != nil {
				return 0, err
			}
		}
		return float64(n) / seconds(began), nil
	})
	if err != nil {
		return err
	}
	b.report(beside("publish", fmt.Sprintf("%d publications of 1 MiB at once, start to visible", n), "script: tarball, hash, index", "publications/s", pairs).atLeast(5))
	return nil
}

// tree does what incus-simplestreams add does for each image: a metadata tarball, three digests, a copy of the file, and both documents
// written anew. It is kinder than the real one: it is no program that starts anew for each, and it keeps the documents in memory.
type tree struct {
	folder   string
	products map[string]any
}

func newTree(parent string, n int) (*tree, error) {
	t := &tree{folder: filepath.Join(parent, fmt.Sprint(n)), products: map[string]any{}}
	return t, errors.Join(os.MkdirAll(filepath.Join(t.folder, "images"), 0o755), os.MkdirAll(filepath.Join(t.folder, "streams", "v1"), 0o755))
}

func (t *tree) add(ctx context.Context, name, file string) error {
	metadata := filepath.Join(t.folder, "metadata.yaml")
	if err := os.WriteFile(metadata, fmt.Appendf(nil, "architecture: x86_64\ncreation_date: %d\nproperties:\n  description: %s\n  os: debian\n  release: bookworm\n", time.Now().Unix(), name), 0o600); err != nil {
		return err
	}
	tarball := filepath.Join(t.folder, "incus.tar.xz")
	if out, err := exec.CommandContext(ctx, "tar", "-cJf", tarball, "-C", t.folder, "metadata.yaml").CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	meta, err := os.ReadFile(tarball)
	if err != nil {
		return err
	}
	root, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	sum := func(parts ...[]byte) string {
		h := sha256.New()
		for _, part := range parts {
			_, _ = h.Write(part) // never fails
		}
		return hex.EncodeToString(h.Sum(nil))
	}
	metaSum, rootSum, combined := sum(meta), sum(root), sum(meta, root)
	metaPath, rootPath := "images/"+metaSum+".incus.tar.xz", "images/"+rootSum+".squashfs"
	for path, data := range map[string][]byte{metaPath: meta, rootPath: root} {
		if err := writeSynced(filepath.Join(t.folder, path), data); err != nil {
			return err
		}
	}
	t.products["debian:bookworm:x86_64:"+name] = map[string]any{"arch": "x86_64", "os": "debian", "release": "bookworm", "aliases": name,
		"versions": map[string]any{time.Now().Format("20060102_150405"): map[string]any{"items": map[string]any{
			"incus.tar.xz": map[string]any{"ftype": "incus.tar.xz", "path": metaPath, "size": len(meta), "sha256": metaSum, "combined_squashfs_sha256": combined},
			"squashfs":     map[string]any{"ftype": "squashfs", "path": rootPath, "size": len(root), "sha256": rootSum}}}}}
	names := make([]string, 0, len(t.products))
	for product := range t.products {
		names = append(names, product)
	}
	for path, document := range map[string]any{
		"streams/v1/images.json": map[string]any{"content_id": "images", "datatype": "image-downloads", "format": "products:1.0", "products": t.products},
		"streams/v1/index.json": map[string]any{"format": "index:1.0", "index": map[string]any{"images": map[string]any{"datatype": "image-downloads", "format": "products:1.0",
			"path": "streams/v1/images.json", "products": names}}},
	} {
		text, err := json.Marshal(document)
		if err != nil {
			return err
		}
		if err := writeSynced(filepath.Join(t.folder, path), text); err != nil {
			return err
		}
	}
	return nil
}

// writeSynced puts a file in its place, whole and on disk.
func writeSynced(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return errors.Join(syncPath(path+".new"), os.Rename(path+".new", path), syncPath(filepath.Dir(path)))
}
