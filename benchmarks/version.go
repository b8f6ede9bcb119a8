package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// version measures a version's document, for 32 clients, beside nginx with the same text in a file.
func version(ctx context.Context, b *bench) error {
	s, err := b.madeServer(ctx, either(b, 10_000, 500), 50)
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/api/images/%s/versions/v%06d", madeName(3), 7)
	text, _, err := s.download(ctx, path)
	if err != nil {
		return err
	}
	root, err := b.folder("root")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, path), text, 0o644); err != nil {
		return err
	}
	certFile, keyFile, err := certificate(b.dir)
	if err != nil {
		return err
	}
	n, err := b.nginx(ctx, root, certFile, keyFile)
	if err != nil {
		return err
	}
	return b.sameRequests(ctx, s.http, n.http, 32, either(b, 50_000, 2_000), 200, func(host string) ([]byte, error) { return getRequest(host, path), nil }, func(r result) result {
		r.Name, r.What, r.Peer, r.MostP99 = "version", "a version's document, 32 clients", "nginx, the same JSON", 5
		return r.atLeast(0.5)
	})
}
