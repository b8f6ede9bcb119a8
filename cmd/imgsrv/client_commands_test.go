package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgsrv/imgsrv/internal/client"
)

// rawDisk is a disk of n bytes that looks like no known format.
func rawDisk(n int) string { return strings.Repeat("raw disk ", n/9+1)[:n] }

func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("standard output is not JSON: %v\n%s", err, text)
	}
	return v
}

func TestPublishListDownload(t *testing.T) {
	t.Parallel()
	flags, _ := server(t)
	root := squashfs + rawDisk(100_000)
	file := write(t, root)[0]

	code, out, errs := command(t.Context(), with(flags, "publish", file, "--image=debian", "--version=12.5.0", "--architecture=x86_64", "--alias=latest", "--json")...)
	if code != 0 {
		t.Fatalf("publish: exit code %d: %s", code, errs)
	}
	result := decode[published](t, out)
	if result.Image != "debian" || result.Version != "12.5.0" || result.Existed || result.JobID == "" {
		t.Errorf("published %+v", result)
	}
	if got := strings.Join(result.IncusNames, " "); got != "debian/12.5.0 debian/latest debian" {
		t.Errorf("names for Incus: %s", got)
	}
	for _, step := range []string{"verify", "inspect", "materialize", "promote", "publish"} {
		if !strings.Contains(errs, step) {
			t.Errorf("standard error doesn't tell of step %s:\n%s", step, errs)
		}
	}
	for _, f := range result.Files {
		answer, err := http.Get(f.URL)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil || answer.StatusCode != http.StatusOK || hexSum(string(data)) != f.SHA256 {
			t.Errorf("%s: %s, %d bytes, %v", f.URL, answer.Status, len(data), err)
		}
	}

	if code, out, errs := command(t.Context(), with(flags, "images")...); code != 0 || !strings.Contains(out, "latest=12.5.0") {
		t.Errorf("images: exit code %d, %s%s", code, out, errs)
	}
	if code, out, errs := command(t.Context(), with(flags, "images", "debian")...); code != 0 || !strings.Contains(out, "amd64.container.default") {
		t.Errorf("images debian: exit code %d, %s%s", code, out, errs)
	}
	if code, out, errs := command(t.Context(), with(flags, "jobs", "--state=succeeded")...); code != 0 || !strings.Contains(out, result.JobID) {
		t.Errorf("jobs: exit code %d, %s%s", code, out, errs)
	}
	code, out, errs = command(t.Context(), with(flags, "jobs", result.JobID, "--json")...)
	if code != 0 {
		t.Fatalf("jobs ID: exit code %d, %s", code, errs)
	}
	if job := decode[client.Job](t, out); job.State != client.JobSucceeded || len(job.Steps) != 5 {
		t.Errorf("job %+v", job)
	}
	if code, _, errs := command(t.Context(), with(flags, "jobs", "retry", result.JobID)...); code != 1 || !strings.Contains(errs, "only failed jobs") {
		t.Errorf("retry of a job that succeeded: exit code %d, %s", code, errs)
	}

	dir := t.TempDir()
	for _, what := range []string{"debian", "debian/latest", "debian/12.5.0"} {
		target := filepath.Join(dir, strings.ReplaceAll(what, "/", "-"))
		if code, _, errs := command(t.Context(), with(flags, "download", what, "-o", target)...); code != 0 {
			t.Fatalf("download %s: exit code %d: %s", what, code, errs)
		}
		if got, err := os.ReadFile(target); err != nil || string(got) != root {
			t.Errorf("download %s: %d bytes (%v), not those of the file", what, len(got), err)
		}
	}
	if code, out, errs := command(t.Context(), with(flags, "download", "debian", "-o", "-")...); code != 0 || out != root {
		t.Errorf("download to standard output: exit code %d, %d bytes, %s", code, len(out), errs)
	}
	// Standard output may be a pipe, which can't be rewound, or a file with something in it.
	kept, err := os.Create(filepath.Join(dir, "kept"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kept.WriteString("precious"); err != nil {
		t.Fatal(err)
	}
	if code := run(t.Context(), with(flags, "download", "debian", "-o", "-"), Terminal{Out: kept, Err: io.Discard}); code != 0 {
		t.Errorf("download into an open file: exit code %d", code)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "kept")); err != nil || string(got) != "precious"+root {
		t.Errorf("an open file holds %d bytes (%v), want what it had and the download", len(got), err)
	}
	pipeR, pipeW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	piped := make(chan string, 1)
	go func() {
		data, _ := io.ReadAll(pipeR)
		piped <- string(data)
	}()
	if code := run(t.Context(), with(flags, "download", "debian", "-o", "-"), Terminal{Out: pipeW, Err: io.Discard}); code != 0 {
		t.Errorf("download into a pipe: exit code %d", code)
	}
	_ = pipeW.Close()
	if got := <-piped; got != root {
		t.Errorf("the pipe got %d bytes", len(got))
	}
	if code, _, errs := command(t.Context(), with(flags, "download", "debian", "-o", filepath.Join(dir, "debian"))...); code != 1 || !strings.Contains(errs, "--force") {
		t.Errorf("download over a file: exit code %d, %s", code, errs)
	}
	if code, _, errs := command(t.Context(), with(flags, "download", "debian/13", "-o", dir)...); code != 1 || errs == "" {
		t.Errorf("download of no version: exit code %d, %s", code, errs)
	}
}

func TestPublishingAgainIsSuccessForTheSameFilesOnly(t *testing.T) {
	t.Parallel()
	flags, _ := server(t)
	files := write(t, rawDisk(5000), rawDisk(6000))
	args := with(flags, "--image=a", "--version=1", "--json")
	if code, _, errs := command(t.Context(), with(args, "publish", files[0])...); code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	code, out, errs := command(t.Context(), with(args, "publish", files[0])...)
	if code != 0 || !strings.Contains(errs, "published already") {
		t.Fatalf("the same again: exit code %d, %s", code, errs)
	}
	if result := decode[published](t, out); !result.Existed || len(result.Files) == 0 {
		t.Errorf("the same again: %+v", result)
	}
	if code, _, errs := command(t.Context(), with(args, "publish", files[1])...); code != 1 || !strings.Contains(errs, "another file") {
		t.Errorf("another file: exit code %d, %s", code, errs)
	}
	// The server has these bytes: nothing is uploaded.
	if code, _, errs := command(t.Context(), with(flags, "publish", files[0], "--image=b", "--version=1")...); code != 0 {
		t.Errorf("the same bytes under another name: exit code %d, %s", code, errs)
	}
}

func TestKilledPublishGoesOnWhenRunAgain(t *testing.T) {
	t.Parallel()
	flags, node := server(t)
	disk := rawDisk(3 << 20)
	file := write(t, disk)[0]
	backend, err := url.Parse(node.HTTPURL)
	if err != nil {
		t.Fatal(err)
	}
	ctx, kill := context.WithCancel(t.Context())
	proxy := httputil.NewSingleHostReverseProxy(backend)
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch {
			// Two thirds reach the server, then the client dies.
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, 2<<20), failing{kill}))
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)

	args := []string{"publish", file, "--image=a", "--version=1"}
	code, _, errs := command(ctx, append(args, "--server", front.URL, "--token", node.Token)...)
	if code != 130 || !strings.Contains(errs, "run the same command again") {
		t.Fatalf("the killed run: exit code %d, %s", code, errs)
	}
	var resumedAt string
	second := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPatch && resumedAt == "" {
			resumedAt = r.Header.Get("Upload-Offset")
		}
		httputil.NewSingleHostReverseProxy(backend).ServeHTTP(w, r)
	}))
	t.Cleanup(second.Close)
	code, _, errs = command(t.Context(), append(args, "--server", second.URL, "--token", node.Token)...)
	if code != 0 || !strings.Contains(errs, "going on with upload session") {
		t.Fatalf("the second run: exit code %d, %s", code, errs)
	}
	if resumedAt == "" || resumedAt == "0" {
		t.Errorf("the second run sent from offset %q on", resumedAt)
	}
	if code, out, errs := command(t.Context(), with(flags, "download", "a/1", "-o", "-")...); code != 0 || out != disk {
		t.Errorf("download: exit code %d, %d bytes, %s", code, len(out), errs)
	}
}

// failing is the end of a body whose client died.
type failing struct{ kill func() }

func (f failing) Read([]byte) (int, error) {
	f.kill()
	return 0, errors.New("the client died")
}

func TestRefusedContentNamesStepAndReason(t *testing.T) {
	t.Parallel()
	flags, _ := server(t)
	file := write(t, qcow2)[0]
	code, out, errs := command(t.Context(), with(flags, "publish", file, "--image=a", "--version=1", "--json")...)
	if code != 1 || out != "" || !strings.Contains(errs, "failed at step inspect") || strings.Contains(errs, "retry") {
		t.Errorf("exit code %d, %s%s", code, out, errs)
	}
	if code, _, errs := command(t.Context(), with(flags, "images", "a")...); code != 1 {
		t.Errorf("the image is there: %s", errs)
	}
	// The version is free again.
	good := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(good, bytes.Repeat([]byte("x"), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := command(t.Context(), with(flags, "publish", good, "--image=a", "--version=1")...); code != 0 {
		t.Errorf("exit code %d, %s", code, errs)
	}
}
