package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/tus/tusd/v2/pkg/filestore"
	"github.com/tus/tusd/v2/pkg/handler"
	"github.com/tus/tusd/v2/pkg/memorylocker"
	"golang.org/x/exp/slog" // as tusd's configuration has it
)

// tusd is one that keeps uploads in a folder: its handler, file store and lock in memory, in a process of its own, as its program
// puts them together, without the clouds that this can store to.
type tusd struct {
	*process
	url, metrics string // where uploads are created
	folder       string
}

func (b *bench) tusd(ctx context.Context, folder string) (*tusd, error) {
	p, base, err := b.peer(ctx, "tusd", folder)
	return &tusd{process: p, url: base + "/files/", metrics: base + "/metrics", folder: folder}, err
}

// tusdRoutes are what the peer serves.
func tusdRoutes(mux *http.ServeMux, folder string) error {
	composer := handler.NewStoreComposer()
	filestore.New(folder).UseIn(composer)
	memorylocker.New().UseIn(composer)
	h, err := handler.NewHandler(handler.Config{BasePath: "/files/", StoreComposer: composer, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return err
	}
	mux.Handle("/files/", http.StripPrefix("/files/", h))
	return nil
}

// send uploads a file, and gives the path that it has then.
func (t *tusd) send(ctx context.Context, f *os.File, size, chunk int64) (string, error) {
	url, err := createUpload(ctx, http.DefaultClient, t.url, "", "", size)
	if err != nil {
		return "", err
	}
	return filepath.Join(t.folder, url[strings.LastIndex(url, "/")+1:]), patchAll(url, "", f, size, chunk)
}

// publish is what scripts do with a file that tusd has taken: its digest, then its place; on disk when it returns.
func (t *tusd) publish(ctx context.Context, path string) (placed string, err error) {
	sum, err := exec.CommandContext(ctx, "sha256sum", path).Output()
	if err != nil {
		return "", fmt.Errorf("sha256sum: %w", err)
	}
	placed = filepath.Join(t.folder, strings.Fields(string(sum))[0])
	return placed, errors.Join(syncPath(path), os.Rename(path, placed), syncPath(t.folder))
}

func syncPath(path string) error {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func seconds(since time.Time) float64 { return time.Since(since).Seconds() }
