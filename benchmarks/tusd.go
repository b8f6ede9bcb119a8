package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// tusd is one that keeps uploads in a folder.
type tusd struct {
	*process
	url    string // where uploads are created
	host   string
	folder string
}

func (b *bench) tusd(ctx context.Context, folder string) (*tusd, error) {
	program, err := b.fromGo(ctx, "github.com/tus/tusd/v2", "github.com/tus/tusd/v2/cmd/tusd", "latest")
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	t := &tusd{host: fmt.Sprintf("127.0.0.1:%d", port), folder: folder}
	t.url = "http://" + t.host + "/files/"
	t.process, err = b.start(exec.Command(program, "-host=127.0.0.1", fmt.Sprintf("-port=%d", port), "-upload-dir="+folder, "-base-path=/files/", "-verbose=false", "-show-greeting=false"), syscall.SIGTERM) //nolint:gosec,noctx // it is stopped in order
	if err != nil {
		return nil, err
	}
	return t, t.await(ctx, func() error {
		c, err := net.Dial("tcp", t.host) //nolint:noctx // loopback
		if err != nil {
			return err
		}
		return c.Close()
	})
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
	sum, err := exec.CommandContext(ctx, "sha256sum", path).Output() //nolint:gosec // G204: a path of the harness
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
